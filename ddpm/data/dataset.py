"""What training asks of a data set, whoever wrote it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from ddpm.data.codec import Codec


class Dataset(ABC):
    """A finite, indexable set of items of one shape; the contract between data and training.

    A subclass takes its configuration as keyword-only constructor parameters, whose annotations
    are the schema of its config node, and sets the attributes below. Nothing here holds state that
    changes, and nothing draws from a random generator: an item is a function of ``(index, key)``.

    Every such node takes one more option, ``val_fraction``, which never reaches the constructor:
    see :func:`ddpm.data.split.split`.
    """

    shape: tuple[int, ...]
    """Shape of one item, ``(C, *spatial)``."""
    num_classes: int | None
    """How many classes the labels count; None for a data set without labels."""
    class_names: list[str] | None
    """The name of each class, in the order of the labels; None for a data set without labels."""
    codec: Codec
    """What carries raw items to model space and back."""
    legacy_defaults: ClassVar[Mapping[str, Any]] = {}
    """Options that did not exist in earlier versions, with the value that does what these did."""
    warnings: tuple[str, ...] = ()
    """What a user should know of how the data were read, a line each: files that were skipped."""
    in_memory: bool
    """Whether :meth:`fetch` is a cheap look-up, so that workers would only cost."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of items."""

    @abstractmethod
    def fetch(
        self, indices: Sequence[int], keys: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Items ``indices`` as a new raw batch ``(B, *shape)``, and their labels.

        ``keys`` holds one augmentation seed in ``[0, 2**63)`` for each item. Images are uint8,
        sequences float32; labels are int64 ``(B,)`` in ``[0, num_classes)``, or None.
        """

    def class_counts(self, indices: Sequence[int] | None = None) -> list[int] | None:
        """Return the number of items per class, or None if it is unknown.

        Evaluation draws samples of the classes in these proportions. A data set with labels in
        memory should implement it; it must not decode items.

        Args:
            indices: the items to count; None = all.
        """
        return None

    def own_split(self) -> Dataset | None:
        """The part of the data that its authors set aside, for validation; None: there is none.

        It has this one's shape, classes and codec, and does not augment. It is read when it is
        asked for: a command that does not validate should not pay for it.

        Raises:
            ConfigError: it cannot be read.
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
