"""Ancestral sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ddpm.samplers.base import Sampler, SamplingPath, StepContext


class Coefficients(NamedTuple):
    """Factors of a step: ``mean = x0_part x0 + x_part x_t``, and the standard deviation."""

    x0_part: float
    x_part: float
    std: float


@dataclass(kw_only=True, eq=False)
class DDPM(Sampler):
    """Ancestral sampling (Ho et al. 2020, algorithm 2), in 1 to T steps.

    Args:
        steps: network calls; null = all T. See :class:`Sampler`.
        variance: ``fixed_small`` or ``fixed_large``; null = that of the process, which may be
            learned.
    """

    variance: Literal["fixed_small", "fixed_large"] | None = None

    def coefficients(self, path: SamplingPath) -> list[Coefficients]:
        """Return the factors of each step; the standard deviation is that of a fixed variance."""
        diffusion = path.diffusion
        large = (self.variance or diffusion.variance) == "fixed_large"
        variance = diffusion.step_variance if large else diffusion.posterior_variance
        return [
            Coefficients(*diffusion.posterior_factors(t, s), variance(t, s) ** 0.5)
            for t, s in path.pairs
        ]

    def step(self, context: StepContext) -> Tensor:
        """Sample x_s of q(x_s | x_t, x0) with the predicted x0."""
        diffusion, x, factors = context.diffusion, context.x, context.coefficients
        prediction = context.predict()
        mean = factors.x0_part * prediction.x0 + factors.x_part * x
        if context.s < 0:
            return mean
        if (self.variance or diffusion.variance) in ("fixed_small", "fixed_large"):
            return mean + factors.std * context.randn_like(x)
        mask = diffusion.conditioning_mask
        log = diffusion.log_variance(
            prediction.variance_output, context.t, context.s, like=mask.select_generated(x)
        )
        return mean + mask.merge(torch.exp(0.5 * log), x) * context.randn_like(x)
