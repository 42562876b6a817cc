"""Stopping of long work between two steps of training, by all processes together."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator

from ddpm.distributed.consensus import agree
from ddpm.signals import StopSignal


class GivenUpError(Exception):
    """The work was left undone by all processes alike, because a signal asked to stop."""


class Stopping:
    """The request to stop, as work asks for it; this one never comes.

    A subclass may exchange the answers of all processes: each process asks equally often.
    """

    def __call__(self) -> bool:
        """Return True if the work is to be given up, the same on every process."""
        return False

    def interruptible(self) -> AbstractContextManager[None]:
        """Raise ``Stopped`` in the middle of what is done inside, when a signal arrives.

        The process then asks once more in place of its next regular question, which tells the
        others. Nothing is exchanged inside but the answers.
        """
        return nullcontext()


NEVER = Stopping()


class AgreedStopping(Stopping):
    """The request to stop, agreed on by all processes of a training.

    Attributes:
        agreed: True once the answer was yes; nothing is exchanged after that.

    Args:
        accelerator: whose processes agree.
        stop: the listener of this process.
    """

    def __init__(self, accelerator: Accelerator, stop: StopSignal) -> None:
        self.accelerator, self.stop, self.agreed = accelerator, stop, False

    def __call__(self) -> bool:
        """Ask all processes, each of which calls this equally often."""
        if not self.agreed:
            with self.stop.uninterrupted():
                received = self.stop.received is not None
                self.agreed = agree(
                    self.accelerator, torch.zeros(()), stop=received, failed=False
                ).stop
        return self.agreed

    def interruptible(self) -> AbstractContextManager[None]:
        """Make network calls inside: a signal ends them between two of their operations."""
        return self.stop.interruptible()
