"""Diffusion exponential integrator sampler."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ddpm.samplers.base import SamplingPath
from ddpm.samplers.grids import Spacing
from ddpm.samplers.multistep import (
    Combination,
    LinearMultistep,
    integration_weights,
    noise_combination,
    phi,
)


@dataclass(kw_only=True, eq=False)
class DEIS(LinearMultistep):
    """DEIS (Zhang & Chen 2022, arXiv 2204.13902), multistep, one network call per step.

    The noise is interpolated by a polynomial in the log-SNR through the latest predictions, and
    the probability-flow ODE with it is solved exactly. The first steps have lower order, the step
    to clean data order 1.

    Args:
        steps: network calls; null = 20. See :class:`Sampler`.
        order: 1 (DDIM) to 3.
        lower_order_final: the last steps have orders ..., 2, 1, for stability in few steps;
            null = in paths of fewer than 15 steps.
    """

    default_steps = 20
    predicts = "eps"

    spacing: Spacing = "log_snr"
    order: int = 3
    lower_order_final: bool | None = None

    def combination(self, path: SamplingPath, index: int) -> Combination:
        """Return the factors of step ``index``; the position is 0 at t and 1 at s."""
        order = self.order_at(path, index, self.lower_order_final)
        if order == 1:
            return noise_combination(path, index, [])
        t, step = path.lambdas[index], path.lambdas[index + 1] - path.lambdas[index]
        nodes = [(path.lambdas[index - k] - t) / step for k in range(order)]
        scale = -step * path.sigmas[index + 1]
        moments = [scale * math.factorial(k) * phi(k + 1, step) for k in range(order)]
        return noise_combination(path, index, integration_weights(nodes, moments)[1:])
