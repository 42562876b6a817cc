"""Denoising diffusion implicit models."""

from __future__ import annotations

from dataclasses import dataclass

from ddpm.errors import require
from ddpm.samplers.base import SamplingPath
from ddpm.samplers.multistep import Combination, LinearMultistep


@dataclass(kw_only=True, eq=False)
class DDIM(LinearMultistep):
    """DDIM (Song et al. 2020, arXiv 2010.02502, equation 12), in 1 to T steps.

    Args:
        steps: network calls; null = 100, or T where that is fewer. See :class:`Sampler`.
        eta: scale of the noise, 0 (deterministic) to 1 (the ancestral sampler's, fixed_small).
    """

    default_steps = 100

    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        problem = "must be between 0 (deterministic) and 1 (ancestral)"
        require(0 <= self.eta <= 1, "eta", self.eta, problem)

    def combination(self, path: SamplingPath, index: int) -> Combination:
        fresh = self.eta * path.diffusion.posterior_variance(*path.pairs[index]) ** 0.5
        reused = max(path.sigmas[index + 1] ** 2 - fresh**2, 0.0) ** 0.5  # not below 0 by rounding
        x = reused / path.sigmas[index]  # for the noise (x_t - alpha_t x0) / sigma_t
        return Combination(x, (path.alphas[index + 1] - x * path.alphas[index],), fresh)
