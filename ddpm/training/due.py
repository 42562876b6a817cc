"""Which previews and evaluations fall due at a step, and which of them a run does not have."""

from __future__ import annotations

from typing import Literal

from accelerate.utils import broadcast_object_list

from ddpm.training.run import Run
from ddpm.training.trainer import Trainer

Shown = Literal["preview", "evaluation"]
PREVIEW_EVERY = 5000  # steps, where the user sets no interval


def is_due(every: int, step: int, last: int) -> bool:
    """Return True if what is done every so many steps is due at this one; 0 is never."""
    return every > 0 and step > 0 and (step % every == 0 or step == last)


def preview_interval(trainer: Trainer) -> int:
    """Return the optimizer steps between previews; 0 = none."""
    return PREVIEW_EVERY if trainer.preview_every is None else trainer.preview_every


def scheduled(trainer: Trainer) -> set[Shown]:
    """Return what the options have due at the step that the trainer has reached."""
    every: dict[Shown, int] = {
        "preview": preview_interval(trainer),
        "evaluation": trainer.evaluate_every,
    }
    step, last = trainer.step, trainer.max_steps
    return {name for name, steps in every.items() if is_due(steps, step, last)}


def missing(run: Run, step: int) -> set[Shown]:
    """Return what a run does not have of a step, the same on every process."""
    has: dict[Shown, bool] = {
        "preview": run.picture("samples", step).exists(),
        "evaluation": run.has_evaluation(step),
    }
    lacking: set[Shown] = {name for name, done in has.items() if not done}
    return broadcast_object_list([lacking])[0]
