"""Names of classes, the numbers that models know them by, and the labels in files."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ddpm.data.dataset import Dataset

_LISTED = 12  # names in a message, at most


def label_values(names: Sequence[str] | None) -> list[int] | None:
    """Return the whole numbers that all of the names are, or None where some are not."""
    numbers = [_whole(name) for name in names or ()]
    whole = [number for number in numbers if number is not None]
    return whole if whole and len(whole) == len(numbers) else None


def class_number(wanted: int | str, names: Sequence[str]) -> int | None:
    """Return the number of the class that a user means, or None for an unknown one.

    It is the class of that name. Where no name is a whole number, a whole number may also be the
    position of a class.
    """
    text = str(wanted)
    if text in names:
        return names.index(text)
    if not text.isascii() or not text.isdecimal():
        return None
    number = int(text)
    if all(_whole(name) is None for name in names):
        return number if number < len(names) else None
    return names.index(str(number)) if str(number) in names else None


def format_names(names: Sequence[str]) -> str:
    """Return the names of classes for a message, the middle of a long list left out."""
    if list(names) == [str(number) for number in range(len(names))] and len(names) > 1:
        return f"0 to {len(names) - 1}"
    shown = list(names)
    if len(shown) > _LISTED:
        shown = [*shown[: _LISTED - 2], "...", shown[-1]]
    return ", ".join(shown)


def _whole(name: str) -> int | None:
    """Return the whole number whose usual form a name is, up to the largest of int64."""
    if not name.isascii() or not name.isdecimal() or len(name) > 19:
        return None
    number = int(name)
    return number if str(number) == name and number < 2**63 else None


class Relabelled(Dataset):
    """Another data set, its labels counted among more classes, of which it has some.

    Args:
        data: the data set.
        names: of all classes, those of ``data`` among them.
    """

    def __init__(self, data: Dataset, names: Sequence[str]) -> None:
        self._data, self._names = data, list(names)
        self.shape, self.codec, self.in_memory = data.shape, data.codec, data.in_memory
        self.num_classes, self.class_names = len(names), self._names
        places = [self._names.index(name) for name in data.class_names or ()]
        self._places = torch.tensor(places, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._data)

    def fetch(
        self, indices: Sequence[int], keys: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the items of the data set, and their labels among all classes."""
        raw, labels = self._data.fetch(indices, keys)
        return raw, None if labels is None else self._places[labels]

    def class_counts(self, indices: Sequence[int] | None = None) -> list[int] | None:
        """Return the number of items per class, 0 for classes that do not occur."""
        own = self._data.class_counts(indices)
        if own is None:
            return None
        counts = torch.zeros(len(self._names), dtype=torch.int64)
        counts[self._places] = torch.tensor(own)
        return counts.tolist()

    def own_split(self) -> Dataset | None:
        """Return the part that the authors set aside, its labels counted likewise."""
        own = self._data.own_split()
        return None if own is None else Relabelled(own, self._names)


def relabel(data: Dataset, num_classes: int | None, names: Sequence[str] | None) -> Dataset:
    """Return a data set with its labels numbered as a model's classes are.

    Models of earlier versions count the classes from 0 to the largest label, models of other
    systems as many as they were made for; labels in a file are those that occur. Where the labels
    are among the numbers that the model counts, they keep these numbers. Other data are returned
    as they are.

    Args:
        data: the data set.
        num_classes: of the model.
        names: of the model's classes; None where they have none.
    """
    if num_classes is None or data.class_names is None:
        return data
    counted = [str(number) for number in range(num_classes)]
    known = names is None or list(names) == counted
    if not known or list(data.class_names) == counted or not set(data.class_names) <= set(counted):
        return data
    return Relabelled(data, counted)
