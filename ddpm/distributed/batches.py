"""The batches of one of several processes, with a word to the others after each call."""

from __future__ import annotations

from accelerate import Accelerator

from ddpm import metrics
from ddpm.distributed.sharding import SharedWork
from ddpm.distributed.stopping import NEVER, Stopping


class Share(SharedWork):
    """What one process does of ``count`` items that are cut into batches.

    Args:
        accelerator: whose processes share them.
        count: items in all.
        batch_size: at once.
        calls: of the network for each batch.
        stopping: see :class:`~ddpm.distributed.sharding.SharedWork`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        count: int,
        batch_size: int,
        calls: int = 1,
        stopping: Stopping = NEVER,
    ) -> None:
        rank, world = accelerator.process_index, accelerator.num_processes
        self.indices = metrics.share(count, batch_size, rank, world)
        self.count, self.batch_size = count, batch_size
        everyone = (metrics.share(count, batch_size, each, world) for each in range(world))
        self.most = max(-(-len(each) // batch_size) for each in everyone)
        self.calls = self.num_batches * calls
        super().__init__(self.most * calls, stopping, at_end=False)

    @property
    def num_batches(self) -> int:
        """How many batches this process has."""
        return -(-len(self.indices) // self.batch_size)

    def batches(self) -> list[list[int]]:
        """The indices of each."""
        starts = range(0, len(self.indices), self.batch_size)
        return [list(self.indices[at : at + self.batch_size]) for at in starts]
