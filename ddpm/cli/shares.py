"""How samples are shared among processes, and come together again."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor


def share(accelerator: Accelerator, count: int) -> range:
    """Which of ``count`` samples this process draws: neighbours, equally many.

    Where they do not go round, the main process has one: it makes the pictures.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    return range(-(-count * rank // world), -(-count * (rank + 1) // world))


def gather(parts: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """Raw data (N, ...) and labels of all processes, in order, on each of them."""
    everyone = gather_object(parts)
    raw = torch.cat([raw for raw, _ in everyone])
    labels = [labels for _, labels in everyone if labels is not None]
    return raw, torch.cat(labels) if labels else None
