"""Denoising diffusion implicit models."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ddpm.diffusion import Clip, Denoises
from ddpm.errors import require
from ddpm.samplers.base import Denoise, OnStep, RandnLike, Sampler, Spacing, Steps


class DDIM(Sampler):
    """DDIM (Song et al. 2020, arXiv 2010.02502, equation 12), in any number of steps up to T.

    Args:
        steps: network calls; null = 100, or T where that is fewer. See :class:`Sampler`.
        spacing: see :class:`Sampler`.
        clip: see :class:`Sampler`.
        dynamic_quantile: see :class:`Sampler`.
        eta: 0 is deterministic, 1 draws the ancestral sampler's noise (fixed_small).
    """

    default_steps: ClassVar[int | None] = 100

    def __init__(
        self,
        *,
        steps: Steps = None,
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
        x0, eps, _ = denoise(x, t)
        if s < 0:
            return x0
        diffusion = denoiser.diffusion
        signal, noise = diffusion.schedule.signal_noise(s)
        fresh = self.eta * diffusion.posterior_variance(t, s) ** 0.5
        kept = max(noise**2 - fresh**2, 0.0) ** 0.5  # rounding may take it below 0
        x = signal * x0 + kept * eps
        return x + fresh * randn_like(x) if self.eta > 0 else x

    @torch.inference_mode()
    def invert(
        self,
        denoiser: Denoises,
        x: Tensor,
        *,
        start: int,
        y: Tensor | None = None,
        refine: int = 3,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """The x at ``start`` (B, C, *spatial) from which the deterministic walk ends at x.

        Each step of that walk is undone in turn. The noise at its upper end is not known yet: it
        is first taken from the lower end (Song et al. 2020, section 4.3), then from the guess so
        made, ``refine`` times, which converges to the inverse of the step. That is exact but for a
        self-conditioned network, whose walk also depends on its earlier beliefs.

        Args:
            denoiser: what is believed of x_t. Where it clips, a step has many inverses and one
                of them is found; a predicted noise needs it, for unclipped its x0 explodes near T.
            x: (B, C, *spatial) clean data.
            start: the step to end at.
            y: (B,) class labels.
            refine: network calls a step beyond the first.
            on_step: called after each network call with (calls done, calls in all, the guess).
        """
        diffusion, clean = denoiser.diffusion, x
        schedule, given = diffusion.schedule, diffusion.given
        pairs = self.timesteps(start, num_steps=diffusion.num_steps)[::-1]
        for index, (t, s) in enumerate(pairs):
            (a_t, s_t), (a_s, s_s) = schedule.signal_noise(t), schedule.signal_noise(s)
            guess, at = (x, s) if s >= 0 else (given.keep(a_t * x, clean), t)
            for call in range(refine + 1):
                x0, eps, _ = denoiser(guess, at, y=y)
                # x = a_s x0 + s_s eps leaves one of the two to take from the belief: the one that
                # changes less as the guess does, so that the guesses converge.
                if a_s * a_t < s_s * s_t:
                    eps = (x - a_s * x0) / s_s
                else:
                    x0 = (x - s_s * eps) / a_s
                guess, at = given.keep(a_t * x0 + s_t * eps, clean), t
                if on_step is not None:
                    done = index * (refine + 1) + call + 1
                    on_step(done, len(pairs) * (refine + 1), guess)
            x = guess
        return x
