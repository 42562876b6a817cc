"""The duration of a training, estimated before its first step, and the steps that fit a time."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from math import floor, log10

from ddpm.console import duration
from ddpm.errors import require
from ddpm.training.options import ABOVE_0, Options, option

_LONG = 2 * 3600.0  # seconds; for longer trainings another number of steps is proposed
_FORWARD = 1 / 3  # share of an optimizer step: the backward pass takes twice as long


@dataclass(frozen=True, kw_only=True)
class DurationOptions(Options):
    """Options of the length of a training.

    Attributes:
        max_steps: number of optimizer steps.
        max_minutes: time budget: ``ddpm-train`` measures the machine at the start of a run, and
            max_steps becomes the number of steps that fit; None = max_steps as it is.
    """

    max_steps: int = option(100_000, free=True)
    max_minutes: float | None = None

    def _validate(self) -> None:
        require(self.max_steps >= 1, "max_steps", self.max_steps, "must be at least 1")
        minutes = self.max_minutes
        require(minutes is None or minutes > 0, "max_minutes", minutes, ABOVE_0)


def preview_steps(samples: int, calls: int, batch_size: int) -> float:
    """Return the length of a preview in optimizer steps.

    Args:
        samples: samples per preview.
        calls: network calls per sample.
        batch_size: samples per optimizer step.
    """
    return _FORWARD * samples * calls / batch_size


@dataclass(frozen=True)
class Estimate:
    """The expected speed of a training.

    Attributes:
        step: seconds per optimizer step.
        preview: seconds per preview.
        every: optimizer steps between previews, beside the one at the end; 0 = no previews.
    """

    step: float
    preview: float = 0.0
    every: int = 0

    def seconds(self, start: int, last: int) -> float:
        """Return the seconds from step ``start`` to step ``last``, previews included."""
        previews = 0
        if self.every:
            previews = last // self.every - start // self.every + (last % self.every > 0)
        return (last - start) * self.step + previews * self.preview

    def steps(self, seconds: float) -> int:
        """Return the number of steps, at least 1, that fit into a duration in seconds."""
        most = max(floor(seconds / self.step), 1)  # without previews
        return max(bisect_right(range(1, most + 1), seconds, key=lambda n: self.seconds(0, n)), 1)

    def line(self, start: int, last: int, without: str = "") -> str:
        """Return a message about the duration, with a proposal if it is long.

        Args:
            start: the current step of the run.
            last: its last step.
            without: end of the message, about what the estimate does not include.
        """
        seconds = self.seconds(start, last)
        steps = "1 step" if last - start == 1 else f"{last - start:,} steps"
        left = " left" if start else ""
        line = f"{steps}{left}: about {duration(seconds)} on this machine{without}"
        if start or seconds < _LONG:
            return line
        return f"{line}; trainer.max_minutes=60 fits {rounded(self.steps(3600)):,}"


def rounded(number: int) -> int:
    """Return a positive number rounded to two significant digits."""
    return int(round(number, 1 - floor(log10(number))))
