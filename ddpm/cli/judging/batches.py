"""The batches of one of several processes, with a word to the others after each call."""

from __future__ import annotations

from collections.abc import Callable

from accelerate import Accelerator

from ddpm import fidelity

Stopping = Callable[[], bool]


class GivenUpError(Exception):
    """The work was left undone, by all processes alike, since they were told to stop."""


def never() -> bool:
    """Nobody tells to stop."""
    return False


class Share:
    """What one process does of ``count`` items that are cut into batches.

    Args:
        accelerator: whose processes share them.
        count: items in all.
        batch_size: at once.
        calls: of the network for each batch.
        stopping: asked after each call, by each process as often: the processes may exchange
            their answers in it.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        count: int,
        batch_size: int,
        calls: int = 1,
        stopping: Stopping = never,
    ) -> None:
        rank, world = accelerator.process_index, accelerator.num_processes
        self.indices = fidelity.share(count, batch_size, rank, world)
        self.count, self.batch_size, self.stopping = count, batch_size, stopping
        everyone = (fidelity.share(count, batch_size, each, world) for each in range(world))
        self.most = max(-(-len(each) // batch_size) for each in everyone)
        self.calls = self.num_batches * calls
        self._asks = self.most * calls  # that are left: all processes have as many

    @property
    def num_batches(self) -> int:
        """How many batches this process has."""
        return -(-len(self.indices) // self.batch_size)

    def batches(self) -> list[list[int]]:
        """The indices of each."""
        starts = range(0, len(self.indices), self.batch_size)
        return [list(self.indices[at : at + self.batch_size]) for at in starts]

    def tick(self) -> None:
        """After a call: give up if told to stop.

        Raises:
            GivenUpError: on every process after as many calls, once ``stopping`` says so.
        """
        self._asks -= 1
        if self.stopping():
            raise GivenUpError

    def finish(self) -> None:
        """Answer the processes that have more batches, as long as they have."""
        while self._asks > 0:
            self.tick()
