"""Guidance: denoisers that wrap denoisers, and call nothing but them."""

from __future__ import annotations

import torch
from torch import Tensor

from ddpm.diffusion.conditioning import Conditioning
from ddpm.diffusion.denoiser import DenoiserProtocol
from ddpm.diffusion.process import Prediction
from ddpm.errors import require


class ClassifierFreeGuidance:
    """Wraps a denoiser with classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598).

    The guided prediction is ``unconditional + scale (conditional - unconditional)``: 1 is off and 0
    ignores the conditioning. Both predictions come from one call with a doubled batch. A learned
    variance is that of the conditional prediction. Without conditioning, the prediction is that of
    the denoiser.

    Args:
        denoiser: one whose network was trained with dropped conditions, without clipping: clip the
            guided x0.
        scale: guidance scale, at least 0.
        rescale: share of the rescaling of the guided output to the standard deviation of the
            conditional one, 0 (off) to 1, which counters overexposure at large scales (Lin et al.
            2023, arXiv 2305.08891, equations 14 to 16, where it is 0.7).
    """

    def __init__(self, denoiser: DenoiserProtocol, *, scale: float, rescale: float = 0.0) -> None:
        require(scale >= 0, "guidance", scale, "must be 0 or above; 1 is off")
        require(0 <= rescale <= 1, "guidance_rescale", rescale, "must be between 0 (off) and 1")
        self.denoiser, self.diffusion = denoiser, denoiser.diffusion
        self.needs_gradients = denoiser.needs_gradients
        self.scale, self.rescale = scale, rescale

    def __call__(
        self,
        x_t: Tensor,
        t: float,
        previous_x0: Tensor | None = None,
        conditioning: Conditioning | None = None,
    ) -> Prediction:
        """Predict x0 and the noise; see :class:`~ddpm.diffusion.DenoiserProtocol`."""
        if not conditioning:
            return self.denoiser(x_t, t, previous_x0, conditioning)
        previous = None if previous_x0 is None else torch.cat([previous_x0, previous_x0])
        doubled = conditioning.followed_by(conditioning.unconditional())
        both = self.denoiser(torch.cat([x_t, x_t]), t, previous, doubled)
        conditional, unconditional = both.chunk(2)
        guided = torch.lerp(unconditional.x0, conditional.x0, self.scale)
        guided = conditional.with_x0(guided)
        return guided if self.rescale == 0 else self._rescaled(guided, conditional, t)

    def _rescaled(self, guided: Prediction, conditional: Prediction, t: float) -> Prediction:
        """Return the guided prediction with the standard deviation of the conditional output."""
        objective = self.diffusion.objective
        a, s = self.diffusion.schedule.signal_noise(t)
        output, target = (objective.target(p.x0, p.eps, a, s) for p in (guided, conditional))
        std, target_std = (x.flatten(1).std(dim=1) for x in (output, target))
        ratio = (target_std / std.clamp(min=1e-12)).reshape(-1, *[1] * (output.ndim - 1))
        output = output * (self.rescale * ratio + 1 - self.rescale)
        return guided.with_x0(objective.x0(guided.x_t, output, a, s))
