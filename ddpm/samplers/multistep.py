"""Linear multistep solvers: x_s is a linear combination of x_t and the latest predictions."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from torch import Tensor

from ddpm.errors import require
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
    """Base class of linear multistep solvers. Subclasses implement :meth:`combination`.

    The number of preceding predictions limits the order of the first steps to 1, 2, ...
    """

    max_order: ClassVar[int] = 3
    predicts: ClassVar[Literal["x0", "eps"]] = "x0"
    order: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        good = 1 <= self.order <= self.max_order
        require(good, "order", self.order, f"must be 1 to {self.max_order}")

    @property
    def history(self) -> int:
        return self.order - 1

    @abstractmethod
    def combination(self, path: SamplingPath, index: int) -> Combination:
        """Return the factors of step ``index``; at most ``min(order, index + 1)`` predictions."""

    def coefficients(self, path: SamplingPath) -> Sequence[Any]:
        return [self.combination(path, index) for index in range(len(path))]

    def step(self, context: StepContext) -> Tensor:
        """Return x_s, a linear combination of x_t, the predictions and new noise."""
        context.predict()
        return self.combine(context, context.coefficients)

    def combine(self, context: StepContext, factors: Combination) -> Tensor:
        """Return the linear combination (B, C, *spatial) of x, predictions and new noise."""
        used = context.predictions[: len(factors.predictions)]
        predictions = [each.x0 if self.predicts == "x0" else each.eps for each in used]
        terms = [(factors.x, context.x), (factors.x0, context.predictions[0].x0)]
        terms += zip(factors.predictions, predictions, strict=True)
        (factor, x), *others = [term for term in terms if term[0] != 0]
        x = x if factor == 1 and others else factor * x  # a new tensor
        for factor, other in others:
            x = x.add(other, alpha=factor)
        return x if factors.fresh == 0 else x.add(context.randn_like(x), alpha=factors.fresh)

    def order_at(self, path: SamplingPath, index: int, lower_final: bool | None) -> int:
        """Return the order of step ``index`` of a solver in lambda, half the log-SNR.

        It is 1 in a step to clean data, where lambda is infinite. A prediction at zero terminal
        SNR, where lambda is minus infinity, has no role in later steps. ``lower_final`` gives the
        last steps the orders ..., 2, 1; None = in paths of fewer than 15 steps.
        """
        if math.isinf(path.lambdas[index + 1]):
            return 1
        available = index if math.isinf(path.lambdas[0]) else index + 1
        lower_final = len(path) < 15 if lower_final is None else lower_final
        remaining = len(path) - index if lower_final else self.order
        return max(1, min(self.order, available, remaining))


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
    """Return the weights of values at distinct nodes that integrate polynomials exactly.

    The moments are the integrals of the powers 0, 1, ..., as many as nodes.
    """
    powers = np.vander(np.asarray(nodes, dtype=np.float64), increasing=True).T
    return np.linalg.solve(powers, np.asarray(moments, dtype=np.float64)).tolist()


def noise_combination(path: SamplingPath, index: int, older: Sequence[float]) -> Combination:
    """Return the factors of ``x_s = (alpha_s / alpha_t) x_t + sum_k w_k eps_k``.

    The w_k of a constant eps sum to that of DDIM. With ``x_t = alpha_t x0 + sigma_t eps_0`` the
    result is ``alpha_s x0 + sigma_s eps_0 + sum_k w_k (eps_k - eps_0)``, finite for alpha_t = 0.

    ``older`` is w_1, w_2, ... of the noise one step ago, two steps ago, and so on; empty for DDIM.
    """
    newest = path.sigmas[index + 1] - sum(older)
    factors = (newest, *older) if newest != 0 or older else ()
    return Combination(0.0, factors, x0=path.alphas[index + 1])
