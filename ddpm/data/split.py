"""A data set in two: what is trained on, and what is held out of it for validation."""

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


class Part(Dataset):
    """Some items of another data set, in the order in which that has them.

    All it says of itself but its length is what the whole says: parts of one set are scaled alike
    and agree on what a label means.

    Args:
        whole: the data set.
        indices: which of its items, each one once.
    """

    def __init__(self, whole: Dataset, indices: npt.ArrayLike) -> None:
        self._whole = whole
        self._indices = np.sort(np.asarray(indices, dtype=np.int64))
        self.shape, self.codec, self.in_memory = whole.shape, whole.codec, whole.in_memory
        self.num_classes, self.class_names = whole.num_classes, whole.class_names
        self.warnings = whole.warnings

    def __len__(self) -> int:
        return len(self._indices)

    def fetch(
        self, indices: Sequence[int], keys: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the whole gives for those of its items, with these keys."""
        where = self._indices[np.asarray(indices, dtype=np.int64)]
        return self._whole.fetch(where.tolist(), keys)

    def class_counts(self, indices: Sequence[int] | None = None) -> list[int] | None:
        """Return the counts of the whole for the items of this part."""
        where = self._indices if indices is None else self._indices[np.asarray(indices)]
        return self._whole.class_counts(where.tolist())


@dataclass(frozen=True)
class Split:
    """What is trained on, and what the training is validated with.

    Attributes:
        train: the items to train on.
        held_out: the items held out of the same data; None where all are trained on.
    """

    train: Dataset
    held_out: Dataset | None = None

    @cached_property
    def val(self) -> Dataset | None:
        """What to validate with: the items held out, else the data's own; None: there is nothing.

        The data's own are read here and not before, see :meth:`Dataset.own_split`. What is held
        out of training is augmented as training is: fetch it with :data:`ddpm.data.UNTOUCHED`.

        Raises:
            ConfigError: (keys below ``data``) they cannot be read.
        """
        if self.held_out is not None:
            return self.held_out
        try:
            return self.train.own_split()
        except ConfigError as error:
            raise error.under("data") from error


def split(data: Dataset, val_fraction: float) -> Split:
    """Hold a fraction of the items out of training.

    Which ones is a function of their indices alone, not of a run's seed: the runs of a sweep over
    seeds are judged by the same items. A larger fraction holds out the same ones and some more.

    Args:
        data: what to divide.
        val_fraction: the part to hold out, in [0, 1), rounded to whole items; 0 = none.

    Raises:
        ConfigError: a fraction outside of that, or one that leaves either part without items.
    """
    possible = 0 <= val_fraction < 1
    require(possible, "val_fraction", val_fraction, "must be at least 0 and below 1, such as 0.1")
    if val_fraction == 0:
        return Split(data)
    size = len(data)
    count = round(size * val_fraction)
    problem = f"would hold out {count} of {size} items, and neither part may be empty"
    remedy = f"{'raise' if count == 0 else 'lower'} it, or leave it at 0"
    require(0 < count < size, "val_fraction", val_fraction, f"{problem}; {remedy}")
    order = np.argsort(mix_array(RandomStream.SPLIT, np.arange(size)), kind="stable")
    return Split(Part(data, order[count:]), Part(data, order[:count]))
