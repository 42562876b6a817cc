"""Sequences from an array file as a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ddpm.data.arrays import read_arrays
from ddpm.data.codec import SequenceCodec
from ddpm.data.dataset import Dataset
from ddpm.errors import ConfigError


class Sequences(Dataset):
    """Sequences ``(N, C, L)``, or ``(N, L)`` of one channel, from an .npy, .npz or .pt file.

    ``key`` names the array in an .npz, or in a .pt that holds a dict; by default "arr_0" or the
    only one. ``low`` and ``high`` declare the range of the values, which becomes -1..1 in model
    space; what is None is measured. ``class_cond`` takes labels from the array "labels" or "arr_1":
    whole numbers from 0, or names.

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
        self.codec = SequenceCodec(self.shape, *_range(self._values, path, low, high))
        self.num_classes = self.class_names = self._labels = None
        if class_cond:
            numbers, self.class_names = _classes(labels, path, len(self))
            self._labels, self.num_classes = torch.from_numpy(numbers), len(self.class_names)

    def __len__(self) -> int:
        return len(self._values)

    def fetch(
        self, indices: Sequence[int], keys: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Raw float32 ``(B, C, L)`` and labels; there is no augmentation, so keys are not used."""
        where = torch.as_tensor(indices, dtype=torch.int64)
        return self._values[where], None if self._labels is None else self._labels[where]


def _range(
    values: torch.Tensor, path: str, low: float | None, high: float | None
) -> tuple[float, float]:
    """The declared range where there is one, checked against the values; else the measured one."""
    least, most = float(values.min()), float(values.max())
    low_end, high_end = least if low is None else low, most if high is None else high
    if low is not None and bool((values < low).any()):
        raise ConfigError("low", low, f"{path} holds values down to {least:g}; lower data.low")
    if high is not None and bool((values > high).any()):
        raise ConfigError("high", high, f"{path} holds values up to {most:g}; raise data.high")
    if low_end >= high_end:
        problem = f"there is no range from {low_end:g} to {high_end:g}"
        remedy = "set data.low below data.high, around all values"
        raise ConfigError("low", low, f"{problem} for the values of {path}; {remedy}")
    return low_end, high_end


def _classes(labels: Any, path: str, count: int) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Labels as class numbers, and the names of the classes: sorted, or "0", "1" and so on."""
    if labels.shape != (count,):
        problem = f"{path} holds labels of shape {labels.shape}; they must be ({count},)"
        raise ConfigError("class_cond", True, f"{problem}, one for each sequence")
    if labels.dtype.kind == "U":
        names, numbers = np.unique(labels, return_inverse=True)
        return numbers.astype(np.int64), [str(name) for name in names]
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        problem = f"{path} holds labels that are not whole numbers from 0, nor names"
        raise ConfigError("class_cond", True, f"{problem}; save them as integers")
    return labels.astype(np.int64), [str(number) for number in range(int(labels.max()) + 1)]
