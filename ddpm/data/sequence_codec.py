"""Codec of sequences."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ddpm.data.arrays import read_arrays
from ddpm.data.class_rows import Rows
from ddpm.data.codec import Codec, checked_shape
from ddpm.data.pictures import plots
from ddpm.data.scaling import RangeScaling, Scaling
from ddpm.errors import ConfigError, require

Axes = Literal["NCL", "NLC"]
"""Order of the axes of sequences in files: N items, C channels, length L."""


class SequenceCodec(Codec):
    """Sequences: raw float32 ``low``..``high`` is -1..1 in model space, and is never clamped.

    Args:
        shape: (channels, length).
        low: raw value of -1.
        high: raw value of 1.
        axes: order of the axes in files, which is that of the training data: (channels, length) for
            "NCL", (length, channels) for "NLC".

    Raises:
        ConfigError: an invalid shape, range or order of axes.
    """

    kind = "sequences"
    unit = "seq"
    formats = ("npy", "npz")
    default_format = "npy"

    def __init__(self, shape: Iterable[int], low: float, high: float, axes: Axes = "NCL") -> None:
        self.shape = checked_shape(shape, "channels length")
        require(axes in get_args(Axes), "axes", axes, "must be NCL or NLC")
        self._channels_last = axes == "NLC"
        self.low, self.high = float(low), float(high)
        self._scaling = RangeScaling(self.low, self.high)

    @property
    def scaling(self) -> Scaling:
        """Map of raw values to model space."""
        return self._scaling

    def encode(self, raw: torch.Tensor) -> torch.Tensor:
        """Convert raw ``(B, C, L)`` to float32, ``low`` to -1 and ``high`` to 1."""
        return self._scaling.encode(raw)

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Convert ``(B, C, L)`` to raw float32."""
        return self._scaling.decode(x)

    def state(self) -> dict[str, Any]:
        """Return the kind, the shape, the range, and axes other than NCL."""
        state = {"kind": self.kind, "shape": list(self.shape), "low": self.low, "high": self.high}
        return {**state, "axes": "NLC"} if self._channels_last else state

    def describe_count(self, count: int) -> str:
        """Return a phrase with the number of sequences, their channels and their length."""
        return f"{count:,} sequences of {describe_sequence(*self.shape)}"

    def read(self, path: str) -> torch.Tensor:
        """Read an .npy, .npz or .pt file of one sequence as float32 ``(C, L)``.

        The axes in the file are those of the training data; ``(L,)`` is one channel.

        Raises:
            ConfigError: (key ``path``) the file cannot be read, or has another shape.
        """
        values, _ = read_arrays(str(path), None, read_labels=False)
        item = values[None] if values.ndim == 1 else values.T if self._channels_last else values
        if item.shape != self.shape:
            shape, names = self.shape, "channels, length"
            if self._channels_last:
                shape, names = self.shape[::-1], "length, channels"
            problem = f"has the shape {values.shape}, but the model's sequences {shape} ({names})"
            raise ConfigError("path", str(path), f"{problem}; cut it to that")
        return torch.from_numpy(np.ascontiguousarray(item))

    def picture(
        self, raw: torch.Tensor, *, columns: int | None = None, rows: Rows = None
    ) -> Image.Image:
        """Return line plots of the first 16; see :func:`ddpm.data.pictures.plots`."""
        return plots(raw.detach().cpu().numpy(), self.low, self.high, columns, rows)

    def array(self, raw: torch.Tensor) -> npt.NDArray[np.float32]:
        """Return float32 in the axes of the training data: ``(N, C, L)`` or ``(N, L, C)``."""
        array = raw.cpu().numpy()
        return np.ascontiguousarray(array.swapaxes(1, 2)) if self._channels_last else array


def describe_sequence(channels: int, length: int) -> str:
    """Return the size of a sequence as a phrase: ``2 channels, length 128``."""
    return f"{channels} channel{'s' if channels != 1 else ''}, length {length}"
