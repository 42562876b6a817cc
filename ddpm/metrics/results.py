"""Results of metrics: numbers with their provenance, and the data of figures beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image


class Metric(NamedTuple):
    """The value of a metric with its provenance.

    Attributes:
        name: such as ``fid_5k``, see :func:`ddpm.metrics.metric_name`.
        value: may be NaN.
        error: one standard error (of kid and isc the standard deviation over subsets), or None.
        provenance: everything that the value depends on, as nested plain data.
        higher_is_better: False if lower values are better.
    """

    name: str
    value: float
    error: float | None
    provenance: Mapping[str, Any]
    higher_is_better: bool = False


class Neighbour(NamedTuple):
    """A sample beside the nearest image of the reference.

    Attributes:
        sample: a generated image.
        nearest: the image of the reference.
        distance: Euclidean distance between their features; 0 if these are equal.
    """

    sample: Image.Image
    nearest: Image.Image
    distance: float


class BoundCurve(NamedTuple):
    """The terms of the variational bound over t, in bits per dimension.

    Attributes:
        steps: K timesteps, rising.
        terms: K means over the data.
        errors: K standard errors of these means.
        prior: mean of the prior term, which measures the distance of q(x_T | x0) to pure noise.
    """

    steps: Sequence[int]
    terms: Sequence[float]
    errors: Sequence[float]
    prior: float
