"""Linear multistep solvers: x_s is a linear combination of x_t and the latest predictions."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from ddpm.samplers.base import Sampler, SamplingPath, StepContext


class Combination(NamedTuple):
    """Factors of ``x_s = x x_t + sum_k predictions[k] m_k + fresh z`` with new noise z.

    ``m_k`` is the prediction k steps ago: of x0, or of the noise.
    """

    x: float
    predictions: tuple[float, ...]
    fresh: float = 0.0


class LinearMultistep(Sampler):
    """Base class of linear multistep solvers. Subclasses implement :meth:`combination`."""

    order: int = 1
    predicts: ClassVar[Literal["x0", "eps"]] = "x0"

    @property
    def history(self) -> int:
        """Number of preceding steps whose predictions a step uses."""
        return self.order - 1

    @abstractmethod
    def combination(self, path: SamplingPath, index: int) -> Combination:
        """Return the factors of step ``index``; at most ``min(order, index + 1)`` predictions."""

    def coefficients(self, path: SamplingPath) -> list[Combination]:
        """Return the factors of each step."""
        return [self.combination(path, index) for index in range(len(path))]

    def step(self, context: StepContext) -> Tensor:
        """Return x_s, a linear combination of x_t, the predictions and new noise."""
        context.predict()
        return combine(context, context.coefficients, self.predicts)


def combine(context: StepContext, factors: Combination, predicts: Literal["x0", "eps"]) -> Tensor:
    """Return the linear combination (B, C, *spatial) of x, predictions and new noise."""
    x = None if factors.x == 0 else factors.x * context.x
    for factor, prediction in zip(factors.predictions, context.predictions, strict=False):
        m = prediction.x0 if predicts == "x0" else prediction.eps
        x = factor * m if x is None else x.add(m, alpha=factor)
    assert x is not None
    return x if factors.fresh == 0 else x.add(context.randn_like(x), alpha=factors.fresh)
