"""Sequences from an array file as a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ddpm.data.arrays import array_classes, declared_range, read_arrays
from ddpm.data.codec import Axes, SequenceCodec, named
from ddpm.data.dataset import Dataset, count_labels
from ddpm.data.samples import samples_at
from ddpm.errors import ConfigError


class Sequences(Dataset):
    """Sequences ``(N, C, L)``, or ``(N, L)`` of one channel, from an .npy, .npz or .pt file.

    ``axes`` "NLC" reads ``(N, L, C)`` instead. None reads ``(N, C, L)``, and refuses what is
    probably meant otherwise: a last axis that is the shorter one, and images.

    ``key`` names the array in an .npz, or in a .pt that holds a dict; by default "arr_0" or the
    only one. ``low`` and ``high`` declare the range of the values, which becomes -1..1 in model
    space; what is None is measured. ``class_cond`` takes labels from the array "labels" or "arr_1":
    whole numbers from 0, or names; the classes are those that occur.

    Raises ConfigError for a file that is not like this or holds NaN, infinities, or values outside
    the declared range. Everything is kept in memory, as float32.
    """

    in_memory = True
    legacy_defaults = {"axes": "NCL"}  # as versions without this option read all arrays

    def __init__(
        self,
        *,
        path: str,
        key: str | None = None,
        axes: Axes | None = None,
        low: float | None = None,
        high: float | None = None,
        class_cond: bool = False,
    ) -> None:
        path = samples_at(path, ["samples.npz", "samples.npy"])
        values, labels = read_arrays(path, key, want_labels=class_cond)
        if values.ndim not in (2, 3) or 0 in values.shape:
            problem = f"has the shape {values.shape}; it must be (N, channels, length)"
            raise ConfigError("path", path, f"{problem}, or (N, length)")
        values = _channels_first(values, axes, path)
        self._values = torch.from_numpy(np.ascontiguousarray(values))
        self.shape = tuple(self._values.shape[1:])
        measured = float(self._values.min()), float(self._values.max())
        limits = declared_range(measured, path, low, high)
        self.codec = SequenceCodec(self.shape, *limits, axes or "NCL")
        self.num_classes = self.class_names = self._labels = None
        if class_cond:
            numbers, self.class_names = array_classes(labels, path, len(self), "sequence")
            self._labels, self.num_classes = torch.from_numpy(numbers), len(self.class_names)

    def __len__(self) -> int:
        return len(self._values)

    def fetch(
        self, indices: Sequence[int], keys: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Raw float32 ``(B, C, L)`` and labels; there is no augmentation, so keys are not used."""
        where = torch.as_tensor(indices, dtype=torch.int64)
        return self._values[where], None if self._labels is None else self._labels[where]

    def class_counts(self, indices: Sequence[int] | None = None) -> list[int] | None:
        """Return the number of items per class; None without labels."""
        return count_labels(self._labels, self.num_classes, indices)


_MOST_CHANNELS = 4  # of images; a square of more rows is no sequence of few channels


def _channels_first(values: npt.NDArray[Any], axes: Axes | None, path: str) -> npt.NDArray[Any]:
    """Return the array as (N, channels, length); raises ConfigError where the axes are in doubt."""
    if values.ndim == 2:
        return values[:, None]
    if axes is not None:
        return values if axes == "NCL" else values.swapaxes(1, 2)
    first, last = values.shape[1:]
    problem = f"{path} has the shape {values.shape}"
    if first == last > _MOST_CHANNELS:
        images = "which may be images; save images as PNG files for data=folder"
        remedy = f"for sequences of {named(first, last)}, set data.axes=NCL or data.axes=NLC"
        raise ConfigError("axes", None, f"{problem}, {images}; {remedy}")
    if last < first:
        problem = f"{problem}, whose last axis is the shorter one; set data.axes"
        ways = f"NCL for {named(first, last)}, or data.axes=NLC for {named(last, first)}"
        raise ConfigError("axes", None, f"{problem}={ways}")
    return values
