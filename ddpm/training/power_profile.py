"""Power-function profiles of averages of weights, and their combinations.

Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", sections
3.1 and 3.2 and appendix C: at update t, the weights of update tau enter with a share that is
proportional to tau**gamma. The shape of the profile, and with it its standard deviation relative
to t, sigma_rel, is the same throughout training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

MAX_SIGMA_REL = 1 / math.sqrt(12)  # of the mean of all weights so far, gamma = 0
_MAX_CELLS = 16_384  # up to so many updates, each is a cell of its own


def sigma_rel(gamma: float) -> float:
    """Return the standard deviation of the profile tau**gamma on [0, 1]."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma(sigma_rel: float) -> float:
    """Return the exponent of a profile, the inverse of :func:`sigma_rel`.

    It is the largest root of s^2 (g + 2)^2 (g + 3) - (g + 1), a function of g that is convex above
    the root and positive at 1 / s: Newton's method falls to the root.

    Args:
        sigma_rel: standard deviation s, above 0 and at most ``MAX_SIGMA_REL``.
    """
    square, root, smaller = sigma_rel**2, math.inf, 1 / sigma_rel
    while smaller < root:
        root = smaller
        value = square * (root + 2) ** 2 * (root + 3) - (root + 1)
        slope = square * (root + 2) * (3 * root + 8) - 1
        smaller = root - value / slope
    return max(root, 0.0)


class Profile(NamedTuple):
    """Profile of an average of the weights.

    Attributes:
        sigma_rel: standard deviation relative to ``updates``.
        updates: number of updates of the weights until the average was taken.
        start: the first of them that is in the average, from 1. Its weights stand for those of all
            updates before it.
    """

    sigma_rel: float
    updates: int
    start: int = 1

    def shares(self, edges: np.ndarray) -> np.ndarray:
        """Return the shares of the updates in (edges[i], edges[i + 1]], (len(edges) - 1,)."""
        exponent = gamma(self.sigma_rel) + 1
        sums = np.minimum(edges / self.updates, 1.0) ** exponent
        return np.diff(np.where(edges < self.start, 0.0, sums))


class Fit(NamedTuple):
    """Combination of profiles that is closest to another profile.

    Attributes:
        coefficients: of the profiles; they add up to 1.
        error: norm of the difference relative to that of the profile.
    """

    coefficients: list[float]
    error: float


def fit(target: Profile, profiles: Sequence[Profile]) -> Fit:
    """Return the combination of profiles that is closest to ``target``, by least squares.

    Unlike those of the paper, the coefficients add up to 1: weights that did not change keep their
    values.

    Args:
        target: the profile to approximate.
        profiles: at least one, none with more updates than ``target``.
    """
    edges = _edges(target, profiles)
    lengths = np.sqrt(np.diff(edges))
    columns = np.stack([each.shares(edges) / lengths for each in profiles], 1)
    expected = target.shares(edges) / lengths
    nearest = int(np.linalg.norm(columns - expected[:, None], axis=0).argmin())
    # Of the nearest one and its differences from the others, which satisfies the condition, and is
    # exact where it is the target itself.
    base = columns[:, nearest]
    differences = np.delete(columns, nearest, 1) - base[:, None]
    solution = np.linalg.lstsq(differences, expected - base, rcond=None)[0]
    coefficients = np.insert(solution, nearest, 1 - solution.sum())
    distance = np.linalg.norm(columns @ coefficients - expected)
    return Fit(coefficients.tolist(), float(distance / np.linalg.norm(expected)))


def _edges(target: Profile, profiles: Sequence[Profile]) -> np.ndarray:
    """Return the limits of the cells of updates in which profiles are compared, float64.

    A long training has fewer cells than updates; profiles are smooth but for the updates at which
    they begin and end, which are limits.
    """
    count = min(target.updates, _MAX_CELLS)
    limits: list[Any] = [np.rint(np.linspace(0, target.updates, count + 1))]
    for each in (target, *profiles):
        limits.append([each.start - 1, each.start, each.updates])
    edges = np.unique(np.concatenate(limits))
    return edges[edges <= target.updates]
