"""Evaluation during training: ``trainer.evaluate_every`` and the options of ``evaluation``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator

from ddpm import instantiate
from ddpm.config.schema import check
from ddpm.console import note, warn
from ddpm.data.spec import DataSpec
from ddpm.distributed.stopping import GivenUpError, Stopping
from ddpm.errors import ConfigError, did_you_mean, require
from ddpm.evaluation.evaluator import Evaluator
from ddpm.evaluation.options import EvaluationOptions
from ddpm.evaluation.reference_data import ReferenceResolver
from ddpm.evaluation.results import EvaluationResult
from ddpm.named_data import ConfiguredData
from ddpm.trained import TrainedModel
from ddpm.training import Trainer
from ddpm.training.loop import StepEvaluation
from ddpm.training.meter import LOGGED, QUARTERS
from ddpm.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ddpm.data.split import Split

_NUMBERS = {  # values of trainer.best by metric, where they differ from its name
    "prc": ("precision", "recall", "f_score"),
    "loss": tuple(f"val_{name}" for name in LOGGED),
    "bpd": ("val_bpd",),
}
_WITHOUT_EFFECT = ("metrics", "batch_size")  # on the comparability of two evaluations


class Validation:
    """Evaluates the averaged weights during training, every time with the same options.

    Args:
        config: config of the training.
        spec: shape, classes and codec of its data.
        split: its training data and validation data.
        accelerator: accelerator of the training.
        best: the number that ``trainer.best`` follows, or None.
        cache: the folder of reference statistics.

    Raises:
        ConfigError: a metric cannot be computed, or ``best`` is not computed by any of them.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        spec: DataSpec,
        split: Split,
        accelerator: Accelerator,
        *,
        best: str | None,
        cache: Path,
    ) -> None:
        checked = check(config["evaluation"], EvaluationOptions, "evaluation")
        self.node, self.spec, self.accelerator = config["evaluation"], spec, accelerator
        with _under_evaluation():
            options = EvaluationOptions(**checked)
            _check_best(best, options)
            possible = not options.likelihood or split.val is not None
            problem = "no data are held out; add data.val_fraction=0.1, or use metrics=[fid]"
            require(possible, "metrics", options.metrics, problem)
            resolve = ConfiguredData(config["data"], lambda: split)
            folder_options = options.folder_options
            references = ReferenceResolver(options.reference, resolve, cache, folder_options)
            options.check_shape(spec.shape)
            extractor = None
            if options.fidelity:
                extractor = instantiate.extractor(options.extractor, spec.shape)
            self.evaluator = Evaluator(
                options, accelerator, references, spec.shape, extractor=extractor
            )
        self._printed_warnings: set[str] = set()

    def check(self, trainer: Trainer) -> None:
        """Check that the model supports the options.

        Raises:
            ConfigError: guidance, classes or steps that the model does not support.
        """
        with _under_evaluation():
            self.evaluator.check_model(self._model(trainer))

    def prepare(self) -> None:
        """Compute what all evaluations share, before the training starts.

        Raises:
            ConfigError: a reference cannot be computed.
        """
        with _under_evaluation():
            self.evaluator.prepare(self.spec, part="val")

    def _model(self, trainer: Trainer) -> TrainedModel:
        return TrainedModel(
            network=trainer.ema.model,
            diffusion=trainer.diffusion,
            spec=self.spec,
            device=self.accelerator.device,
            autocast=lambda: self.accelerator.autocast(),
            checkpoint=None,
        )

    def __call__(self, trainer: Trainer, stopping: Stopping) -> StepEvaluation | None:
        """Evaluate the current averaged weights.

        Args:
            trainer: the trainer.
            stopping: stop check, called after each network call.

        Returns:
            The numbers; None if the stop check returned True.
        """
        provenance = {
            "ddpm": __version__,
            "step": trainer.step,
            "weights": "ema",
            "precision": self.accelerator.mixed_precision,
        }
        model = self._model(trainer)
        try:
            with _under_evaluation():
                result = self.evaluator.evaluate_model(
                    model, provenance, stopping=stopping, figures=False
                )
        except GivenUpError:
            return None
        if self.accelerator.is_main_process:
            self._print(result, trainer.step)
        measure = {k: v for k, v in self.node.items() if k not in _WITHOUT_EFFECT}
        measure |= self.evaluator.class_provenance(model)
        return StepEvaluation(result.numbers, partial(result.write, measure=measure))

    def _print(self, result: EvaluationResult, step: int) -> None:
        """Print new warnings, and the numbers without those per quarter of timesteps."""
        for warning in result.warnings:
            if warning not in self._printed_warnings:
                warn(warning)
        self._printed_warnings |= set(result.warnings)
        numbers = {k: v for k, v in result.numbers.items() if not k.endswith(QUARTERS)}
        note(f"step {step}: {', '.join(f'{k} {v:.5g}' for k, v in numbers.items())}")


def _check_best(best: str | None, options: EvaluationOptions) -> None:
    """Check that ``trainer.best`` names a number that training or evaluation computes."""
    names = [each for metric in options.metrics for each in _NUMBERS.get(metric, (metric,))]
    if best is None or best in (*LOGGED, *names):
        return
    problem = f"is not computed; evaluation.metrics computes {', '.join(names)}"
    raise ConfigError("trainer.best", best, f"{problem}{did_you_mean(best, names)}")


@contextmanager
def _under_evaluation() -> Iterator[None]:
    """Add the prefix ``evaluation.`` to the options that errors name."""
    try:
        yield
    except ConfigError as error:
        if error.key.startswith(("trainer.", "data.")):
            raise
        raise error.under("evaluation") from error
