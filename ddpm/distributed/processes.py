"""The processes that share the work of a command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Processes(Protocol):
    """Processes that work together; :class:`accelerate.Accelerator` is an implementation."""

    @property
    def num_processes(self) -> int:
        """Number of processes."""
        ...

    @property
    def process_index(self) -> int:
        """Number of this process, from 0."""
        ...

    @property
    def is_main_process(self) -> bool:
        """True on the process that prints and writes files."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of this process."""
        ...

    def reduce(self, tensor: Any, reduction: str = "sum") -> Any:
        """Return the sum of the tensors of all processes."""
        ...


@dataclass(frozen=True)
class SingleProcess:
    """This process alone, for work from Python without a launcher.

    Attributes:
        device: of the process.
    """

    device: torch.device
    num_processes: int = 1
    process_index: int = 0
    is_main_process: bool = True

    def reduce(self, tensor: Tensor, reduction: str = "sum") -> Tensor:
        """Return ``tensor``."""
        return tensor
