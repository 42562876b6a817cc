"""Classes of samples by the frequencies of the training data.

Samples are compared with data whose classes may be unequally frequent. If every class is drawn
equally often, the comparison measures that difference too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BY_FREQUENCY = "by the frequencies of the training data"
IN_TURN = "in turn (the checkpoint does not contain the frequencies of the training data)"


def balanced(counts: Sequence[int], num_samples: int) -> list[int]:
    """Return the classes of the samples 0 to ``num_samples - 1``.

    Among the first n samples, for every n, the number of each class differs by less than 1 from n
    times its frequency (Tijdeman 1980, "The chairman assignment problem"). So the class of a sample
    does not depend on the number of samples. Classes with equal frequencies come in turn.

    Args:
        counts: number of training items per class; at least one is positive.
        num_samples: number of samples.
    """
    items = np.asarray(counts, dtype=np.int64)
    occurring = np.flatnonzero(items)
    if len(occurring) == 1:
        return [int(occurring[0])] * num_samples
    items, total, slack = items[occurring], int(items.sum()), 2 * len(occurring) - 2
    drawn, classes = np.zeros_like(items), []
    for n in range(1, num_samples + 1):
        behind = items * n - total * drawn  # samples behind, times the total
        due = slack * behind >= total
        # The sample by which the class is next needed at the latest.
        deadline = -((slack * (total - behind) - total) // -(slack * items))
        chosen = int(np.where(due, deadline, np.iinfo(np.int64).max).argmin())
        drawn[chosen] += 1
        classes.append(int(occurring[chosen]))
    return classes


def provenance(classes: Sequence[int] | None, counts: Sequence[int] | None) -> dict[str, Any]:
    """Return the provenance of the classes of a class-conditional model's samples.

    Args:
        classes: the requested classes; None = not requested.
        counts: number of training items per class; None = unknown.
    """
    if classes is not None:
        return {"classes": list(classes)}
    if counts is None:
        return {"classes": IN_TURN}
    return {"classes": BY_FREQUENCY, "class_counts": list(counts)}
