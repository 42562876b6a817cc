"""Sequences from an array file as a data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ddpm.data.arrays import array_classes, declared_range, read_arrays
from ddpm.data.codec import SequenceCodec
from ddpm.data.dataset import Dataset, count_labels
from ddpm.errors import ConfigError


class Sequences(Dataset):
    """Sequences ``(N, C, L)``, or ``(N, L)`` of one channel, from an .npy, .npz or .pt file.

    ``key`` names the array in an .npz, or in a .pt that holds a dict; by default "arr_0" or the
    only one. ``low`` and ``high`` declare the range of the values, which becomes -1..1 in model
    space; what is None is measured. ``class_cond`` takes labels from the array "labels" or "arr_1":
    whole numbers from 0, or names; the classes are those that occur.

    Raises ConfigError for a file that is not like this or holds NaN, infinities, or values outside
    the declared range. Everything is kept in memory, as float32.
    """

    in_memory = True

    def __init__(
        self,
        *,
        path: str,
        key: str | None = None,
        low: float | None = None,
        high: float | None = None,
        class_cond: bool = False,
    ) -> None:
        values, labels = read_arrays(path, key, want_labels=class_cond)
        if values.ndim == 2:
            values = values[:, None]
        if values.ndim != 3 or 0 in values.shape:
            problem = f"has the shape {values.shape}; it must be (N, channels, length)"
            raise ConfigError("path", path, f"{problem}, or (N, length)")
        self._values = torch.from_numpy(np.ascontiguousarray(values))
        self.shape = tuple(self._values.shape[1:])
        measured = float(self._values.min()), float(self._values.max())
        self.codec = SequenceCodec(self.shape, *declared_range(measured, path, low, high))
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
