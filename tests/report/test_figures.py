"""Numbers and curves as parts of a page."""

import math
import re

import numpy as np
import pytest

from ddpm.report.figures import curve, downsample
from ddpm.report.numbers import number


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (3.17214, None, "3.172"),
        (0.317214, None, "0.3172"),
        (9.99996, None, "10.00"),
        (12345.678, None, "12,346"),
        (5, None, "5"),
        (1797, None, "1,797"),
        (0.0, None, "0"),
        (-0.5, None, "−0.5000"),
        (0.000012345, None, "1.234 × 10<sup>−5</sup>"),
        (123456789.0, None, "1.235 × 10<sup>8</sup>"),
        (math.nan, None, "nan"),
        (-math.inf, 0.1, "−inf"),
        (9.4123, 0.0871, "9.412 ± 0.087"),
        (9.4123, 0.0996, "9.41 ± 0.10"),
        (9.4123, 1.26, "9.4 ± 1.3"),
        (1234.5, 23.4, "1,234 ± 23"),
        (12345.6, 234.0, "12,346 ± 234"),
        (0.0021345, 0.00018, "0.00213 ± 0.00018"),
        (3.2123e-6, 1.8e-7, "(3.21 ± 0.18) × 10<sup>−6</sup>"),
        (1.0, 0.0, "1.000 ± 0"),
        (1.0, math.nan, "1.000 ± nan"),
    ],
)
def test_number_formatting(value, error, text):
    assert re.sub("</?span[^>]*>", "", number(value, error)) == text


def test_long_curves_are_downsampled_to_means():
    points = [(step, float(step)) for step in range(1, 1201)] + [(1201, math.nan)]
    means, note = downsample(points)
    assert means == [(3 * n + 2.0, 3 * n + 2.0) for n in range(400)]
    assert note == "1 not finite, left out; each point the mean of 3"
    assert downsample(points[:500]) == ([(float(x), y) for x, y in points[:500]], "")


def vertices(svg, nth):
    """Return the vertices (N, 2) of the nth path in the accent colour."""
    paths = re.findall(r'<path d="([^"]*)"(?: clip-path="[^"]*")? style="[^"]*accent', svg)
    corners = re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", paths[nth])
    return np.array(corners, dtype=float)


def test_a_curve_is_drawn_to_scale():
    svg = curve([(0, 0.0), (10, 1.0), (20, 4.0)], prefix="p", label="s", x_label="x")
    (x0, y0), (x1, y1), (x2, y2) = vertices(svg, 0)
    assert x1 - x0 == pytest.approx(x2 - x1) and x1 > x0
    assert (y2 - y0) / (y1 - y0) == pytest.approx(4) and y1 < y0  # upwards
    svg = curve([(0, 1.0), (10, 10.0), (20, 1000.0)], prefix="p", label="s", x_label="x", log=True)
    (_, y0), (_, y1), (_, y2) = vertices(svg, 0)
    assert (y2 - y0) / (y1 - y0) == pytest.approx(3)
    assert ">100<" in svg and ">0.1<" not in svg  # plain numbers at the axis
    once = curve([(5, 1.0)], prefix="p", label="s", x_label="x")
    assert "<use" in once.split("line2d")[-1] or len(vertices(once, 0)) > 1  # a dot


def test_the_band_of_a_curve_is_one_standard_error():
    svg = curve([(0, 2.0), (1, 3.0)], [0.5, 0.25], prefix="p", label="s", x_label="t")
    line = vertices(svg, 0)
    unit = line[0, 1] - line[1, 1]
    outline = re.search(r'<path id="p-m[^"]*" d="([^"]*)"', svg.split("FillBetween")[1])
    corners = np.array(re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", outline[1]), dtype=float)
    heights = {round((corners[:, 1].max() - y) / unit, 3) for y in corners[:, 1]}
    assert heights == {0.0, 1.0, 1.25, 1.75}  # 1.5 2.5 2.75 3.25


def test_curves_use_the_colours_of_the_page():
    svg = curve([(0, 2.0), (1, 3.0)], [0.5, 0.25], prefix="p", label='a "b"', x_label="t")
    drawn = set(re.findall(r"(?:fill|stroke): ([^;\"]*)", svg)) - {"none"}
    assert drawn == {"var(--accent)", "var(--muted)", "var(--rule)"}
    assert 'aria-label="a &#34;b&#34;"' in svg
    assert svg.startswith("<svg ") and svg.endswith("</svg>") and "<style" not in svg
