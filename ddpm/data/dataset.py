"""Interface of data sets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from ddpm.data.codec import Codec


class Dataset(ABC):
    """Base class of finite, indexable data sets of items of one shape.

    The options of a subclass are keyword-only constructor parameters, whose annotations are the
    schema of its config node. The constructor sets the attributes below. A data set has no mutable
    state and no random generator: an item is a function of ``(index, key)``.

    Each config node has one more option, ``val_fraction``, which is not passed to the constructor:
    see :func:`ddpm.data.split.split`.
    """

    shape: tuple[int, ...]
    """Shape of an item, ``(C, *spatial)``."""
    num_classes: int | None
    """Number of classes; None for a data set without labels."""
    class_names: list[str] | None
    """Name of each class, in the order of the labels; None for a data set without labels."""
    codec: Codec
    """Conversion of raw items to model space and back."""
    legacy_defaults: ClassVar[Mapping[str, Any]] = {}
    """Options that earlier versions lacked, with the values that reproduce their behaviour."""
    warnings: tuple[str, ...] = ()
    """Warnings about the data, one per line, such as the number of skipped files."""
    in_memory: bool
    """Whether :meth:`fetch` is a fast look-up in memory."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of items."""

    @abstractmethod
    def fetch(
        self, indices: Sequence[int], keys: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return raw items and their labels.

        Args:
            indices: positions of the items, ``(B,)`` in ``[0, len(self))``.
            keys: augmentation seed of each item, ``(B,)`` in ``[0, 2**63)``.

        Returns:
            A new raw batch ``(B, *shape)``, such as uint8 images or float32 sequences, and int64
            labels ``(B,)`` in ``[0, num_classes)``, or None for a data set without labels.
        """

    def is_decoded(self, indices: Sequence[int] | None = None) -> bool:
        """Return True if :meth:`fetch` decodes nothing: worker processes would slow it down.

        That holds for items in memory, and for items in the disk cache. It may be estimated from a
        part of the items.

        Args:
            indices: positions of the items; None = all.
        """
        return self.in_memory

    def class_counts(self, indices: Sequence[int] | None = None) -> list[int] | None:
        """Return the number of items per class; None if it is unknown.

        Evaluation draws samples of the classes in these proportions. A data set with labels in
        memory should implement it; it must not decode items.

        Args:
            indices: positions of the items to count; None = all.
        """
        return None

    def own_split(self) -> Dataset | None:
        """Return the validation split that the authors of the data published, or None.

        It has the same shape, classes and codec, without augmentation. It is read by this call, so
        that commands that do not validate need not read it.

        Raises:
            ConfigError: the split cannot be read.
        """
        return None


def count_labels(
    labels: torch.Tensor | None, num_classes: int | None, indices: Sequence[int] | None
) -> list[int] | None:
    """Return the number of labels per class among ``indices``; None without labels."""
    if labels is None or num_classes is None:
        return None
    chosen = labels if indices is None else labels[torch.as_tensor(indices, dtype=torch.int64)]
    return torch.bincount(chosen, minlength=num_classes).tolist()
