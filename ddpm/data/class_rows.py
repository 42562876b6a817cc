"""Samples of several classes in rows: a class per row, its name at the left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

MOST_ROWS = 16  # of one class each; more classes share rows
MOST_COLUMNS = 16


class Row(NamedTuple):
    """A row of a picture.

    Attributes:
        name: of its class, or of the first and the last of its classes; empty where a class
            continues from the row above.
        items: positions of its samples in the batch, at most ``MOST_COLUMNS``.
    """

    name: str
    items: tuple[int, ...]


Rows = Sequence[Row] | None


def class_rows(numbers: Sequence[int], names: Sequence[str]) -> list[Row]:
    """Arrange samples by class for a picture; the samples themselves keep their order.

    Up to 16 classes have rows of their own, in the order of their numbers; a single one fills a
    square. Samples of more classes are sorted by class and fill rows that show the names of their
    first and last class.

    Args:
        numbers: class number per sample.
        names: name per class number.
    """
    order = sorted(range(len(numbers)), key=lambda item: (numbers[item], item))
    classes = [(number, list(group)) for number, group in groupby(order, numbers.__getitem__)]
    square = min(math.ceil(math.sqrt(len(order))), MOST_COLUMNS)
    if len(classes) > MOST_ROWS:
        rows = _chunks(order, square)
        ends = [(names[numbers[row[0]]], names[numbers[row[-1]]]) for row in rows]
        labels = [first if first == last else f"{first} to {last}" for first, last in ends]
        return [Row(label, tuple(row)) for label, row in zip(labels, rows, strict=True)]
    columns = MOST_COLUMNS if len(classes) > 1 else square
    return [
        Row("" if position else names[number] or str(number), tuple(row))
        for number, group in classes
        for position, row in enumerate(_chunks(group, columns))
    ]


def cyclic_class_rows(
    count: int, classes: Sequence[int] | None, names: Sequence[str] | None
) -> Rows:
    """Return the rows of samples whose classes come in turn; None for samples without classes.

    Args:
        count: number of samples.
        classes: class numbers; sample i has ``classes[i % len(classes)]``.
        names: name per class number.
    """
    if classes is None or names is None:
        return None
    return class_rows([classes[item % len(classes)] for item in range(count)], names)


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
