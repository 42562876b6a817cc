"""What was measured: numbers, each with all that it depends on, and pictures beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ddpm import __version__, metrics
from ddpm.evaluation.options import answers
from ddpm.files import replacing
from ddpm.metrics.results import BoundCurve, Metric, Neighbour
from ddpm.report.pages import Report
from ddpm.training.checkpoint import EVALUATION, read_json

FILE = EVALUATION  # the same name in a folder of ddpm-evaluate
_UPWARDS = ("isc", "precision", "recall", "f_score")  # more is better


@dataclass
class Findings:
    """What was measured.

    Attributes:
        metrics: in the order in which they were taken.
        warnings: a line each.
        samples: a grid.
        nearest: samples beside what is nearest to them in the reference.
        trajectory: pictures from noise to data.
        bound: of bpd, its terms over t.
    """

    metrics: list[Metric] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    samples: Image.Image | None = None
    nearest: list[Neighbour] | None = None
    trajectory: list[Image.Image] | None = None
    bound: BoundCurve | None = None

    def add(
        self,
        metric: str,
        value: float,
        error: float | None,
        told: Mapping[str, Any],
        *,
        num_samples: int | None = None,
        suffix: str | None = None,
    ) -> None:
        """Take one number.

        Args:
            metric: what it is; its name has the number of samples behind it, if there is one.
            value: of it.
            error: one standard error, or None.
            told: what it depends on.
            num_samples: that were judged.
            suffix: of the name, where it is no number of samples.
        """
        name = metric if num_samples is None else metrics.name_of(metric, num_samples)
        name = name if suffix is None else f"{name}_{suffix}"
        upwards = metric in _UPWARDS
        self.metrics.append(Metric(name, value, error, {"metric": metric, **told}, upwards))

    def warn(self, *lines: str) -> None:
        """Take warnings, each once."""
        self.warnings = list(dict.fromkeys([*self.warnings, *lines]))

    @property
    def numbers(self) -> dict[str, float]:
        """The values by name."""
        return {metric.name: metric.value for metric in self.metrics}

    def of(self, asked: str) -> float:
        """The number of a metric that was asked for."""
        return next(m.value for m in self.metrics if answers(m.provenance["metric"], asked))

    def reported(self, report: Report, seed: int, folder: Path) -> Report:
        """A report with these findings in it."""
        return replace(
            report,
            metrics=self.metrics,
            warnings=self.warnings,
            provenance={"made by": f"ddpm {__version__}", "evaluation": str(folder)},
            samples=self.samples,
            seed=seed,
            neighbours=self.nearest,
            bound=self.bound,
            trajectory=self.trajectory,
        )

    def write(self, folder: Path, **beside: Any) -> None:
        """Write ``evaluation.json`` into a folder, with what else is to stand in it."""
        rows = [
            {
                **metric.provenance,
                "name": metric.name,
                "value": metric.value if math.isfinite(metric.value) else None,
                "error": metric.error,
                "higher_is_better": metric.higher_is_better,
            }
            for metric in self.metrics
        ]
        content = {"metrics": rows, "warnings": self.warnings, **beside}
        with replacing(folder / FILE, durable=True) as aside:
            aside.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")


def read(folder: Path) -> tuple[list[Metric], list[str], dict[str, Any]]:
    """Metrics, warnings and the whole content of an ``evaluation.json``.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError: there is none, or
            it is damaged.
    """
    content = read_json(folder / FILE)
    metrics = []
    for row in content["metrics"]:
        told = dict(row)
        name, value, error = (told.pop(key) for key in ("name", "value", "error"))
        higher = bool(told.pop("higher_is_better"))
        value = math.nan if value is None else float(value)
        error = None if error is None else float(error)
        metrics.append(
            Metric(str(name), value, error, {**told, "metric": str(told["metric"])}, higher)
        )
    return metrics, [str(line) for line in content["warnings"]], content
