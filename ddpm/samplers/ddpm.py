"""Ancestral sampling."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ddpm.diffusion import Clip, DenoiserProtocol
from ddpm.samplers.base import Denoise, RandnLike, Sampler, Spacing, Steps


class DDPM(Sampler):
    """Ancestral sampling (Ho et al. 2020, algorithm 2), in 1 to T steps.

    Args:
        steps: network calls; null = all T. See :class:`Sampler`.
        spacing: see :class:`Sampler`.
        clip: see :class:`Sampler`.
        dynamic_quantile: see :class:`Sampler`.
        variance: ``fixed_small`` or ``fixed_large``; null = that of the process, which may be
            learned.
    """

    def __init__(
        self,
        *,
        steps: Steps = None,
        spacing: Spacing = "uniform",
        clip: Clip = "static",
        dynamic_quantile: float = 0.995,
        variance: Literal["fixed_small", "fixed_large"] | None = None,
    ) -> None:
        super().__init__(steps=steps, spacing=spacing, clip=clip, dynamic_quantile=dynamic_quantile)
        self.variance = variance

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        t: int,
        s: int,
        denoiser: DenoiserProtocol,
        randn_like: RandnLike,
    ) -> Tensor:
        """Sample x_s of q(x_s | x_t, x0) with the predicted x0; see :meth:`Sampler.step`."""
        diffusion = denoiser.diffusion
        prediction = denoise(x, t)
        mean, small = diffusion.posterior(prediction.x0, x, t, s)
        if s < 0:
            return mean
        kind = self.variance or diffusion.variance
        if kind == "fixed_small":
            return mean + small**0.5 * randn_like(x)
        if kind == "fixed_large":
            return mean + diffusion.step_variance(t, s) ** 0.5 * randn_like(x)
        mask = diffusion.conditioning_mask
        log = diffusion.log_variance(
            prediction.variance_output, t, s, like=mask.select_generated(x)
        )
        return mean + mask.merge(torch.exp(0.5 * log), x) * randn_like(x)
