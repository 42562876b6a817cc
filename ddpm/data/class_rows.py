"""Arrangement of samples in rows by class, for pictures with class names at the left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

MAX_ROWS = 16  # of one class each; more classes share rows
MAX_COLUMNS = 16


class Row(NamedTuple):
    """A row of a picture.

    Attributes:
        name: name of its class, or of its first and last class; empty if a class continues from
            the row above.
        items: positions of its samples in the batch, at most ``MAX_COLUMNS``.
    """

    name: str
    items: tuple[int, ...]


Rows = Sequence[Row] | None
"""Rows of a picture; None for samples in the order of the batch."""


def class_rows(numbers: Sequence[int], names: Sequence[str]) -> list[Row]:
    """Return rows of samples by class; the batch is not reordered.

    Up to 16 classes have separate rows, in the order of their numbers; a single class fills a
    square. With more classes, samples are sorted by class and fill rows with the names of their
    first and last class.

    Args:
        numbers: class number of each sample.
        names: name of each class.
    """
    order = sorted(range(len(numbers)), key=lambda item: (numbers[item], item))
    classes = [(number, list(group)) for number, group in groupby(order, numbers.__getitem__)]
    side = min(math.ceil(math.sqrt(len(order))), MAX_COLUMNS)
    if len(classes) > MAX_ROWS:
        rows = _chunks(order, side)
        ends = [(names[numbers[row[0]]], names[numbers[row[-1]]]) for row in rows]
        labels = [first if first == last else f"{first} to {last}" for first, last in ends]
        return [Row(label, tuple(row)) for label, row in zip(labels, rows, strict=True)]
    columns = MAX_COLUMNS if len(classes) > 1 else side
    return [
        Row("" if position else names[number] or str(number), tuple(row))
        for number, group in classes
        for position, row in enumerate(_chunks(group, columns))
    ]


def cyclic_class_rows(
    count: int, classes: Sequence[int] | None, names: Sequence[str] | None
) -> Rows:
    """Return rows of samples whose classes are cyclic; None for samples without classes.

    Args:
        count: number of samples.
        classes: class numbers; sample i has ``classes[i % len(classes)]``.
        names: name of each class.
    """
    if classes is None or names is None:
        return None
    return class_rows([classes[item % len(classes)] for item in range(count)], names)


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
