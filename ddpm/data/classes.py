"""Class names, the class numbers of models, and the labels in files."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ddpm.data.dataset import Dataset

_MAX_LISTED = 12  # names in a message


def label_values(names: Sequence[str] | None) -> list[int] | None:
    """Return the names as whole numbers; None if some are not."""
    numbers = [_parse_number(name) for name in names or ()]
    whole = [number for number in numbers if number is not None]
    return whole if whole and len(whole) == len(numbers) else None


def class_number(requested: int | str, names: Sequence[str]) -> int | None:
    """Return the number of the class that a user requests; None if it is unknown.

    Args:
        requested: name of the class. If no name is a whole number, it may also be the number.
        names: name of each class.
    """
    text = str(requested)
    if text in names:
        return names.index(text)
    if not text.isascii() or not text.isdecimal():
        return None
    number = int(text)
    if all(_parse_number(name) is None for name in names):
        return number if number < len(names) else None
    return names.index(str(number)) if str(number) in names else None


def format_names(names: Sequence[str]) -> str:
    """Return a list of class names for a message; the middle of a long list is omitted."""
    if list(names) == [str(number) for number in range(len(names))] and len(names) > 1:
        return f"0 to {len(names) - 1}"
    shown = list(names)
    if len(shown) > _MAX_LISTED:
        shown = [*shown[: _MAX_LISTED - 2], "...", shown[-1]]
    return ", ".join(shown)


def _parse_number(name: str) -> int | None:
    """Return the int64 number whose decimal form is the name; None for other names."""
    if not name.isascii() or not name.isdecimal() or len(name) > 19:
        return None
    number = int(name)
    return number if str(number) == name and number < 2**63 else None


class RelabelledDataset(Dataset):
    """A data set with its labels renumbered among a larger set of classes.

    Args:
        data: data set.
        names: names of all classes, which include those of ``data``.
    """

    def __init__(self, data: Dataset, names: Sequence[str]) -> None:
        self._data, self._names = data, list(names)
        self.shape, self.codec, self.in_memory = data.shape, data.codec, data.in_memory
        self.num_classes, self.class_names = len(names), self._names
        numbers = [self._names.index(name) for name in data.class_names or ()]
        self._numbers = torch.tensor(numbers, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._data)

    def fetch(
        self, indices: Sequence[int], keys: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return raw items and their labels among all classes; see :meth:`Dataset.fetch`."""
        raw, labels = self._data.fetch(indices, keys)
        return raw, None if labels is None else self._numbers[labels]

    def is_decoded(self, indices: Sequence[int] | None = None) -> bool:
        """Return True if no item has to be decoded; see :meth:`Dataset.is_decoded`."""
        return self._data.is_decoded(indices)

    def class_counts(self, indices: Sequence[int] | None = None) -> list[int] | None:
        """Return the number of items per class, 0 for classes that do not occur."""
        own = self._data.class_counts(indices)
        if own is None:
            return None
        counts = torch.zeros(len(self._names), dtype=torch.int64)
        counts[self._numbers] = torch.tensor(own)
        return counts.tolist()

    def own_split(self) -> Dataset | None:
        """Return the authors' validation split, its labels renumbered likewise."""
        own = self._data.own_split()
        return None if own is None else RelabelledDataset(own, self._names)


def relabel(data: Dataset, num_classes: int | None, names: Sequence[str] | None) -> Dataset:
    """Return a data set whose labels are numbered like the classes of a model.

    The classes of a data set are the labels that occur. Models of earlier versions have all classes
    from 0 to the largest label, and imported models have a fixed number. If the classes of such a
    model are numbers that include all labels, labels keep their values. Otherwise ``data`` is
    returned.

    Args:
        data: data set.
        num_classes: number of classes of the model; None for a model without classes.
        names: class names of the model; None if it has none.
    """
    if num_classes is None or data.class_names is None:
        return data
    digits = [str(number) for number in range(num_classes)]
    numeric = names is None or list(names) == digits
    if not numeric or list(data.class_names) == digits or not set(data.class_names) <= set(digits):
        return data
    return RelabelledDataset(data, digits)
