"""``ddpm-evaluate``: quality metrics of models and images, with their provenance."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields

from ddpm.cli import app, invocation
from ddpm.console import warn
from ddpm.errors import ConfigError, render, require
from ddpm.evaluation.options import FIDELITY, LIKELIHOOD, METRICS, EvaluationOptions
from ddpm.model_arguments import ModelArguments

_OF_SAMPLER = (*FIDELITY, "bpd")
_USED_BY = {  # metrics that an option has an effect on, if not all
    "steps": FIDELITY,
    "classes": FIDELITY,
    "num_samples": FIDELITY,
    "extractor": FIDELITY,
    "sampler": _OF_SAMPLER,
    "guidance": _OF_SAMPLER,
    "guidance_rescale": _OF_SAMPLER,
    "guidance_interval": _OF_SAMPLER,
    "guide": _OF_SAMPLER,
    "guide_scale": _OF_SAMPLER,
    "reference": tuple(name for name in METRICS if name != "isc"),
    "num_images": LIKELIHOOD,
    "bound_steps": ("bpd",),
}
_MODEL_OPTIONS = (
    "steps", "classes", "sampler", "guidance", "guidance_rescale", "num_images", "bound_steps",
    "weights", "precision", "compile", "seed", "guidance_interval", "guide", "guide_scale",
)  # fmt: skip


def main() -> None:
    """Run the console script."""
    app.main("evaluate", lambda: Evaluate)


@dataclass(frozen=True, kw_only=True)
class Evaluate(EvaluationOptions, ModelArguments):
    """Options of the command; a call evaluates and returns the first number."""

    ckpt: str | None
    samples: str | None
    runs: list[str] | str | None
    cache: str | None
    out: str | None

    def __call__(self) -> float:
        """Evaluate a model, existing images, or several runs."""
        from ddpm.arithmetic import evaluation_precision
        from ddpm.distributed import devices
        from ddpm.distributed.consensus import wait_for_all
        from ddpm.runs.comparison import Comparison
        from ddpm.runs.evaluation import EvaluationJob
        from ddpm.runs.session import Session

        subjects = [each for each in (self.ckpt, self.samples, self.runs) if each is not None]
        problem = "set exactly one of ckpt= (a model), samples= (images) and runs= (several models)"
        require(len(subjects) == 1, "ckpt", self.ckpt, problem)
        names = [each.name for each in fields(EvaluationOptions)]
        options = EvaluationOptions(**{name: getattr(self, name) for name in names})
        self._check_unused_options()
        job = EvaluationJob(options, self.cache, self.out, self.threads, self.compile)
        precision = evaluation_precision(self.precision, self.metrics)
        if self.runs is not None:
            runs = [self.runs] if isinstance(self.runs, str) else self.runs
            comparison = Comparison(job, self.weights, self.device, precision)
            return comparison.compare(runs)
        if self.samples is not None:
            accelerator = devices.accelerator(self.device, precision, key="precision")
            result = job.evaluate_images(self.samples, accelerator)
        else:
            assert self.ckpt is not None
            session = Session.load(self.ckpt, self.weights, self.device, precision)
            accelerator = session.accelerator
            job.use_threads(session)
            _, result = job.evaluate_model(job.evaluator(session), session, self.weights)
        wait_for_all(accelerator)
        accelerator.end_training()
        return result.value(self.metrics[0])

    def _check_unused_options(self) -> None:
        """Reject options of models beside ``samples=``; warn about those of other metrics.

        Raises:
            ConfigError: names the first option that has no effect on ``samples=``.
        """
        problem = "has no effect on samples=; leave it out, or evaluate a model with ckpt="
        for key, text in invocation.typed_options():
            name = key.partition(".")[0]
            if self.samples is not None and name in _MODEL_OPTIONS:
                raise ConfigError(text, None, problem)
            used = set(_USED_BY.get(name, METRICS)) & set(self.metrics)
            if not used and os.environ.get("RANK", "0") == "0":
                warn(f"{text} has no effect on metrics={render(self.metrics)}")


if __name__ == "__main__":
    main()
