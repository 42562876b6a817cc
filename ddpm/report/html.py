"""What the pages of a report are made of: text, numbers, tables, pictures, curves, the frame."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from ddpm.errors import render
from ddpm.nested import flat

SMALL = 64  # pixels; below, a picture's pixels are shown as squares
POINTS = 500  # of a curve; more are averaged
# What no text may hold: control characters, and the halves of pairs that undecodable names have.
_UNSHOWABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
# Drawn in these, then replaced by the page's own colours, which follow light and dark.
_INK = {"#010101": "var(--muted)", "#020202": "var(--rule)", "#030303": "var(--accent)"}
_MUTED, _RULE, _ACCENT = _INK
STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfb; --ink: #1d1d1b; --muted: #62625d;
  --rule: #d9d9d2; --accent: #1f5b99; --tint: #f3f2ec; --caution: #8a4b00 }
@media (prefers-color-scheme: dark) { :root { --paper: #161719; --ink: #e4e3de; --muted: #a09f98;
  --rule: #3a3b3e; --accent: #8ab8ee; --tint: #1f2124; --caution: #e9b26a } }
* { box-sizing: border-box }
html { background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100% }
body { max-width: 54rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; line-height: 1.5;
  font: 1.0625rem/1.5 Charter, "Bitstream Charter", "Sitka Text", Cambria, Georgia, serif }
body.wide { max-width: 72rem }
h1 { font-size: 1.75rem; font-weight: 600; line-height: 1.2; margin: 0 0 .35rem }
h2 { font-size: 1.2rem; font-weight: 600; margin: 2.75rem 0 .6rem; padding-top: .6rem;
  border-top: 1px solid var(--rule) }
h3 { font-size: 1.05rem; font-weight: 600; margin: 1.75rem 0 .4rem }
h1, h2, h3, p, summary, figcaption, td, th { overflow-wrap: anywhere }
p { margin: .4rem 0; max-width: 44rem }
a { color: var(--accent); text-underline-offset: .15em }
.of, .note, figcaption, caption, summary { color: var(--muted); font-size: .9rem }
.caution { border-left: 3px solid var(--caution); padding: .1rem 0 .1rem .9rem; margin: 1.25rem 0 }
.caution p { color: var(--caution) }
.scrolled { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums lining-nums }
caption { text-align: left; padding-bottom: .4rem }
th, td { text-align: left; vertical-align: top; padding: .3rem 1.1rem .3rem 0 }
thead th { font-weight: 600; border-bottom: 1px solid var(--ink); vertical-align: bottom }
tbody th { font-weight: normal }
tbody tr { border-bottom: 1px solid var(--rule) }
.comparison { font-size: .875rem }
.comparison th, .comparison td { overflow-wrap: normal; white-space: nowrap; padding-right: .85rem }
.comparison td.option, .comparison tbody th { white-space: normal; overflow-wrap: break-word;
  max-width: 13rem }
td.number, th.number { text-align: right; white-space: nowrap }
.metrics { min-width: min(100%, 32rem) }
.metrics th { overflow-wrap: break-word }
.metrics tr.how > td { padding-top: 0 }
.metrics tbody tr:not(.how) { border-bottom: 0 }
.se { color: var(--muted) }
.facts { font-size: .85rem; width: 100% }
.facts th { color: var(--muted); width: 38% }
.facts td, .facts th { padding: .15rem .8rem .15rem 0;
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace }
details > summary { cursor: pointer; padding: .15rem 0 }
img { max-width: 100%; height: auto; display: block; background: var(--tint) }
img.small { image-rendering: pixelated }
figure { margin: 1rem 0 }
figcaption { margin-top: .35rem }
.tiles { display: flex; flex-wrap: wrap; gap: .9rem }
.tiles figure { margin: 0 }
.tiles img.small { width: 4rem }
.tiles img { max-width: 8rem }
.tiles .pair { display: flex; gap: 2px }
.beside { display: grid; gap: 1.25rem 1.75rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)) }
.beside figure { margin: 0; min-width: 0 }
.beside figure > img { width: 100% }
.beside h3 { margin-top: .4rem }
svg { display: block; width: 100%; height: auto; max-width: 32rem }
svg * { stroke-linejoin: round; stroke-linecap: butt }
svg text { font-family: system-ui, "DejaVu Sans", sans-serif !important }
@media (max-width: 34rem) { body { padding: 1.25rem 1rem 3rem; font-size: 1rem }
  h1 { font-size: 1.45rem } .tiles { gap: .6rem } }
@media print { body { max-width: none; padding: 0 } figure, tr { break-inside: avoid } }
"""
# Nothing is fetched and nothing runs, whatever a name in the page may hold.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, parts: Iterable[str], *, wide: bool = False) -> str:
    """A whole HTML document of ``parts``, which are HTML; ``title`` is text."""
    said = escaped(title)
    body = "\n".join(part for part in parts if part)
    shape = "wide" if wide else "narrow"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<title>{said}</title>\n<link rel="icon" href="data:,">\n<style>{STYLE}</style>\n'
        f'</head>\n<body class="{shape}">\n'
        f"<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def escaped(value: object) -> str:
    """A value as HTML text, or as an attribute in quotes; what cannot be shown is replaced."""
    return html.escape(_UNSHOWABLE.sub("\ufffd", str(value)), quote=True)


def number(value: float, error: float | None = None) -> str:
    """A number with its standard error as HTML: ``3.17 ± 0.12``.

    The error has two digits and the value ends where the error does; alone it has four digits.
    Very small and very large ones are written with a power of ten.
    """
    if error is None or not math.isfinite(value):
        return _alone(value)
    if not math.isfinite(error) or error <= 0:
        return f"{_alone(value)}{_error(_alone(error))}"
    decimals = 1 - _exponent(error, 1)
    if decimals <= 6 and abs(value) < 1e7:
        places = max(0, decimals)
        return f"{_fixed(value, places)}{_error(_fixed(error, places))}"
    power = _exponent(max(abs(value), error), 3)
    places = max(0, decimals + power)
    scale = 10.0**power
    inside = f"{_fixed(value / scale, places)}{_error(_fixed(error / scale, places))}"
    return f"({inside}) × 10<sup>{_signed(power)}</sup>"


def _alone(value: float) -> str:
    if not math.isfinite(value):
        return _signed(value)
    if isinstance(value, int) or value == 0:
        return _fixed(value, 0)
    power = _exponent(value, 3)
    if -5 < power < 7:
        return _fixed(value, max(0, 3 - power))
    return f"{_fixed(value / 10.0**power, 3)} × 10<sup>{_signed(power)}</sup>"


def _exponent(value: float, digits: int) -> int:
    """Of ten, once the value is rounded to one digit and as many more as ``digits``."""
    return int(f"{value:.{digits}e}".partition("e")[2])


def _fixed(value: float, places: int) -> str:
    return _signed(f"{value:,.{places}f}")


def _signed(value: object) -> str:
    return str(value).replace("-", "\u2212")


def _error(text: str) -> str:
    return f' <span class="se">± {text}</span>'


def facts(mapping: Mapping[str, Any]) -> str:
    """A nested mapping as a table, a dotted key and its value a row."""
    rows = "\n".join(
        f'<tr><th scope="row">{escaped(key).replace(".", ".<wbr>")}</th>'
        f"<td>{escaped(render(value))}</td></tr>"
        for key, value in flat(mapping).items()
    )
    return f'<table class="facts"><tbody>\n{rows}\n</tbody></table>'


def folded(summary: str, inside: str) -> str:
    """HTML that opens at a click; ``summary`` is text."""
    return f"<details><summary>{escaped(summary)}</summary>\n{inside}\n</details>"


def picture(image: Image.Image, said: str) -> str:
    """An image of any mode as a PNG inside the page; ``said`` is read out to who cannot see it."""
    shown = image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else image.convert("RGB")
    file = io.BytesIO()
    shown.save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    small = ' class="small"' if max(image.size) <= SMALL else ""
    width, height = image.size
    return (
        f'<img{small} src="data:image/png;base64,{data}" width="{width}" height="{height}" '
        f'alt="{escaped(said)}">'
    )


def curve(
    prefix: str,
    points: Sequence[tuple[float, float]],
    errors: Sequence[float] | None = None,
    *,
    said: str,
    across: str,
    log: bool = False,
) -> str:
    """Points as a line in an SVG, with a band of one standard error: colours follow the page's.

    Args:
        prefix: of the names inside, which must differ from those of other pictures on the page.
        points: (x, y), finite.
        errors: of y.
        said: read out to who cannot see it.
        across: what x is.
        log: a logarithmic axis, where all y are positive.
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
            _logarithmic(axes, min(y), max(y))
        _quiet(axes, across)
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return _inlined(file.getvalue(), prefix, said)


def _quiet(axes: Any, across: str) -> None:
    axes.set_xlabel(across, color=_MUTED)
    axes.tick_params(which="both", colors=_MUTED, width=0.6)
    axes.grid(color=_RULE, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set(color=_RULE)


def _logarithmic(axes: Any, low: float, high: float) -> None:
    axes.set_yscale("log")
    axes.set_ylim(low / 1.15, high * 1.15)
    axes.yaxis.set_major_formatter("{x:g}")  # 0.1, not ten to the -1
    axes.yaxis.set_minor_formatter("{x:g}" if high < 10 * low else "")


def _inlined(svg: str, prefix: str, said: str) -> str:
    """An SVG file as a part of a page: without its header, its sizes and names of its own."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    opening = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} role="img" '
    svg = re.sub(r"<svg[^>]*>", lambda _: f'{opening}aria-label="{escaped(said)}">', svg, count=1)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for drawn, shown in _INK.items():
        svg = svg.replace(drawn, shown)
    return svg


def thinned(points: Sequence[tuple[float, float]]) -> tuple[list[tuple[float, float]], str]:
    """At most ``POINTS`` finite points, the means of neighbours; and what was done, in words."""
    kept = [(float(x), float(y)) for x, y in points if math.isfinite(y)]
    lost = len(points) - len(kept)
    words = [f"{lost:,} not finite, left out"] if lost else []
    width = math.ceil(len(kept) / POINTS)
    if width > 1:
        parts = [kept[n : n + width] for n in range(0, len(kept), width)]
        kept = [(_mean(x for x, _ in part), _mean(y for _, y in part)) for part in parts]
        words.append(f"each point the mean of {width}")
    return kept, "; ".join(words)


def _mean(values: Iterable[float]) -> float:
    every = list(values)
    return math.fsum(every) / len(every)
