"""Writing of checkpoints on a thread, while training continues."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import recursively_apply
from torch import Tensor

from ddpm.errors import ConfigError, require
from ddpm.training import checkpoint
from ddpm.training.checkpoint import CheckpointMetadata
from ddpm.training.options import ABOVE_0, Options, option

_MAX_FAILURES = 3  # in a row
_THREAD = "checkpoint"


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions(Options):
    """Options of the checkpoints.

    Attributes:
        checkpoint_every: optimizer steps between checkpoints; the last step always has one.
        checkpoint_minutes: longest time between checkpoints; None = no limit.
        keep_last: number of newest checkpoints to retain, at least 2: the last may be damaged.
        keep_every: checkpoints of steps that are multiples of it are never deleted; None = off.
        best: metric whose best checkpoint is retained: ``loss``, a quarter of it (``loss_q0``), or
            one of the evaluation (``fid``, ``val_loss``); None = off.
    """

    checkpoint_every: int = option(5000, free=True)
    checkpoint_minutes: float | None = option(10.0, free=True, legacy=None)
    keep_last: int = option(3, free=True)
    keep_every: int | None = option(None, free=True)
    best: str | None = option(None, free=True)

    def _validate(self) -> None:
        good = self.checkpoint_every >= 1
        require(good, "checkpoint_every", self.checkpoint_every, "must be at least 1")
        minutes = self.checkpoint_minutes
        require(minutes is None or minutes > 0, "checkpoint_minutes", minutes, ABOVE_0)
        require(self.keep_last >= 2, "keep_last", self.keep_last, "must be at least 2")
        good = self.keep_every is None or self.keep_every >= 1
        require(good, "keep_every", self.keep_every, "must be at least 1")


class Saver:
    """Writes checkpoints on a thread; training waits only for a copy in memory.

    A failure to write is a warning, and training continues: older checkpoints are intact, and the
    next checkpoint is another attempt. The third failure in a row is an error, and so are weights
    that are not finite.

    Args:
        run: the run folder.
        prune: called on the thread with the step of each checkpoint after it was written.
        warn: called with a message per failure that is not an error yet.
    """

    def __init__(
        self, run: Path, prune: Callable[[int], None], warn: Callable[[str], None]
    ) -> None:
        self.run, self.prune, self.warn = run, prune, warn
        self.failures = 0  # in a row
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None  # of the thread
        self._error: Exception | None = None

    def start(self, metadata: CheckpointMetadata, **content: Any) -> None:
        """Copy the arguments of :func:`ddpm.training.checkpoint.save`, and start to write them."""
        self.wait()
        copy = recursively_apply(_copy, content)
        self._thread = threading.Thread(target=self._write, args=(metadata, copy), name=_THREAD)
        self._thread.start()

    def wait(self) -> None:
        """Wait until the current checkpoint is written or has failed."""
        if self._thread is not None:
            self._thread.join()
            self._finish()

    def error(self, *, last: bool = False) -> Exception | None:
        """Return the error that must stop the training, or None.

        Args:
            last: wait for the checkpoint, and treat any failure as an error.
        """
        if last and self._thread is not None:
            self._thread.join()
        if self._thread is not None and not self._thread.is_alive():
            self._finish(last)
        return self._error

    def _finish(self, last: bool = False) -> None:
        """Collect the result of the thread, which has ended."""
        self._thread = None
        failure, self._failure = self._failure, None
        self.failures = 0 if failure is None else self.failures + 1
        if failure is None:
            return
        is_disk_failure = type(failure) is ConfigError
        if not is_disk_failure or last or self.failures == _MAX_FAILURES:
            self._error = failure
        else:
            self.warn(f"{failure}; training continues, and the next checkpoint is another attempt")

    def _write(self, metadata: CheckpointMetadata, content: dict[str, Any]) -> None:
        try:
            checkpoint.save(self.run / checkpoint.FOLDER, metadata, **content)
            try:
                self.prune(metadata.step)
            except OSError as error:  # the new checkpoint exists; the next one prunes again
                self.warn(f"{self.run}: older checkpoints cannot be deleted: {error}")
        except Exception as failure:  # reported by error(), in the thread that can act on it
            self._failure = failure


def in_progress() -> bool:
    """Return True while this process is writing a checkpoint."""
    return any(thread.name == _THREAD for thread in threading.enumerate())


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True)
