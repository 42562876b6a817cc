"""Results of an evaluation: numbers with their provenance, and figures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ddpm import metrics
from ddpm.evaluation.options import matches_metric
from ddpm.files import replacing
from ddpm.metrics.results import BoundCurve, Metric, Neighbour
from ddpm.report.pages import Report
from ddpm.training.checkpoint import EVALUATION, read_json

FILE = EVALUATION  # the same name in a checkpoint and in a folder of ddpm-evaluate
_HIGHER_IS_BETTER = ("isc", "precision", "recall", "f_score")


@dataclass
class EvaluationResult:
    """Numbers with their provenance, and the figures beside them.

    Attributes:
        metrics: in the order in which they were computed.
        warnings: one line per warning.
        samples: a grid of samples; None without metrics of samples.
        nearest: samples beside the nearest images of the reference.
        trajectory: grids of samples from noise to data.
        bound: the terms of the variational bound over t; None without ``bpd``.
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
        provenance: Mapping[str, Any],
        *,
        num_samples: int | None = None,
        suffix: str | None = None,
    ) -> None:
        """Append a number.

        Args:
            metric: its kind, such as ``fid`` or ``val_loss``.
            value: of the metric.
            error: one standard error, or None.
            provenance: everything that the number depends on.
            num_samples: the number of samples, which becomes part of the name; None for a metric
                that is not computed from samples.
            suffix: another suffix of the name.
        """
        name = metric if num_samples is None else metrics.metric_name(metric, num_samples)
        name = name if suffix is None else f"{name}_{suffix}"
        higher = metric in _HIGHER_IS_BETTER
        self.metrics.append(Metric(name, value, error, {"metric": metric, **provenance}, higher))

    def warn(self, *lines: str) -> None:
        """Append warnings, each once."""
        self.warnings = list(dict.fromkeys([*self.warnings, *lines]))

    @property
    def numbers(self) -> dict[str, float]:
        """The values by name, such as ``fid_5k``."""
        return {metric.name: metric.value for metric in self.metrics}

    @property
    def provenance(self) -> dict[str, Mapping[str, Any]]:
        """Everything that each number depends on, by name."""
        return {metric.name: metric.provenance for metric in self.metrics}

    def value(self, requested: str) -> float:
        """Return the main number of a requested metric, such as ``fid``."""
        matching = (m for m in self.metrics if matches_metric(m.provenance["metric"], requested))
        return next(matching).value

    def to_report(self, report: Report, seed: int) -> Report:
        """Return a copy of a report with these results.

        Args:
            report: with title, run, config and provenance.
            seed: of the samples.
        """
        return replace(
            report,
            metrics=self.metrics,
            warnings=self.warnings,
            samples=self.samples,
            seed=seed,
            neighbours=self.nearest,
            bound=self.bound,
            trajectory=self.trajectory,
        )

    def write(self, folder: Path, **entries: Any) -> None:
        """Write ``evaluation.json`` into a folder.

        Args:
            folder: must exist.
            entries: further top-level entries of the file.

        Raises:
            ConfigError: the file cannot be written.
        """
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
        content = {"metrics": rows, "warnings": self.warnings, **entries}
        with replacing(folder / FILE, durable=True) as aside:
            aside.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")


def read(folder: Path) -> tuple[list[Metric], list[str], dict[str, Any]]:
    """Return the metrics, the warnings and the whole content of an ``evaluation.json``.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError: the file is
            missing or damaged.
    """
    content = read_json(folder / FILE)
    metrics = []
    for row in content["metrics"]:
        provenance = dict(row)
        name, value, error = (provenance.pop(key) for key in ("name", "value", "error"))
        higher = bool(provenance.pop("higher_is_better"))
        value = math.nan if value is None else float(value)
        error = None if error is None else float(error)
        provenance["metric"] = str(provenance["metric"])
        metrics.append(Metric(str(name), value, error, provenance, higher))
    return metrics, [str(line) for line in content["warnings"]], content
