"""Linear multistep solvers: x_s is a linear combination of x_t and the latest predictions."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from torch import Tensor

from ddpm.samplers.base import Sampler, SamplingPath, StepContext


class Combination(NamedTuple):
    """Factors of ``x_s = x x_t + x0 x0_t + sum_k predictions[k] m_k + fresh z`` with new noise z.

    ``m_k`` is the prediction k steps ago: of x0, or of the noise; ``x0_t`` is the newest of x0.
    """

    x: float
    predictions: tuple[float, ...]
    fresh: float = 0.0
    x0: float = 0.0


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
    if factors.x0 != 0:
        x0 = factors.x0 * context.predictions[0].x0
        x = x0 if x is None else x + x0
    for factor, prediction in zip(factors.predictions, context.predictions, strict=False):
        m = prediction.x0 if predicts == "x0" else prediction.eps
        x = factor * m if x is None else x.add(m, alpha=factor)
    assert x is not None
    return x if factors.fresh == 0 else x.add(context.randn_like(x), alpha=factors.fresh)


def step_order(path: SamplingPath, index: int, order: int, lower_final: bool | None) -> int:
    """Return the order of step ``index`` of a multistep solver in lambda, half the log-SNR.

    It is limited by the number of predictions. A step to clean data, where lambda is infinite, has
    order 1. A prediction at zero terminal SNR, where lambda is minus infinity, has no role in later
    steps.

    Args:
        path: the sampling path.
        index: of the step, from 0.
        order: of the solver.
        lower_final: the last steps have orders ..., 2, 1; None = in paths of fewer than 15 steps.
    """
    if lower_final is None:
        lower_final = len(path) < 15
    if math.isinf(path.lambdas[index + 1]):
        return 1
    finite = index + (0 if math.isinf(path.lambdas[0]) else 1)
    last = len(path) - index if lower_final else order
    return max(1, min(order, finite, last))


def phi(order: int, z: float) -> float:
    """Return phi_k(z) of exponential integrators: ``phi_0 = exp`` and ``phi_k(0) = 1 / k!``.

    ``phi_k(z) = (phi_(k-1)(z) - 1 / (k-1)!) / z``, whose cancellation at small z a series avoids.
    """
    if abs(z) < 1:
        return sum(z**i / math.factorial(i + order) for i in range(20))
    value = math.exp(z)
    for k in range(order):
        value = (value - 1 / math.factorial(k)) / z
    return value


def integration_weights(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Return the weights of values at the nodes that integrate polynomials exactly.

    Args:
        nodes: distinct positions of the values.
        moments: integrals of the powers 0, 1, ..., as many as nodes.
    """
    powers = np.vander(np.asarray(nodes, dtype=np.float64), increasing=True).T
    return np.linalg.solve(powers, np.asarray(moments, dtype=np.float64)).tolist()


def noise_combination(path: SamplingPath, index: int, weights: Sequence[float]) -> Combination:
    """Return the factors of ``x_s = (alpha_s / alpha_t) x_t + sum_k weights[k] eps_k``.

    With ``x_t = alpha_t x0 + sigma_t eps_0`` and the sum of the weights of a constant eps, this is
    ``alpha_s x0 + sigma_s eps_0 + sum_k weights[k] (eps_k - eps_0)``, finite for alpha_t = 0.
    ``weights[0]`` is not used; a single weight is the step of DDIM.

    Args:
        path: the sampling path.
        index: of the step.
        weights: of the noise now, one step ago, and so on.
    """
    older = weights[1:]
    newest = path.sigmas[index + 1] - sum(older)
    factors = (newest, *older) if newest != 0 or older else ()
    return Combination(0.0, factors, x0=path.alphas[index + 1])
