"""``ddpm-evaluate``: numbers that say how good a model is, with what they depend on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from ddpm.cli import app
from ddpm.cli.judging.measure import Measure
from ddpm.errors import require


def main() -> None:
    """The console script."""
    app.main("evaluate", lambda: Evaluate)


@dataclass(frozen=True, kw_only=True)
class Evaluate(Measure):
    """The options; called, it measures and writes, and returns the first number."""

    ckpt: str | None
    samples: str | None
    runs: list[str] | str | None
    steps: int | None
    weights: Literal["ema", "raw"]
    cache: str | None
    out: str | None
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["no", "fp16", "bf16"]
    plugins: list[str]

    def __call__(self) -> float:
        """Measure a model, images that exist, or several runs."""
        from ddpm.cli.drawing import Trained
        from ddpm.cli.judging.comparison import Comparison
        from ddpm.cli.judging.evaluation import Evaluation
        from ddpm.training import launch

        subjects = [each for each in (self.ckpt, self.samples, self.runs) if each is not None]
        problem = "give one of ckpt=, a model, samples=, images, and runs=, several models"
        require(len(subjects) == 1, "ckpt", self.ckpt, problem)
        measure = Measure(**{each.name: getattr(self, each.name) for each in fields(Measure)})
        todo = Evaluation(measure, self.steps, self.cache, self.out)
        if self.runs is not None:
            runs = [self.runs] if isinstance(self.runs, str) else self.runs
            compared = Comparison(todo, self.weights, self.device, self.precision)
            return compared.of(runs)
        if self.samples is not None:
            accelerator = launch.accelerator(self.device, self.precision, key="precision")
            findings = todo.of_images(self.samples, accelerator)
        else:
            assert self.ckpt is not None
            trained = Trained.load(self.ckpt, self.weights, self.device, self.precision)
            accelerator = trained.accelerator
            _, findings = todo.of_model(todo.judge(trained), trained, self.weights)
        accelerator.wait_for_everyone()
        accelerator.end_training()
        return findings.of(self.metrics[0])


if __name__ == "__main__":
    main()
