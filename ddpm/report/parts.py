"""What a report tells of one run, and each part of its page as HTML."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ddpm.metrics.results import BoundCurve, Metric, Neighbour
from ddpm.nested import flat
from ddpm.report.html import curve, escaped, facts, folded, number, picture, thinned

SIGNS = (
    "↓ lower is better, ↑ higher is better; ± is one standard error, of kid and isc the spread "
    "over subsets."
)
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Report:
    """All that a page tells of one run.

    Attributes:
        title: what the page is called.
        run: name of the run's folder.
        step: of the checkpoint; None where there is none.
        metrics: in the order of the table.
        warnings: sentences.
        config: nested.
        provenance: nested; of the report as a whole.
        samples: a grid.
        seed: the samples'; of equal seeds they are compared side by side.
        neighbours: samples beside the nearest images; shown with the nearest first.
        near: what these are of.
        loss: (step, loss), oldest first.
        curves: further ones by name: (step, value).
        bound: bits per dimension over t.
        trajectory: from noise to data.
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
    loss: Points = ()
    curves: Mapping[str, Points] = field(default_factory=dict)
    bound: BoundCurve | None = None
    trajectory: Sequence[Image.Image] | None = None


def heading(level: str, title: str, *of: str) -> str:
    """A title of some level, and below it what it is of."""
    return f'<{level}>{escaped(title)}</{level}>\n<p class="of">{escaped(" · ".join(of))}</p>'


def at_step(report: Report) -> list[str]:
    """``step 12,000``, if there is one."""
    return [] if report.step is None else [f"step {report.step:,}"]


def sections(report: Report, prefix: str, level: str) -> list[str]:
    """The parts of a run's page; those of which nothing is known are left out."""
    inside = {
        "Metrics": _metrics(report.metrics),
        "Samples": _samples(report),
        f"Nearest neighbours in {escaped(report.near)}": _neighbours(report.neighbours),
        "Training": _curves(report, prefix),
        "Bits per dimension over t": _bound(report.bound, prefix),
        "Denoising": _trajectory(report.trajectory),
        "Config and provenance": _folded("Config", report.config)
        + _folded("Provenance", report.provenance),
    }
    told = [f"<{level}>{name}</{level}>\n{part}" for name, part in inside.items() if part]
    return [warned(report.warnings), *told]


def warned(warnings: Sequence[str]) -> str:
    """Sentences as a note that stands out; nothing where there are none."""
    told = [f"<p>{escaped(warning)}</p>" for warning in warnings]
    return f'<div class="caution" role="note">\n{lines(told)}\n</div>' if told else ""


def _metrics(metrics: Sequence[Metric]) -> str:
    if not metrics:
        return ""
    rows = []
    for name, value, error, provenance, higher in metrics:
        told = {"value": value} | ({} if error is None else {"error": error}) | dict(provenance)
        rows.append(
            f'<tr><th scope="row">{escaped(name)} {arrow(higher)}</th>'
            f'<td class="number">{number(value, error)}</td></tr>\n'
            f'<tr class="how"><td colspan="2">{folded(_gist(provenance), facts(told))}</td></tr>'
        )
    head = '<thead><tr><th scope="col">Metric</th><th scope="col" class="number">Value</th></tr>'
    return (
        '<div class="scrolled" tabindex="0"><table class="metrics">'
        f"<caption>{SIGNS}</caption>\n{head}</thead>\n"
        f"<tbody>\n{lines(rows)}\n</tbody></table></div>"
    )


def arrow(higher: bool) -> str:
    """Which way is better, as a sign after a metric's name."""
    word = "higher" if higher else "lower"
    return f'<span class="se" title="{word} is better">{"↑" if higher else "↓"}</span>'


def _gist(provenance: Mapping[str, Any]) -> str:
    """The most telling of a provenance, to be read before it is opened."""
    known = flat(provenance)
    samples, extractor = known.get("num_samples"), known.get("extractor.name")
    words = [] if samples is None else [f"{samples:,} samples"]
    words += [] if extractor is None else [f"features: {extractor}"]
    return "; ".join(words) or "provenance"


def _samples(report: Report) -> str:
    if report.samples is None:
        return ""
    seed = "" if report.seed is None else f"Seed {report.seed}."
    return figure(picture(report.samples, f"samples of {report.run}"), seed)


def _neighbours(neighbours: Sequence[Neighbour] | None) -> str:
    if not neighbours:
        return ""
    ranked = sorted(neighbours, key=lambda one: one[2])
    tiles = [
        figure(
            f'<div class="pair">{picture(sample, "sample")}{picture(near, "nearest image")}</div>',
            number(distance),
        )
        for sample, near, distance in ranked
    ]
    distances = [distance for _, _, distance in ranked]
    said = (
        "Left the sample, right the image nearest to it, below their distance; "
        f"closest first. Of {counted(len(ranked), 'sample')}: smallest {number(distances[0])}, "
        f"median {number(statistics.median(distances))}. At 0 their features are the same."
    )
    return f'<p class="note">{said}</p>\n<div class="tiles">\n{lines(tiles)}\n</div>'


def _curves(report: Report, prefix: str) -> str:
    every = {"loss": report.loss, **report.curves}
    drawn = []
    for place, (name, points) in enumerate(every.items()):
        kept, how = thinned(points)
        if not kept:
            continue
        values = [y for _, y in kept]
        log = min(values) > 0 and max(values) > 4 * min(values)
        last = f"last {number(float(points[-1][1]))} at step {points[-1][0]:,}"
        said = f"{name} over the optimizer steps"
        svg = curve(f"{prefix}-c{place}", kept, said=said, across="optimizer step", log=log)
        words = [escaped(name), last, *([how] if how else [])]
        drawn.append(figure(svg, "; ".join(words) + "."))
    return f'<div class="beside">\n{lines(drawn)}\n</div>' if drawn else ""


def _bound(bound: BoundCurve | None, prefix: str) -> str:
    if bound is None or not len(bound.steps):
        return ""
    steps, terms, errors, prior = bound
    told = zip(steps, terms, errors, strict=True)
    kept = [(t, y, e) for t, y, e in told if math.isfinite(y) and math.isfinite(e)]
    total = math.fsum(terms)
    said = (
        f"Terms of the variational bound, in bits per dimension, over {len(steps):,} steps t; "
        f"the band is one standard error. Their sum is {number(total)}, the prior's term "
        f"{number(prior)}, together {number(total + prior)}."
    )
    points, around = [(t, y) for t, y, _ in kept], [e for _, _, e in kept]
    words = "bits per dimension over t"
    svg = curve(f"{prefix}-b", points, around, said=words, across="t", log=True) if kept else ""
    return figure(svg, said)


def _trajectory(frames: Sequence[Image.Image] | None) -> str:
    if not frames:
        return ""
    shown = [picture(frame, f"frame {n} of {len(frames)}") for n, frame in enumerate(frames, 1)]
    return f'<p class="note">From noise to data.</p>\n<div class="tiles">\n{lines(shown)}\n</div>'


def _folded(name: str, mapping: Mapping[str, Any]) -> str:
    return folded(name, facts(mapping)) if mapping else ""


def figure(inside: str, caption: str) -> str:
    """A picture in HTML with its caption, HTML too, which may be empty."""
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure>{inside}{below}</figure>"


def lines(parts: Sequence[str]) -> str:
    """Parts of a page, a line each."""
    return "\n".join(parts)


def counted(count: int, noun: str) -> str:
    """``1 run``, ``2,000 runs``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
