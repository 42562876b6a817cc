"""``ddpm-evaluate``: numbers that say how good a model is, with what they depend on."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Literal

from ddpm.cli import app, invocation
from ddpm.console import warn
from ddpm.errors import ConfigError, render, require
from ddpm.evaluation.options import FIDELITY, LIKELIHOOD, METRICS, Measure

_OF_DRAWING = (*FIDELITY, "bpd")
_USED_BY = {  # the metrics that an option has an effect on, where these are not all
    "steps": FIDELITY,
    "classes": FIDELITY,
    "num_samples": FIDELITY,
    "extractor": FIDELITY,
    "sampler": _OF_DRAWING,
    "guidance": _OF_DRAWING,
    "guidance_rescale": _OF_DRAWING,
    "reference": tuple(name for name in METRICS if name != "isc"),
    "num_images": LIKELIHOOD,
    "bound_steps": ("bpd",),
}
_OF_A_MODEL = (
    "steps", "classes", "sampler", "guidance", "guidance_rescale", "num_images", "bound_steps",
    "weights", "precision", "seed",
)  # fmt: skip


def main() -> None:
    """The console script."""
    app.main("evaluate", lambda: Evaluate)


@dataclass(frozen=True, kw_only=True)
class Evaluate(Measure):
    """The options; called, it measures and writes, and returns the first number."""

    ckpt: str | None
    samples: str | None
    runs: list[str] | str | None
    weights: Literal["ema", "raw"]
    cache: str | None
    out: str | None
    device: Literal["auto", "cpu", "cuda"]
    threads: int | Literal["auto"]
    precision: Literal["no", "fp16", "bf16"]
    plugins: list[str]

    def __call__(self) -> float:
        """Measure a model, images that exist, or several runs."""
        from ddpm.distributed import devices
        from ddpm.distributed.consensus import wait_for_all
        from ddpm.drawing import Trained
        from ddpm.evaluation.comparison import Comparison
        from ddpm.evaluation.evaluate import Evaluation

        subjects = [each for each in (self.ckpt, self.samples, self.runs) if each is not None]
        problem = "give one of ckpt=, a model, samples=, images, and runs=, several models"
        require(len(subjects) == 1, "ckpt", self.ckpt, problem)
        measure = Measure(**{each.name: getattr(self, each.name) for each in fields(Measure)})
        self._refuse_unused()
        todo = Evaluation(measure, self.cache, self.out, self.threads)
        if self.runs is not None:
            runs = [self.runs] if isinstance(self.runs, str) else self.runs
            compared = Comparison(todo, self.weights, self.device, self.precision)
            return compared.of(runs)
        if self.samples is not None:
            accelerator = devices.accelerator(self.device, self.precision, key="precision")
            findings = todo.of_images(self.samples, accelerator)
        else:
            assert self.ckpt is not None
            trained = Trained.load(self.ckpt, self.weights, self.device, self.precision)
            accelerator = trained.accelerator
            todo.use_threads(trained)
            _, findings = todo.of_model(todo.judge(trained), trained, self.weights)
        wait_for_all(accelerator)
        accelerator.end_training()
        return findings.of(self.metrics[0])

    def _refuse_unused(self) -> None:
        """Refuse typed options that have no effect on images; warn of those of other metrics.

        Raises:
            ConfigError: the first option that only a model has, beside ``samples=``.
        """
        problem = "has no effect on samples=; leave it out, or evaluate a model with ckpt="
        for key, text in invocation.typed_options():
            name = key.partition(".")[0]
            if self.samples is not None and name in _OF_A_MODEL:
                raise ConfigError(text, None, problem)
            used = set(_USED_BY.get(name, METRICS)) & set(self.metrics)
            if not used and os.environ.get("RANK", "0") == "0":
                warn(f"{text} has no effect on metrics={render(self.metrics)}")


if __name__ == "__main__":
    main()
