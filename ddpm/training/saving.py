"""Writing checkpoints while training goes on."""

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

_TRIES = 3
_THREAD = "checkpoint"


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions(Options):
    """Options of the checkpoints.

    Attributes:
        checkpoint_every: optimizer steps between checkpoints; the last step always has one.
        checkpoint_minutes: longest time between checkpoints; None = no limit.
        keep_last: number of checkpoints that are kept, at least 2: the last may be damaged.
        keep_every: checkpoints of steps that are multiples of it are never deleted; None = off.
        best: metric whose best checkpoint is kept: ``loss``, a quarter of it (``loss_q0``), or one
            of the evaluation (``fid``, ``val_loss``); None = off.
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
    """Writes checkpoints on a thread: training waits for a copy in memory and no longer.

    A disk that refuses is told of, and training goes on: the older checkpoints are intact, and the
    next one is another try. The third failure in a row is an error, and so are weights that are
    not finite.

    Args:
        run: the run folder.
        prune: called with the step of each checkpoint that was written, on the thread.
        warn: told of a failure that is no error yet.
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
        """Copy what :func:`ddpm.training.checkpoint.save` takes, and begin to write it."""
        self.wait()
        copy = recursively_apply(_copy, content)
        self._thread = threading.Thread(target=self._write, args=(metadata, copy), name=_THREAD)
        self._thread.start()

    def wait(self) -> None:
        """Until what was begun has ended, one way or the other."""
        if self._thread is not None:
            self._thread.join()
            self._look()

    def error(self, *, last: bool = False) -> Exception | None:
        """What training must not go on after, or None.

        Args:
            last: waits for the end of the writing, and counts any failure as an error.
        """
        if last and self._thread is not None:
            self._thread.join()
        if self._thread is not None and not self._thread.is_alive():
            self._look(last)
        return self._error

    def _look(self, last: bool = False) -> None:
        """What came of a thread that has ended."""
        self._thread = None
        failure, self._failure = self._failure, None
        self.failures = 0 if failure is None else self.failures + 1
        if failure is None:
            return
        refused = type(failure) is ConfigError
        if not refused or last or self.failures == _TRIES:
            self._error = failure
        else:
            self.warn(f"{failure}; training goes on, the next checkpoint is another try")

    def _write(self, metadata: CheckpointMetadata, content: dict[str, Any]) -> None:
        try:
            checkpoint.save(self.run / checkpoint.FOLDER, metadata, **content)
            try:
                self.prune(metadata.step)
            except OSError as error:  # the new one is there; the next prunes as well
                self.warn(f"{self.run}: older checkpoints cannot be deleted: {error}")
        except Exception as failure:  # reported by error(), in the thread that can act on it
            self._failure = failure


def in_progress() -> bool:
    """Return True while this process is writing a checkpoint."""
    return any(thread.name == _THREAD for thread in threading.enumerate())


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True)
