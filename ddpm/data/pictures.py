"""Pictures of batches: grids of images, and line plots of sequences."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ddpm.data.class_rows import Row, Rows

MAX_PANELS = 16
_BACKGROUND = 225
_PADDING = 2
_MIN_CELL = 64
_FONT_SIZE = 14
_MARGIN = 6  # pixels on each side of a name
_MAX_NAME_LENGTH = 24
_MAX_CLASS_PANELS = 8  # rows of plots


def grid(
    images: npt.NDArray[np.uint8], columns: int | None = None, rows: Rows = None
) -> Image.Image:
    """Return a grid of images, by default nearly square.

    Small images are enlarged by a whole factor, without interpolation.

    Args:
        images: ``(N, C, H, W)``, uint8. One channel is grey, three are RGB; other numbers are
            shown as grey images side by side.
        columns: number of columns; None = the square root of N.
        rows: items per row, with class names at the left; shorter rows end with empty cells.
    """
    if rows is None:
        return _grid(images, columns)
    columns = max(len(row.items) for row in rows)
    cells = np.full((len(rows), columns, *images.shape[1:]), _BACKGROUND, np.uint8)
    for cell, row in zip(cells, rows, strict=True):
        cell[: len(row.items)] = images[list(row.items)]
    return _add_names(
        _grid(cells.reshape(-1, *images.shape[1:]), columns), [row.name for row in rows]
    )


def _add_names(picture: Image.Image, names: Sequence[str]) -> Image.Image:
    """Return a picture with one name per row at the left."""
    font = ImageFont.load_default(size=_FONT_SIZE)
    names = [_shortened(name) for name in names]
    margin = math.ceil(max(font.getlength(name) for name in names)) + 2 * _MARGIN
    size, grey = (margin + picture.width, picture.height), picture.mode == "L"
    canvas = Image.new(picture.mode, size, _BACKGROUND if grey else (_BACKGROUND,) * 3)
    canvas.paste(picture, (margin, 0))
    draw, step = ImageDraw.Draw(canvas), (picture.height - _PADDING) / len(names)
    for row, name in enumerate(names):
        place = margin - _MARGIN, _PADDING + (row + 0.5) * step - _PADDING / 2
        draw.text(place, name, fill=0 if grey else (0, 0, 0), font=font, anchor="rm")
    return canvas


def _shortened(name: str) -> str:
    """Return a name on one line, truncated if it is long."""
    name = " ".join(name.split())
    return name if len(name) <= _MAX_NAME_LENGTH else f"{name[: _MAX_NAME_LENGTH - 1]}…"


def _grid(images: npt.NDArray[np.uint8], columns: int | None) -> Image.Image:
    number, _, height, width = images.shape
    images = visible(images)
    factor = math.ceil(_MIN_CELL / max(height, width))
    cells = images.repeat(factor, axis=2).repeat(factor, axis=3).transpose(0, 2, 3, 1)
    high, wide = cells.shape[1:3]
    columns = min(columns or math.ceil(math.sqrt(number)), number)
    rows = math.ceil(number / columns)
    step_down, step_right = high + _PADDING, wide + _PADDING
    area = (rows * step_down + _PADDING, columns * step_right + _PADDING, cells.shape[3])
    canvas = np.full(area, _BACKGROUND, np.uint8)
    for place, cell in enumerate(cells):
        top = _PADDING + place // columns * step_down
        left = _PADDING + place % columns * step_right
        canvas[top : top + high, left : left + wide] = cell
    return Image.fromarray(canvas[:, :, 0] if canvas.shape[2] == 1 else canvas)


def visible(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return images ``(N, C, H, W)`` with 1 or 3 channels; others are joined side by side."""
    number, channels, height, width = images.shape
    if channels in (1, 3):
        return images
    return images.transpose(0, 2, 1, 3).reshape(number, 1, height, channels * width)


def as_image(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """Return pixels ``(C, H, W)`` with 1 or 3 channels as a grey or RGB image."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def plots(
    sequences: npt.NDArray[np.float32],
    low: float,
    high: float,
    columns: int | None = None,
    rows: Rows = None,
) -> Image.Image:
    """Return line plots of sequences, one panel per sequence and one colour per channel.

    All panels show the same range, so that pictures of the same data are comparable. Values beyond
    the range and its margin are not visible.

    Args:
        sequences: ``(N, C, L)``.
        low: lower end of the range.
        high: upper end of the range.
        columns: number of columns; None = a nearly square grid of the first 16 sequences.
        rows: items per row, with class names at the left; at most 8 classes are shown.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = _lines(len(sequences), columns, rows)
    columns = max(len(line.items) for line in lines)
    size = (2.4 * columns + 0.8, 1.6 * len(lines) + 0.8)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(len(lines), columns, sharex=True, sharey=True, squeeze=False)
    margin = 0.05 * (high - low)
    for place, line in enumerate(lines):
        below = len(lines[place + 1].items) if place + 1 < len(lines) else 0
        for column, panel in enumerate(panels[place]):
            if column >= len(line.items):
                panel.set_axis_off()
                continue
            _plot(panel, sequences[line.items[column]])
            panel.set_ylim(low - margin, high + margin)
            panel.tick_params(labelsize=7, labelbottom=column >= below)
        if line.name:
            # No math text: a class may be named $x$.
            name = {"rotation": 0, "ha": "right", "va": "center", "parse_math": False}
            panels[place][0].set_ylabel(_shortened(line.name), fontsize=8, **name)
    figure.supxlabel("position", fontsize=9)
    figure.supylabel("value", fontsize=9)
    if 1 < sequences.shape[1] <= 10:
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper right", ncols=5, fontsize=7)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # these characters are drawn as boxes
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _lines(count: int, columns: int | None, rows: Rows) -> list[Row]:
    """Return the rows of panels."""
    if rows is None:
        shown = count if columns else min(count, MAX_PANELS)
        columns = min(columns or math.ceil(math.sqrt(shown)), shown)
        starts = range(0, shown, columns)
        return [Row("", tuple(range(at, min(at + columns, shown)))) for at in starts]
    titled = [row for row in rows if row.name]  # rows that continue a class have no name
    most = min(len(titled), _MAX_CLASS_PANELS)
    chosen = [titled[round(i * (len(titled) - 1) / max(most - 1, 1))] for i in range(most)]
    columns = max(MAX_PANELS // most, 2)
    return [Row(row.name, row.items[:columns]) for row in chosen]


def _plot(panel: Any, sequence: npt.NDArray[np.float32]) -> None:
    """Plot one line per channel."""
    for channel, values in enumerate(sequence):
        panel.plot(values, color=f"C{channel % 10}", linewidth=1.0, label=f"channel {channel}")
