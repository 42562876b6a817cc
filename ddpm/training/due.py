"""Previews and evaluations that are due at a step, or missing in a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from accelerate.utils import broadcast_object_list

from ddpm.errors import require
from ddpm.training.options import Options, option
from ddpm.training.run import Run

Shown = Literal["preview", "evaluation"]
PREVIEW_EVERY = 5000  # steps, where the user sets no interval


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Options):
    """Options of logs, previews and evaluations.

    Attributes:
        log_every: optimizer steps between lines of metrics.jsonl.
        preview_every: optimizer steps between sample grids; 0 = none; None = 5,000, skipping
            those that would raise the share of previews above 5 % of the time. The last step
            has one.
        preview_samples: samples per grid.
        evaluate_every: optimizer steps between evaluations; 0 = none.
    """

    log_every: int = option(50, free=True)
    preview_every: int | None = option(None, free=True, legacy=5000)
    preview_samples: int = option(64, free=True)
    evaluate_every: int = option(0, free=True)

    def _validate(self) -> None:
        require(self.log_every >= 1, "log_every", self.log_every, "must be at least 1")
        good = self.preview_every is None or self.preview_every >= 0
        require(good, "preview_every", self.preview_every, "must be at least 0")
        good = self.preview_samples >= 1
        require(good, "preview_samples", self.preview_samples, "must be at least 1")
        good = self.evaluate_every >= 0
        require(good, "evaluate_every", self.evaluate_every, "must be at least 0")

    @property
    def preview_interval(self) -> int:
        """Optimizer steps between previews; 0 = none."""
        return PREVIEW_EVERY if self.preview_every is None else self.preview_every


def is_due(every: int, step: int, last: int) -> bool:
    """Return True if a task is due at a step.

    Args:
        every: interval of the task in steps; 0 = never.
        step: the step.
        last: the last step, at which every task is due.
    """
    return every > 0 and step > 0 and (step % every == 0 or step == last)


def scheduled(options: ReportOptions, step: int, last: int) -> set[Shown]:
    """Return the previews and evaluations due after ``step`` of ``last`` optimizer steps."""
    every: dict[Shown, int] = {
        "preview": options.preview_interval,
        "evaluation": options.evaluate_every,
    }
    return {name for name, steps in every.items() if is_due(steps, step, last)}


def missing(run: Run, step: int) -> set[Shown]:
    """Return the previews and evaluations of a step that a run lacks, equal on every process."""
    has: dict[Shown, bool] = {
        "preview": run.picture("samples", step).exists(),
        "evaluation": run.has_evaluation(step),
    }
    lacking: set[Shown] = {name for name, done in has.items() if not done}
    return broadcast_object_list([lacking])[0]
