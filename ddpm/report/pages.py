"""``report.html``: the results of one run, or of several, as a single file."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ddpm import comparable
from ddpm.errors import ConfigError, did_you_mean, render, require
from ddpm.files import replacing
from ddpm.metrics.results import BoundCurve, Metric, Neighbour
from ddpm.nested import flat
from ddpm.report import figures
from ddpm.report.numbers import number
from ddpm.report.run_table import differing_keys, metric_columns, option_columns

# The part of a metric's provenance in which comparable values agree. The rest, such as the sampler,
# may be the subject of a comparison.
MEASURED = ("num_samples", "reference", "extractor", "resize", "bound_steps")
_QUARTERS = tuple(f"_q{quarter}" for quarter in range(4))  # of t: their mean represents them
# Control characters and surrogates (of file names that cannot be decoded): invalid in HTML.
_INVALID = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Report:
    """Content of the page of one run; parts that are empty or None are left out.

    Attributes:
        title: of the page.
        run: name of the run.
        step: of the checkpoint.
        metrics: in the order of the table.
        warnings: sentences.
        config: nested.
        provenance: nested; of the report as a whole.
        samples: a grid.
        seed: of the samples; with equal seeds, samples of several runs are comparable one by one.
        neighbours: samples beside the nearest images.
        near: name of the images among which these were found.
        loss: (step, loss), oldest first.
        curves: further curves by name: (step, value).
        bound: the variational bound over t.
        trajectory: frames from noise to data.
    """

    title: str
    run: str
    step: int | None = None
    metrics: Sequence[Metric] = ()
    warnings: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    samples: Image.Image | None = None
    seed: int | None = None
    neighbours: Sequence[Neighbour] | None = None
    near: str = "the training data"
    loss: figures.Points = ()
    curves: Mapping[str, figures.Points] = field(default_factory=dict)
    bound: BoundCurve | None = None
    trajectory: Sequence[Image.Image] | None = None


def write_report(path: Path, report: Report) -> None:
    """Write the page of one run; the same report gives the same bytes.

    Raises:
        ConfigError: ``path`` cannot be written.
    """
    _write(path, report.title, [_run(report, "run")])


def write_comparison(
    path: Path,
    reports: Sequence[Report],
    *,
    title: str = "Comparison",
    sort_by: str | None = None,
) -> list[Report]:
    """Write the page of several runs: a table, best first, the samples side by side, and each run.

    Args:
        path: of the page.
        reports: at least one.
        title: of the page.
        sort_by: name of a metric, the first one by default. Runs without it are at the end.

    Returns:
        The reports, best first.

    Raises:
        ConfigError: ``reports`` is empty, no run has the metric, or ``path`` cannot be written.
    """
    require(len(reports) > 0, "runs", list(reports), "names no run; name one or more")
    columns = {column.name: column for column in metric_columns([r.metrics for r in reports])}
    if sort_by is not None and sort_by not in columns:
        problem = f"is not a metric of these runs{did_you_mean(sort_by, columns)}"
        raise ConfigError("sort_by", sort_by, problem)
    sort_by = next(iter(columns), None) if sort_by is None else sort_by
    ranked = list(reports)
    if sort_by is not None:
        ranked.sort(key=_rank(sort_by, columns[sort_by].higher_is_better))
    by_name = {column.name: column for column in metric_columns([r.metrics for r in ranked])}
    comparison = {
        "warnings": comparability_warnings(ranked),
        "metrics": [by_name[name] for name in columns],  # in the order in which reports came
        "options": option_columns([flat(report.config) for report in ranked], missing="–"),
        "sort_by": sort_by,
        "seeds": [report.seed for report in ranked if report.samples is not None],
    }
    runs = [_run(report, f"run-{place}") for place, report in enumerate(ranked, 1)]
    _write(path, title, runs, comparison)
    return ranked


def _rank(name: str, higher_is_better: bool) -> Callable[[Report], tuple[bool, float]]:
    """Return a key that sorts reports by a metric, best first, those without finite value last."""

    def key(report: Report) -> tuple[bool, float]:
        value = next((m.value for m in report.metrics if m.name == name), math.nan)
        if not math.isfinite(value):
            return True, 0.0
        return False, -value if higher_is_better else value

    return key


def comparability_warnings(reports: Sequence[Report]) -> list[str]:
    """Return a sentence per reason why metrics or losses of several runs are not comparable."""
    provenances: dict[str, list[dict[str, Any]]] = {}
    kinds: dict[str, set[str]] = {}
    for metric in (metric for report in reports for metric in report.metrics):
        measured = {key: v for key, v in metric.provenance.items() if key in MEASURED}
        provenances.setdefault(metric.name, []).append(flat(measured))
        kind = str(metric.provenance.get("metric", metric.name)).removeprefix("val_")
        if not kind.endswith(_QUARTERS):
            kinds.setdefault(kind, set()).add(metric.name)
    names_by_keys: dict[str, list[str]] = {}
    for name in provenances:
        keys = [key for key in differing_keys(provenances[name]) if not key.endswith(".path")]
        if keys:
            names_by_keys.setdefault(", ".join(keys), []).append(name)
    result = [
        f"Not comparable: {', '.join(names)}. The runs differ in {keys}."
        for keys, names in names_by_keys.items()
    ]
    mixed = [sorted(names) for names in kinds.values() if len(names) > 1]
    result += [f"Not comparable with one another: {', '.join(names)}." for names in mixed]
    if "loss" in kinds or any(len(report.loss) for report in reports):
        losses = comparable.warning([report.config for report in reports], "runs")
        result += [] if losses is None else [losses]
    return result


def _run(report: Report, prefix: str) -> dict[str, Any]:
    """Return the variables of the template for one run; ``prefix`` makes ids unique."""
    neighbours = sorted(report.neighbours or (), key=lambda pair: pair.distance)
    bound = report.bound if report.bound is not None and len(report.bound.steps) else None
    return {
        "report": report,
        "neighbours": neighbours,
        "median": statistics.median(n.distance for n in neighbours) if neighbours else None,
        "curves": _curves(report, prefix),
        "has_bound": bound is not None,
        "bound_total": None if bound is None else math.fsum(bound.terms),
        "bound_svg": "" if bound is None else _bound_svg(bound, prefix),
    }


def _curves(report: Report, prefix: str) -> list[dict[str, Any]]:
    """Return the curves over the optimizer steps that have a finite point."""
    curves = []
    for place, (name, points) in enumerate({"loss": report.loss, **report.curves}.items()):
        shown, note = figures.downsample(points)
        if not shown:
            continue
        values = [y for _, y in shown]
        svg = figures.curve(
            shown,
            prefix=f"{prefix}-c{place}",
            label=f"{name} over the optimizer steps",
            x_label="optimizer step",
            log=min(values) > 0 and max(values) > 4 * min(values),
        )
        step, last = points[-1]
        curves.append({"name": name, "svg": svg, "step": step, "last": float(last), "note": note})
    return curves


def _bound_svg(bound: BoundCurve, prefix: str) -> str:
    points = zip(bound.steps, bound.terms, bound.errors, strict=True)
    finite = [(t, y, e) for t, y, e in points if math.isfinite(y) and math.isfinite(e)]
    if not finite:
        return ""
    return figures.curve(
        [(t, y) for t, y, _ in finite],
        [e for _, _, e in finite],
        prefix=f"{prefix}-b",
        label="bits per dimension over t",
        x_label="t",
        log=True,
    )


def _summary(provenance: Mapping[str, Any]) -> str:
    """Return the main facts of a metric's provenance, as the title of the folded rest."""
    facts = flat(provenance)
    samples, extractor = facts.get("num_samples"), facts.get("extractor.name")
    words = [] if samples is None else [f"{samples:,} samples"]
    words += [] if extractor is None else [f"features: {extractor}"]
    return "; ".join(words) or "provenance"


def _facts(metric: Metric) -> dict[str, Any]:
    """Return all digits of a metric, and its provenance."""
    error = {} if metric.error is None else {"error": metric.error}
    return {"value": metric.value, **error, **metric.provenance}


def _write(
    path: Path,
    title: str,
    runs: Sequence[Mapping[str, Any]],
    comparison: Mapping[str, Any] | None = None,
) -> None:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "config_value": render,
        "data_url": figures.data_url,
        "facts": _facts,
        "flat": flat,
        "is_small": figures.is_small,
        "number": number,
        "summary": _summary,
        "thousands": "{:,}".format,
    }
    template = environment.get_template("report.html.j2")
    text = template.render(title=title, runs=runs, comparison=comparison).lstrip()
    with replacing(path) as aside:
        aside.write_text(_INVALID.sub("\ufffd", text), encoding="utf-8")
