"""DPM-Solver++, multistep."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ddpm.errors import require
from ddpm.samplers.base import SamplingPath
from ddpm.samplers.multistep import Combination, LinearMultistep, phi


@dataclass(kw_only=True, eq=False)
class DPMpp(LinearMultistep):
    """DPM-Solver++ multistep (Lu et al. 2022, arXiv 2211.01095), in 1 to T steps.

    Integrates the Taylor expansion of the predicted x0 in lambda, half the log-SNR, exactly against
    the exponential weight of the probability-flow ODE, or of the reverse SDE. The derivatives come
    from the predictions of the preceding steps. The first steps have orders 1, 2, ...; the step to
    clean data has order 1, which returns the predicted x0, because lambda is infinite there. A
    learned variance is not used.

    Args:
        steps: network calls; null = 20. See :class:`Sampler`.
        order: 1 (DDIM) to 3; with ``sde`` 1 or 2. 2 is more stable than 3 under guidance.
        solver: ``midpoint`` halves the weight of the first derivative of order 2, ``heun``
            integrates it exactly; both of order 2. At order 3 both are the formula of the authors'
            program and diffusers, which has half of the second derivative and therefore converges
            with order 2. null = midpoint, and at order 3 the whole second derivative.
        sde: solve the reverse SDE, with new noise at each step (SDE-DPM-Solver++).
        lower_order_final: the last steps have orders ..., 2, 1, for stability in few steps;
            null = in paths of fewer than 15 steps.
    """

    default_steps = 20

    order: int = 2
    solver: Literal["midpoint", "heun"] | None = None
    sde: bool = False
    lower_order_final: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.order < 3 or not self.sde, "order", self.order, "must be 1 or 2 with sde=true")

    def combination(self, path: SamplingPath, index: int) -> Combination:
        sigma_t, sigma_s = path.sigmas[index : index + 2]
        h = path.lambdas[index + 1] - path.lambdas[index]
        z = 2 * h if self.sde else h
        weight = -math.expm1(-z)
        x = sigma_s / sigma_t * (math.exp(-h) if self.sde else 1.0)
        fresh = sigma_s * math.sqrt(weight) if self.sde else 0.0
        order = self.order_at(path, index, self.lower_order_final)
        first, *others = self._derivatives(path, index, order, z)
        alpha = path.alphas[index + 1]
        return Combination(x, (alpha * (weight + first), *(alpha * w for w in others)), fresh)

    def _derivatives(self, path: SamplingPath, index: int, order: int, z: float) -> list[float]:
        """Return the weights of the predictions in the terms with derivatives of x0."""
        if order == 1:
            return [0.0]
        nodes = [path.lambdas[index + 1 - i] for i in range(order + 1)]
        h, *steps = (new - old for new, old in pairwise(nodes))
        r0, first = steps[0] / h, z * phi(2, -z)
        if order == 2:
            slope = (first if self.solver == "heun" else -math.expm1(-z) / 2) / r0
            return [slope, -slope]
        # With d0 = (m_0 - m_1) / r0 and d1 = (m_1 - m_2) / r1, the derivatives times h and h^2 / 2
        # are d0 + r0 / (r0 + r1) (d0 - d1) and (d0 - d1) / (r0 + r1).
        r1, second = steps[1] / h, z * phi(3, -z) * (2 if self.solver is None else 1)
        of_d1 = -(first * r0 + second) / (r0 + r1)
        of_d0 = first - of_d1
        return [of_d0 / r0, of_d1 / r1 - of_d0 / r0, -of_d1 / r1]
