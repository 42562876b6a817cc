"""Statistics of training data in model space."""

from __future__ import annotations

import math

import numpy as np

from ddpm.data.dataset import Dataset
from ddpm.data.images import UNAUGMENTED_KEY

MAX_ITEMS = 2048
_BATCH = 64


def standard_deviation(data: Dataset, max_items: int = MAX_ITEMS) -> float:
    """Return the standard deviation of the generated entries in model space, to 6 digits.

    It is a function of the data alone, the same on every process and for any number of threads.

    Args:
        data: the data set, which is not augmented.
        max_items: maximum number of items, which are evenly spaced.
    """
    count = min(len(data), max_items)
    indices = [number * len(data) // count for number in range(count)]
    mask = data.codec.condition_mask
    generated = None if mask is None else ~mask.expand(data.shape)
    number, total, squares = 0, 0.0, 0.0
    for start in range(0, count, _BATCH):
        batch = indices[start : start + _BATCH]
        x0 = data.codec.encode(data.fetch(batch, [UNAUGMENTED_KEY] * len(batch))[0])
        entries = (x0 if generated is None else x0[:, generated]).double().numpy()
        number += entries.size
        total += float(np.sum(entries))  # NumPy sums in one order; torch's depends on the threads
        squares += float(np.sum(entries**2))
    variance = squares / number - (total / number) ** 2
    return float(f"{math.sqrt(max(variance, 0.0)):.6g}")
