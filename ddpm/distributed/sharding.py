"""Items shared among processes, the collective stop check, and gathering of samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import gather_object
from torch import Tensor

from ddpm.distributed.processes import Processes
from ddpm.distributed.stopping import NEVER, GivenUpError, Stopping
from ddpm.errors import Stopped


def shard_range(
    count: int, rank: int, world: int, *, batch_size: int = 1, largest_first: bool = False
) -> range:
    """Return the consecutive items of one process, in whole batches.

    All processes together form the batches that a single process would form. The results of each
    batch are then equal bit for bit for any number of processes, even where the sums of a network
    depend on the size of the batch.

    Args:
        count: number of items.
        rank: number of the process, from 0.
        world: number of processes.
        batch_size: items per batch; the last batch may be smaller.
        largest_first: give the first process, not the last one, the most batches if they cannot be
            divided evenly.
    """
    batches, extra = -(-count // batch_size), world - 1 if largest_first else 0
    first, last = ((batches * each + extra) // world for each in (rank, rank + 1))
    return range(min(first * batch_size, count), min(last * batch_size, count))


class Shard:
    """The items of one process in batches, and a stop check after each of its network calls.

    A signal may arrive at one process only. So the processes agree after each call, and every
    process takes part equally often: one with fewer calls makes up for them in :meth:`finish`.

    Args:
        processes: share the items.
        count: number of items.
        batch_size: items per batch.
        calls: network calls per batch.
        stopping: the stop check; all processes return the same.
        single_items: divide the items, not whole batches of them, among the processes; the first
            process has the most.
        check_at_end: check once more in :meth:`finish`; required by :meth:`interruptible`.

    Attributes:
        indices: the items of this process.
        calls: network calls of this process.
        most_batches: the largest number of batches of a process.
    """

    def __init__(
        self,
        processes: Processes,
        count: int,
        batch_size: int,
        *,
        calls: int = 1,
        stopping: Stopping = NEVER,
        single_items: bool = False,
        check_at_end: bool = False,
    ) -> None:
        world, unit = processes.num_processes, 1 if single_items else batch_size
        ranges = [
            shard_range(count, rank, world, batch_size=unit, largest_first=single_items)
            for rank in range(world)
        ]
        self.indices, self.batch_size = ranges[processes.process_index], batch_size
        self.most_batches = max(-(-len(each) // batch_size) for each in ranges)
        self.calls = len(self.batches()) * calls
        self.stopping = stopping
        self._checks_left = self.most_batches * calls + check_at_end

    def batches(self) -> list[list[int]]:
        """Return the items of each batch of this process."""
        starts = range(0, len(self.indices), self.batch_size)
        return [list(self.indices[at : at + self.batch_size]) for at in starts]

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Run network calls that a signal may interrupt.

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
        """Check after a network call whether to stop.

        Raises:
            GivenUpError: some process was requested to stop. Every process raises it at the same
                check.
        """
        self._checks_left -= 1
        if self.stopping():
            raise GivenUpError

    def finish(self) -> None:
        """Take part in the remaining checks of processes with more calls.

        Raises:
            GivenUpError: see :meth:`tick`.
        """
        while self._checks_left > 0:
            self.tick()


def gather_samples(
    batches: list[tuple[Tensor, Tensor | None]],
) -> tuple[Tensor, Tensor | None]:
    """Return the samples of all processes, in order, on each of them.

    Args:
        batches: raw data (B, C, *spatial) and labels (B,) or None, of this process.

    Returns:
        Raw data (N, C, *spatial), and labels (N,) or None.
    """
    everything = gather_object(batches)
    raw = torch.cat([raw for raw, _ in everything])
    labels = [labels for _, labels in everything if labels is not None]
    return raw, torch.cat(labels) if labels else None
