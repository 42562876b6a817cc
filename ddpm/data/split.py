"""Split of a data set into a part for training and a part held out for validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from ddpm.data.dataset import Dataset
from ddpm.errors import ConfigError, require
from ddpm.seeding import RandomStream, mix_array


class Subset(Dataset):
    """Subset of the items of a data set, in the order of that data set.

    Scaling, classes and other attributes are those of the data set.

    Args:
        data: data set.
        indices: positions of the items, without repetition.
    """

    def __init__(self, data: Dataset, indices: npt.ArrayLike) -> None:
        self._data = data
        self._indices = np.sort(np.asarray(indices, dtype=np.int64))
        self.shape, self.codec, self.in_memory = data.shape, data.codec, data.in_memory
        self.num_classes, self.class_names = data.num_classes, data.class_names
        self.warnings = data.warnings

    def __len__(self) -> int:
        return len(self._indices)

    def fetch(
        self, indices: Sequence[int], keys: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return items of the data set and their labels; see :meth:`Dataset.fetch`."""
        return self._data.fetch(self._positions(indices), keys)

    def is_decoded(self, indices: Sequence[int] | None = None) -> bool:
        """Return True if no item of this subset has to be decoded."""
        return self._data.is_decoded(self._positions(indices))

    def class_counts(self, indices: Sequence[int] | None = None) -> list[int] | None:
        """Return the number of items per class among the items of this subset."""
        return self._data.class_counts(self._positions(indices))

    def _positions(self, indices: Sequence[int] | None) -> list[int]:
        """Return positions in the data set of items of this subset, by default of all of them."""
        chosen = slice(None) if indices is None else np.asarray(indices, dtype=np.int64)
        return self._indices[chosen].tolist()


@dataclass(frozen=True)
class Split:
    """Data for training and for validation.

    Attributes:
        train: items to train on.
        held_out: items of the same data that are held out; None if all are used for training.
    """

    train: Dataset
    held_out: Dataset | None = None

    @cached_property
    def val(self) -> Dataset | None:
        """Data for validation: the items held out, else the authors' validation split, else None.

        The authors' split is read on first access, see :meth:`Dataset.own_split`. Items held out
        have the augmentation of training, unless fetched with
        :data:`ddpm.data.UNAUGMENTED_KEY`.

        Raises:
            ConfigError: (keys below ``data``) the authors' split cannot be read.
        """
        if self.held_out is not None:
            return self.held_out
        try:
            return self.train.own_split()
        except ConfigError as error:
            raise error.under("data") from error


def split(data: Dataset, val_fraction: float) -> Split:
    """Hold out a fraction of the items from training.

    The choice depends only on the indices, not on the seed of a run, so that the runs of a sweep
    over seeds are validated on the same items. A larger fraction holds out a superset.

    Args:
        data: data set to split.
        val_fraction: fraction to hold out, in [0, 1), rounded to whole items; 0 = none.

    Raises:
        ConfigError: (key ``val_fraction``) the fraction is outside [0, 1), or a part is empty.
    """
    valid = 0 <= val_fraction < 1
    require(valid, "val_fraction", val_fraction, "must be at least 0 and below 1, such as 0.1")
    if val_fraction == 0:
        return Split(data)
    size = len(data)
    count = round(size * val_fraction)
    problem = f"would hold out {count} of {size} items, and neither part may be empty"
    remedy = f"{'raise' if count == 0 else 'lower'} it, or leave it at 0"
    require(0 < count < size, "val_fraction", val_fraction, f"{problem}; {remedy}")
    order = np.argsort(mix_array(RandomStream.SPLIT, np.arange(size)), kind="stable")
    return Split(Subset(data, order[count:]), Subset(data, order[:count]))
