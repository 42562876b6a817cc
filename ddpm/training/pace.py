"""Decisions that depend on time: checkpoints every few minutes, previews within a share of it.

No training step depends on them. The clock of the main process decides for all processes.
"""

from __future__ import annotations

import time
from typing import Any

PREVIEW_SHARE = 0.05  # maximum share of the time of a run, unless the user sets an interval


class SaveTimer:
    """Timer of the next checkpoint.

    Args:
        minutes: maximum time between checkpoints; None = no limit.
    """

    def __init__(self, minutes: float | None) -> None:
        self.seconds = None if minutes is None else 60 * minutes
        self.restart()

    def restart(self) -> None:
        """Start to count from now."""
        self._began = time.monotonic()

    def is_due(self) -> bool:
        """Return True if a checkpoint is due."""
        return self.seconds is not None and time.monotonic() - self._began >= self.seconds


class Pace:
    """Time of a run and of its previews, stored in its checkpoints.

    Attributes:
        seconds: duration of the run before :meth:`begin`.
        previews: duration of all previews in seconds.
        last: duration of the last preview in seconds; None before the first one.
        expected: estimated duration of a preview in optimizer steps; None if unknown.
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

    def add_preview(self, seconds: float) -> None:
        """Add the duration of a preview."""
        self.last = seconds
        self.previews += seconds

    def cost(self, step: int) -> float:
        """Return the expected seconds of the next preview, after ``step`` optimizer steps."""
        if self.last is not None:
            return self.last
        return (self.expected or 0.0) * (self.elapsed - self.previews) / max(step, 1)

    def allows_preview(self, step: int) -> bool:
        """Return True if one more preview keeps all previews within their share of the time."""
        cost = self.cost(step)
        return self.previews + cost <= PREVIEW_SHARE * (self.elapsed + cost)

    def state(self) -> dict[str, Any]:
        """Return the state that is stored in checkpoints."""
        return {"seconds": self.elapsed, "previews": self.previews, "last": self.last}

    def load(self, state: dict[str, Any]) -> None:
        """Load the state of a checkpoint; those of earlier versions have none."""
        self.seconds, self.previews = state.get("seconds", 0.0), state.get("previews", 0.0)
        self.last = state.get("last")
