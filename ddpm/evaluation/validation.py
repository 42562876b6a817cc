"""Measuring while training: ``trainer.evaluate_every`` and the options of ``evaluation``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator

from ddpm import __version__, instantiate
from ddpm.console import note, warn
from ddpm.distributed.stopping import GivenUpError, Stopping
from ddpm.drawing import Model
from ddpm.errors import ConfigError, did_you_mean, require
from ddpm.evaluation.evaluator import Judge
from ddpm.evaluation.options import Measure
from ddpm.evaluation.reference_data import Against
from ddpm.instantiate import Facts
from ddpm.training import Trainer
from ddpm.training.loop import Evaluated
from ddpm.training.meter import LOGGED, QUARTERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ddpm.data.split import Split

_GIVEN = {  # what can be followed, by what is asked for
    "prc": ("precision", "recall", "f_score"),
    "loss": tuple(f"val_{name}" for name in LOGGED),
    "bpd": ("val_bpd",),
}


class Validation:
    """Measures the averaged weights of the moment, always in the same way.

    Args:
        config: of the training.
        facts: of its data.
        own: its data, and those that are held out.
        accelerator: of the training.
        best: the metric that ``trainer.best`` follows, or None.
        cache: the folder of reference statistics.

    Raises:
        ConfigError: what cannot be measured, or is not but is to be followed.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        facts: Facts,
        own: Split,
        accelerator: Accelerator,
        *,
        best: str | None,
        cache: Path,
    ) -> None:
        options = instantiate.check(config["evaluation"], Measure, "evaluation")
        with _under_evaluation():
            self.measure = Measure(**options)
            _check_best(best, self.measure)
            held_out = not self.measure.likelihood or own.val is not None
            problem = "no data are held out; add data.val_fraction=0.1, or take metrics=[fid]"
            require(held_out, "metrics", self.measure.metrics, problem)
            reference, options = self.measure.reference, self.measure.of_folders
            against = Against(reference, config["data"], lambda: own, cache, options)
            self.judge = Judge(self.measure, accelerator, against, facts.shape)
        self.node, self.facts, self.accelerator = config["evaluation"], facts, accelerator
        self._warned: set[str] = set()

    def check(self, trainer: Trainer) -> None:
        """Refuse guidance, classes or steps that the model does not have, with ConfigError."""
        with _under_evaluation():
            self.judge.check(self._model(trainer))

    def ready(self) -> None:
        """Compute what all evaluations share, before any training."""
        with _under_evaluation():
            self.judge.ready(self.facts, part="val")

    def _model(self, trainer: Trainer) -> Model:
        return Model(
            network=trainer.ema.model,
            diffusion=trainer.diffusion,
            facts=self.facts,
            device=self.accelerator.device,
            autocast=lambda: self.accelerator.autocast(),
            checkpoint=None,
            accelerator=self.accelerator,
        )

    def __call__(self, trainer: Trainer, stopping: Stopping) -> Evaluated | None:
        """Measure; None if told to stop meanwhile."""
        told = {
            "ddpm": __version__,
            "step": trainer.step,
            "weights": "ema",
            "precision": self.accelerator.mixed_precision,
        }
        try:
            with _under_evaluation():
                found = self.judge.of_model(
                    self._model(trainer), told, stopping=stopping, pictures=False
                )
        except GivenUpError:
            return None
        if self.accelerator.is_main_process:
            for warning in found.warnings:
                if warning not in self._warned:
                    warn(warning)
            self._warned |= set(found.warnings)
            shown = {k: v for k, v in found.numbers.items() if not k.endswith(QUARTERS)}
            note(f"step {trainer.step}: {', '.join(f'{k} {v:.5g}' for k, v in shown.items())}")
        decides = {k: v for k, v in self.node.items() if k not in ("metrics", "batch_size")}
        decides |= self.judge.classes_of(self._model(trainer))
        return Evaluated(found.numbers, partial(found.write, measure=decides))


def _check_best(best: str | None, measure: Measure) -> None:
    """Refuse to follow what is not measured."""
    known = [each for name in measure.metrics for each in _GIVEN.get(name, (name,))]
    if best is None or best in (*LOGGED, *known):
        return
    problem = f"is not measured: evaluation.metrics gives {', '.join(known)}"
    raise ConfigError("trainer.best", best, f"{problem}{did_you_mean(best, known)}")


@contextmanager
def _under_evaluation() -> Iterator[None]:
    """Name the options of ``evaluation`` in full."""
    try:
        yield
    except ConfigError as error:
        if error.key.startswith(("trainer.", "data.")):
            raise
        raise error.under("evaluation") from error
