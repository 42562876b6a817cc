"""``report.html``: what was measured of a run, or of several, in one file that needs no other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ddpm import comparable
from ddpm.errors import ConfigError, did_you_mean, render, require
from ddpm.files import replacing
from ddpm.metrics.results import Metric
from ddpm.nested import flat
from ddpm.report.html import escaped, number, page, picture
from ddpm.report.parts import (
    SIGNS,
    Report,
    arrow,
    at_step,
    counted,
    figure,
    heading,
    lines,
    sections,
    warned,
)

# How a number was measured: where these differ, two numbers cannot be compared. What else its
# provenance tells, such as the sampler, is what a comparison may be about.
MEASURED = ("num_samples", "reference", "extractor", "resize", "bound_steps")
_QUARTERS = tuple(f"_q{quarter}" for quarter in range(4))  # of t: their mean stands for them
_MISSING = object()


def write_report(path: Path, report: Report) -> None:
    """Write the page of one run; the same report gives the same bytes.

    Raises:
        ConfigError: ``path`` cannot be written.
    """
    top = heading("h1", report.title, report.run, *at_step(report))
    parts = [top, *sections(report, "run", "h2")]
    _write(path, page(report.title, parts))


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
        title: what the page is called.
        sort_by: name of a metric; default the first one. Runs without it come last.

    Returns:
        The reports, best first.

    Raises:
        ConfigError: there is no run, or none has the metric, or ``path`` cannot be written.
    """
    require(len(reports) > 0, "runs", list(reports), "names no run; name one or more")
    metrics = {m.name: m for report in reports for m in reversed(report.metrics)}
    names = list(dict.fromkeys(m.name for report in reports for m in report.metrics))
    if sort_by is not None and sort_by not in names:
        problem = f"is no metric of these runs{did_you_mean(sort_by, names)}"
        raise ConfigError("sort_by", sort_by, problem)
    chosen = sort_by if sort_by is not None else next(iter(names), None)
    ranked = list(reports) if chosen is None else sorted(reports, key=_order(metrics[chosen]))
    parts = [
        heading("h1", title, counted(len(ranked), "run")),
        warned(incomparable(ranked)),
        _table(ranked, [metrics[name] for name in names], chosen),
        _side_by_side(ranked),
    ]
    for place, report in enumerate(ranked, 1):
        top = heading("h2", report.run, report.title, *at_step(report))
        parts.append(f'<section id="run-{place}">\n{top}')
        parts += [*sections(report, f"run-{place}", "h3"), "</section>"]
    _write(path, page(title, parts, wide=True))
    return ranked


def _write(path: Path, text: str) -> None:
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def _order(metric: Metric) -> Callable[[Report], tuple[bool, float]]:
    """A key to sort reports by: the best first, those without a finite value last."""

    def key(report: Report) -> tuple[bool, float]:
        found = _found(report, metric.name)
        if found is None or not math.isfinite(found.value):
            return True, 0.0
        return False, -found.value if metric.higher_is_better else found.value

    return key


def _found(report: Report, name: str) -> Metric | None:
    return next((metric for metric in report.metrics if metric.name == name), None)


def incomparable(reports: Sequence[Report]) -> list[str]:
    """What to know before metrics are compared: which were not measured the same way."""
    names = list(dict.fromkeys(m.name for report in reports for m in report.metrics))
    blamed: dict[str, list[str]] = {}
    kinds: dict[str, set[str]] = {}
    for metric in (m for report in reports for m in report.metrics):
        kind = str(metric.provenance.get("metric", metric.name)).removeprefix("val_")
        if not kind.endswith(_QUARTERS):
            kinds.setdefault(kind, set()).add(metric.name)
    for name in names:
        found = [one for report in reports if (one := _found(report, name)) is not None]
        told = [flat({k: v for k, v in one.provenance.items() if k in MEASURED}) for one in found]
        differ = [key for key in _differing(told) if not key.endswith(".path")]
        if differ:
            blamed.setdefault(", ".join(differ), []).append(name)
    others = [sorted(each) for each in kinds.values() if len(each) > 1]
    losses = None
    if "loss" in kinds or any(len(report.loss) for report in reports):
        losses = comparable.warning([report.config for report in reports], "runs")
    return [
        f"Not comparable: {', '.join(metrics)}. The runs differ in {keys}."
        for keys, metrics in blamed.items()
    ] + [
        *(f"Not comparable with one another: {', '.join(each)}." for each in others),
        *([] if losses is None else [losses]),
    ]


def _differing(mappings: Sequence[dict[str, Any]]) -> list[str]:
    """The keys that not all have with one value, in the order of appearance."""
    keys = dict.fromkeys(key for mapping in mappings for key in mapping)
    every = {key: [mapping.get(key, _MISSING) for mapping in mappings] for key in keys}
    return [key for key, values in every.items() if any(v != values[0] for v in values)]


def _table(ranked: Sequence[Report], metrics: Sequence[Metric], chosen: str | None) -> str:
    configs = [flat(report.config) for report in ranked]
    options = _differing(configs)
    head = [
        '<th scope="col">run</th>',
        *(_column(metric, chosen) for metric in metrics),
        '<th scope="col" class="number">step</th>',
        *(f'<th scope="col">{escaped(name)}</th>' for name in options),
    ]
    rows = []
    for place, (report, config) in enumerate(zip(ranked, configs, strict=True), 1):
        found = [_found(report, metric.name) for metric in metrics]
        cells = [
            f'<th scope="row"><a href="#run-{place}">{escaped(report.run)}</a></th>',
            *(_number("–" if one is None else number(one.value, one.error)) for one in found),
            _number("–" if report.step is None else f"{report.step:,}"),
            *(_option(config.get(key, _MISSING)) for key in options),
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    same = "" if options else " The runs' options do not differ."
    by = "" if chosen is None else f"Sorted by {escaped(chosen)}, best first. "
    said = f"{by}{SIGNS}{same}"
    return (
        f'<p class="note">{said}</p>\n'
        '<div class="scrolled" tabindex="0"><table class="comparison">\n'
        f"<thead><tr>{''.join(head)}</tr></thead>\n<tbody>\n{lines(rows)}\n</tbody></table></div>"
    )


def _column(metric: Metric, chosen: str | None) -> str:
    order = "descending" if metric.higher_is_better else "ascending"
    sort = f' aria-sort="{order}"' if metric.name == chosen else ""
    inside = f"{escaped(metric.name)} {arrow(metric.higher_is_better)}"
    return f'<th scope="col" class="number"{sort}>{inside}</th>'


def _option(value: Any) -> str:
    return f'<td class="option">{escaped("–" if value is _MISSING else render(value))}</td>'


def _number(inside: str) -> str:
    return f'<td class="number">{inside}</td>'


def _side_by_side(ranked: Sequence[Report]) -> str:
    """The samples of all runs, and whether they are of one seed."""
    found = [(n, one, one.samples) for n, one in enumerate(ranked, 1)]
    shown = [(n, one, image) for n, one, image in found if image is not None]
    if len(shown) < 2:
        return ""
    seeds = {one.seed for _, one, _ in shown}
    figures = [
        figure(
            picture(image, f"samples of {one.run}"),
            f'<a href="#run-{n}">{escaped(one.run)}</a>'
            + ("" if one.seed is None or len(seeds) == 1 else f", seed {one.seed}"),
        )
        for n, one, image in shown
    ]
    alike = len(seeds) == 1 and None not in seeds
    said = (
        f"All of seed {shown[0][1].seed}: of runs on one kind of data, pictures at one place "
        "began with the same noise."
        if alike
        else "Not all of one seed: they cannot be compared picture by picture."
    )
    return (
        f'<h2>Samples side by side</h2>\n<p class="note">{said}</p>\n'
        f'<div class="beside">\n{lines(figures)}\n</div>'
    )
