"""Data set of the sequences in an array file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ddpm.data.arrays import array_classes, read_arrays, resolve_range
from ddpm.data.dataset import Dataset, count_labels
from ddpm.data.samples import find_samples
from ddpm.data.sequence_codec import Axes, SequenceCodec, describe_sequence
from ddpm.errors import ConfigError


class Sequences(Dataset):
    """Sequences ``(C, L)``, float32, from an .npy, .npz or .pt file; all are kept in memory.

    Args:
        path: path of the file, with an array ``(N, C, L)``, ``(N, L, C)``, or ``(N, L)`` for one
            channel.
        key: name of the array in an .npz, or in a dict of tensors; None = "arr_0", or the only one.
        axes: order of the axes, "NCL" or "NLC"; None = "NCL" if the shape is unambiguous: the last
            axis is not shorter than the second, and the array does not look like square images.
        low: lower end of the range, which is -1 in model space; None = measured.
        high: upper end of the range, which is 1 in model space; None = measured.
        class_cond: return labels from the array "labels" or "arr_1", which are whole numbers from 0
            or names; the classes are those that occur.

    Raises:
        ConfigError: the file is unreadable, has another shape, or contains NaN, infinite values, or
            values outside a declared range.
    """

    in_memory = True
    legacy_defaults = {"axes": "NCL"}

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
        path = find_samples(path, ["samples.npz", "samples.npy"])
        values, labels = read_arrays(path, key, read_labels=class_cond)
        if values.ndim not in (2, 3) or 0 in values.shape:
            problem = f"has the shape {values.shape}; it must be (N, channels, length)"
            raise ConfigError("path", path, f"{problem}, or (N, length)")
        values = _channels_first(values, axes, path)
        self._values = torch.from_numpy(np.ascontiguousarray(values))
        self.shape = tuple(self._values.shape[1:])
        measured = float(self._values.min()), float(self._values.max())
        limits = resolve_range(measured, path, low, high)
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
        """Return raw float32 ``(B, C, L)`` and labels; keys are ignored.

        See :meth:`Dataset.fetch`.
        """
        positions = torch.as_tensor(indices, dtype=torch.int64)
        values = self._values.index_select(0, positions)
        return values, None if self._labels is None else self._labels[positions]

    def class_counts(self, indices: Sequence[int] | None = None) -> list[int] | None:
        """Return the number of items per class; None without labels."""
        return count_labels(self._labels, self.num_classes, indices)


_MAX_IMAGE_CHANNELS = 4  # more rows of a square array are not channels


def _channels_first(values: npt.NDArray[Any], axes: Axes | None, path: str) -> npt.NDArray[Any]:
    """Return the array as (N, channels, length); raise ConfigError for ambiguous axes."""
    if values.ndim == 2:
        return values[:, None]
    if axes is not None:
        return values if axes == "NCL" else values.swapaxes(1, 2)
    first, last = values.shape[1:]
    problem = f"{path} has the shape {values.shape}"
    if first == last > _MAX_IMAGE_CHANNELS:
        images = "which may be images; save images as PNG files for data=folder"
        remedy = (
            f"for sequences of {describe_sequence(first, last)}, set data.axes=NCL or data.axes=NLC"
        )
        raise ConfigError("axes", None, f"{problem}, {images}; {remedy}")
    if last < first:
        problem = f"{problem}, whose last axis is the shorter one; set data.axes"
        as_ncl, as_nlc = describe_sequence(first, last), describe_sequence(last, first)
        raise ConfigError(
            "axes", None, f"{problem}=NCL for {as_ncl}, or data.axes=NLC for {as_nlc}"
        )
    return values
