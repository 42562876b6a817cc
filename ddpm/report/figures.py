"""Figures inside a page: images as data URLs, curves as SVG."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from markupsafe import Markup, escape
from PIL import Image

Points = Sequence[tuple[float, float]]

MAX_POINTS = 500  # of a curve; of more, neighbours are averaged
_SMALL = 64  # pixels; the pixels of smaller images are shown as squares
# Drawn in these colours, which the page's own replace: those follow light and dark.
_INK = {"#010101": "var(--muted)", "#020202": "var(--rule)", "#030303": "var(--accent)"}
_MUTED, _RULE, _ACCENT = _INK


def is_small(image: Image.Image) -> bool:
    """Return True if the pixels of an image should be shown as squares."""
    return max(image.size) <= _SMALL


def data_url(image: Image.Image) -> str:
    """Return an image of any mode as a PNG in a ``data:`` URL."""
    shown = image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else image.convert("RGB")
    file = io.BytesIO()
    shown.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def curve(
    points: Points,
    errors: Sequence[float] | None = None,
    *,
    prefix: str,
    label: str,
    x_label: str,
    log: bool = False,
) -> Markup:
    """Draw a line through points, with a band of one standard error, in the colours of the page.

    Args:
        points: (x, y), finite.
        errors: standard errors of y.
        prefix: of the ids in the SVG, which must be unique within the page.
        label: description for screen readers.
        x_label: name of the x axis.
        log: use a logarithmic y axis if all y are positive.

    Returns:
        An ``<svg>`` element.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    x, y = zip(*points, strict=True)
    with rc_context({"svg.hashsalt": "ddpm", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(4.6, 2.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(x, y, color=_ACCENT, lw=1.3, marker="o" if len(x) == 1 else None, ms=4)
        if errors is not None:
            low, high = zip(*((b - e, b + e) for b, e in zip(y, errors, strict=True)), strict=True)
            axes.fill_between(x, low, high, color=_ACCENT, alpha=0.25, lw=0)
        if log and min(y) > 0:
            _set_log_scale(axes, min(y), max(y))
        _style(axes, x_label)
        file = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    return _inline(file.getvalue(), prefix, label)


def _style(axes: Any, x_label: str) -> None:
    axes.set_xlabel(x_label, color=_MUTED)
    axes.tick_params(which="both", colors=_MUTED, width=0.6)
    axes.grid(color=_RULE, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set(color=_RULE)


def _set_log_scale(axes: Any, low: float, high: float) -> None:
    axes.set_yscale("log")
    axes.set_ylim(low / 1.15, high * 1.15)
    axes.yaxis.set_major_formatter("{x:g}")  # 0.1 instead of a power of ten
    axes.yaxis.set_minor_formatter("{x:g}" if high < 10 * low else "")


def _inline(svg: str, prefix: str, label: str) -> Markup:
    """Return an SVG file as an element of a page: without header and size, with unique ids."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    opening = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} role="img" '
    svg = re.sub(r"<svg[^>]*>", lambda _: f'{opening}aria-label="{escape(label)}">', svg, count=1)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for drawn, shown in _INK.items():
        svg = svg.replace(drawn, shown)
    return Markup(svg)


def downsample(points: Points) -> tuple[list[tuple[float, float]], str]:
    """Return at most ``MAX_POINTS`` finite points, and a note on what was changed.

    Of more points, each group of neighbours is replaced by its mean. The note is empty if nothing
    was changed.
    """
    finite = [(float(x), float(y)) for x, y in points if math.isfinite(y)]
    dropped = len(points) - len(finite)
    notes = [f"{dropped:,} not finite, left out"] if dropped else []
    width = math.ceil(len(finite) / MAX_POINTS)
    if width > 1:
        groups = [finite[n : n + width] for n in range(0, len(finite), width)]
        finite = [(fmean(x for x, _ in g), fmean(y for _, y in g)) for g in groups]
        notes.append(f"each point the mean of {width}")
    return finite, "; ".join(notes)
