"""Batches as pictures: grids of images and small line plots of sequences."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

MAX_PANELS = 16
_BACKGROUND = 225
_PADDING = 2
_MIN_CELL = 64


def grid(images: npt.NDArray[np.uint8], columns: int | None = None) -> Image.Image:
    """Images ``(N, C, H, W)`` side by side, row after row, near to a square.

    Small ones are enlarged by a whole factor, each pixel to a square. One channel gives a grey
    picture and three a coloured one; of any other number, the channels stand side by side in grey.
    """
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
    """Images ``(N, C, H, W)`` with 1 or 3 channels: of other numbers, all side by side in one."""
    number, channels, height, width = images.shape
    if channels in (1, 3):
        return images
    return images.transpose(0, 2, 1, 3).reshape(number, 1, height, channels * width)


def as_image(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """Pixels ``(C, H, W)`` of 1 or 3 channels as a grey or a coloured image."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def plots(
    sequences: npt.NDArray[np.float32], low: float, high: float, columns: int | None = None
) -> Image.Image:
    """Sequences ``(N, C, L)`` as line plots, a panel each, a colour a channel.

    Without a number of columns, which a strip of frames has, only the first 16 are shown.

    All panels show the range from ``low`` to ``high`` and a little more, so that pictures of the
    same data can be compared; what lies further out is cut off.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = sequences if columns else sequences[:MAX_PANELS]
    columns = min(columns or math.ceil(math.sqrt(len(shown))), len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(2.4 * columns + 0.8, 1.6 * rows + 0.8), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    margin = 0.05 * (high - low)
    for number, panel in enumerate(panels):
        if number >= len(shown):
            panel.set_axis_off()
            continue
        for channel, values in enumerate(shown[number]):
            panel.plot(values, color=f"C{channel % 10}", linewidth=1.0, label=f"channel {channel}")
        panel.set_ylim(low - margin, high + margin)
        panel.tick_params(labelsize=7, labelbottom=number + columns >= len(shown))
    figure.supxlabel("position", fontsize=9)
    figure.supylabel("value", fontsize=9)
    if 1 < shown.shape[1] <= 10:
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper right", ncols=5, fontsize=7)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
