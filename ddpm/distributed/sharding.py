"""How samples are shared among processes, come together again, and are given up together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ddpm.distributed.stopping import GivenUpError, Stopping
from ddpm.errors import Stopped


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


class SharedWork:
    """Network calls of one of several processes, which all finish together or give up together.

    Args:
        calls: of the process that makes most of them.
        stopping: asked after each call.
        at_end: ask also once at the end; needed with :meth:`interruptible`.
    """

    def __init__(self, calls: int, stopping: Stopping, *, at_end: bool = True) -> None:
        self.stopping = stopping
        self._questions = calls + at_end  # that are left: each process asks as many

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Make the calls inside: a signal ends a call in its middle, and the work.

        Raises:
            GivenUpError: see :meth:`tick`.
        """
        try:
            with self.stopping.interruptible():
                yield
        except Stopped:
            self.tick()
            raise

    def tick(self) -> None:
        """Ask after a call.

        Raises:
            GivenUpError: a process was asked to stop; on every process after as many questions.
        """
        self._questions -= 1
        if self.stopping():
            raise GivenUpError

    def finish(self) -> None:
        """Answer the processes that make more calls, as long as they do.

        Raises:
            GivenUpError: see :meth:`tick`.
        """
        while self._questions > 0:
            self.tick()
