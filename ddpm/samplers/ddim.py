"""Denoising diffusion implicit models."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ddpm.diffusion import Clip, Denoises
from ddpm.errors import require
from ddpm.samplers.base import Denoise, RandnLike, Sampler, Spacing


class DDIM(Sampler):
    """DDIM (Song et al. 2020, arXiv 2010.02502, equation 12), in any number of steps up to T.

    Args:
        steps: network calls; null = 100, or T where that is fewer.
        spacing: see :class:`Sampler`.
        clip: see :class:`Sampler`.
        dynamic_quantile: see :class:`Sampler`.
        eta: 0 is deterministic, 1 draws the ancestral sampler's noise (fixed_small).
    """

    default_steps: ClassVar[int | None] = 100

    def __init__(
        self,
        *,
        steps: int | None = None,
        spacing: Spacing = "uniform",
        clip: Clip = "static",
        dynamic_quantile: float = 0.995,
        eta: float = 0.0,
    ) -> None:
        super().__init__(steps=steps, spacing=spacing, clip=clip, dynamic_quantile=dynamic_quantile)
        require(0 <= eta <= 1, "eta", eta, "must be between 0 (deterministic) and 1 (ancestral)")
        self.eta = eta

    def step(
        self, denoise: Denoise, x: Tensor, t: int, s: int, denoiser: Denoises, randn_like: RandnLike
    ) -> Tensor:
        """Point x_s along the believed noise, with a share eta of it drawn anew."""
        x0, eps = denoise(x, t)
        if s < 0:
            return x0
        diffusion = denoiser.diffusion
        signal, noise = diffusion.schedule.signal_noise(s)
        fresh = self.eta * diffusion.posterior_variance(t, s) ** 0.5
        kept = max(noise**2 - fresh**2, 0.0) ** 0.5  # rounding may take it below 0
        x = signal * x0 + kept * eps
        return x + fresh * randn_like(x) if self.eta > 0 else x
