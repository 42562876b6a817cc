"""Videos in array files."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from ddpm.data.arrays import (
    SUFFIXES,
    array_classes,
    load_arrays,
    measure_range,
    resolve_range,
)
from ddpm.data.decoding import fit
from ddpm.errors import ConfigError, require

Order = Literal["ncfhw", "nfchw"]
"""Order of the axes of a video array: N videos, C channels, F frames, height, width."""
_CHANNELS = range(1, 5)  # lengths of an axis that may be that of channels


def check_array_suffix(path: str, others: str) -> None:
    """Raise ConfigError (key ``path``) unless the suffix is that of an array file.

    Args:
        path: path of the file.
        others: other valid kinds of paths, for the message.
    """
    if not path.lower().endswith(SUFFIXES):
        problem = "unknown kind of file" if os.path.exists(path) else "not found"
        remedy = f"use {others}, or an array ({', '.join(SUFFIXES)})"
        raise ConfigError("path", path, problem, remedy)


@dataclass
class VideoArray:
    """Videos in an .npy, .npz or .pt file ``(N, C, F, H, W)`` or ``(N, F, C, H, W)``.

    uint8 is kept, other types become float32. An .npy file is accessed on disk.

    Attributes:
        path: path of the file.
        key: name of the array; None = "arr_0", or the only array.
        order: order of the axes; None = inferred from the shape.
        class_cond: read labels.
        image_size: (height, width) to cover and crop to; None = that of the array.
        low: lower end of the range; None = measured.
        high: upper end of the range; None = measured.
        limits: range of float32 values; None for uint8.
        warnings: none.
    """

    path: str
    key: str | None
    order: Order | None
    class_cond: bool
    image_size: tuple[int, int] | None
    low: float | None
    high: float | None
    limits: tuple[float, float] | None = field(init=False, default=None)
    warnings: tuple[str, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        values, self._labels = load_arrays(self.path, self.key, self.class_cond, memory_map=True)
        if values.ndim != 5 or 0 in values.shape:
            problem = f"has the shape {values.shape}; it must be (N, channels, frames, height,"
            raise ConfigError("path", self.path, f"{problem} width), or (N, frames, channels, ...)")
        order = self.order or _infer_order(values.shape, self.path)
        self._values = values if order == "ncfhw" else values.swapaxes(1, 2)
        number, self.channels, length, height, width = self._values.shape
        self.size = self.image_size or (height, width)
        self.lengths = [length] * number
        if values.dtype == np.uint8:
            for end, value in (("low", self.low), ("high", self.high)):
                problem = (
                    f"{self.path} contains uint8, whose range is 0 to 255; omit it, or save float32"
                )
                require(value is None, end, value, problem)
        else:
            measured = measure_range(values, self.path)
            self.limits = resolve_range(measured, self.path, self.low, self.high)

    def name(self, video: int) -> str:
        """Return a name for messages: its number, and the file."""
        return f"video {video} of {self.path}"

    def labels(self) -> tuple[list[int], list[str]]:
        """Return the class of each video, from the labels in the file, and the class names."""
        numbers, names = array_classes(self._labels, self.path, len(self.lengths), "video")
        return numbers.tolist(), names

    def read(self, video: int, frames: range) -> npt.NDArray[Any]:
        """Return frames of a video; see :meth:`VideoSource.read`. Resizing preserves the range."""
        values = self._values[video][:, frames.start : frames.stop : frames.step]
        values = values if self.limits is None else values.astype(np.float32)
        if self.size == values.shape[2:]:
            return values
        planes = [fit(Image.fromarray(each), self.size) for row in values for each in row]
        resized = np.stack([np.asarray(each) for each in planes])
        resized = resized.reshape(*values.shape[:2], *self.size)
        return resized if self.limits is None else resized.clip(*self.limits)


def _infer_order(shape: tuple[int, ...], path: str) -> Order:
    """Return the order of axes; raise ConfigError unless one of axes 1, 2 may be channels."""
    first, second = shape[1] in _CHANNELS, shape[2] in _CHANNELS
    if first == second:
        which = "both axes 1 and 2" if first else "neither of axes 1 and 2"
        problem = f"{path} has the shape {shape}, in which {which} may be 1 to 4 channels; set"
        raise ConfigError("order", None, f"{problem} data.order=ncfhw or data.order=nfchw")
    return "ncfhw" if first else "nfchw"
