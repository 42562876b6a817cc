"""Decisions by the clock while training: checkpoints after minutes, previews within a share.

No step depends on them. The clock of the main process decides for all.
"""

from __future__ import annotations

import time
from typing import Any

PREVIEW_SHARE = 0.05  # of the time of a run, at most, where the user sets no interval


class SaveTimer:
    """The time since the last checkpoint, or since the start.

    Args:
        minutes: after which the next checkpoint is due; None = never.
    """

    def __init__(self, minutes: float | None) -> None:
        self.seconds = None if minutes is None else 60 * minutes
        self.restart()

    def restart(self) -> None:
        """Count from now on."""
        self._began = time.monotonic()

    def is_due(self) -> bool:
        """Return True if a checkpoint is due."""
        return self.seconds is not None and time.monotonic() - self._began >= self.seconds


class Pace:
    """The time that a run has taken and the part of its previews, kept in its checkpoints.

    Attributes:
        seconds: of the run before :meth:`begin`.
        previews: seconds of all previews.
        last: seconds of the last preview; None before the first one.
        expected: length of a preview in optimizer steps, an estimate; None if it is unknown.
    """

    def __init__(self) -> None:
        self.seconds = self.previews = 0.0
        self.last: float | None = None
        self.expected: float | None = None
        self._began: float | None = None

    def begin(self) -> None:
        """Start the clock."""
        self._began = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of the run so far."""
        return self.seconds + (0 if self._began is None else time.monotonic() - self._began)

    def drawn(self, seconds: float) -> None:
        """Count a preview that took so long."""
        self.last = seconds
        self.previews += seconds

    def cost(self, step: int) -> float:
        """Return the seconds that the next preview will take, after ``step`` optimizer steps."""
        if self.last is not None:
            return self.last
        return (self.expected or 0.0) * (self.elapsed - self.previews) / max(step, 1)

    def allows_preview(self, step: int) -> bool:
        """Return True if with one more preview all previews stay within their share."""
        cost = self.cost(step)
        return self.previews + cost <= PREVIEW_SHARE * (self.elapsed + cost)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run continues with."""
        return {"seconds": self.elapsed, "previews": self.previews, "last": self.last}

    def load(self, state: dict[str, Any]) -> None:
        """Take the times of a checkpoint; one of an earlier version has none."""
        self.seconds, self.previews = state.get("seconds", 0.0), state.get("previews", 0.0)
        self.last = state.get("last")
