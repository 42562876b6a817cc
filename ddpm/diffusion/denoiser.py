"""A network and a process together: what is believed of x_t."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from ddpm.diffusion.process import GaussianDiffusion, Network, Prediction
from ddpm.errors import require

Clip = Literal["none", "static", "dynamic"]


class Denoises(Protocol):
    """What a sampler needs: a process, and a belief about x_t at an integer step t."""

    diffusion: GaussianDiffusion

    def __call__(
        self, x_t: Tensor, t: int, previous_x0: Tensor | None = None, *, y: Tensor | None = None
    ) -> Prediction:
        """Clean data and noise believed to be in x_t (B, C, *spatial) at step t."""
        ...


class Denoiser:
    """A network that answers about x_t, its x0 held within the data's declared range.

    Args:
        model: the network, called as ``model(x_t, time, y=..., x_self_cond=...)``.
        diffusion: the process that says what its answers mean.
        bounds: the declared range of clean data in model space.
        clip: ``none`` leaves x0 as it is; ``static`` clamps it to the bounds; ``dynamic`` clamps
            each sample at a quantile of its magnitudes and shrinks it back to the bounds
            (Saharia et al. 2022, arXiv 2205.11487, section 2.3). The noise is re-derived.
        dynamic_quantile: that quantile, in (0, 1].
    """

    def __init__(
        self,
        model: Network,
        diffusion: GaussianDiffusion,
        *,
        bounds: tuple[float, float] = (-1.0, 1.0),
        clip: Clip = "static",
        dynamic_quantile: float = 0.995,
    ) -> None:
        self.model, self.diffusion, self.bounds = model, diffusion, bounds
        self.clip, self.dynamic_quantile = clip, dynamic_quantile

    def __call__(
        self, x_t: Tensor, t: int, previous_x0: Tensor | None = None, *, y: Tensor | None = None
    ) -> Prediction:
        """Clean data and noise believed to be in x_t (B, C, *spatial), float32, at step t."""
        time = torch.full((len(x_t),), t, device=x_t.device)
        cond = {} if y is None else {"y": y}
        return self.settle(
            self.diffusion.predict(self.model, x_t, time, previous_x0, **cond), x_t, t
        )

    def settle(self, belief: Prediction, x_t: Tensor, t: int) -> Prediction:
        """The belief with its x0 clipped; the noise is what else is in x_t."""
        a, s = self.diffusion.schedule.signal_noise(t)
        x0 = self.diffusion.given.keep(self.clipped(belief.x0), x_t)
        return Prediction(x0, (x_t - a * x0) / s, belief.spread)

    def clipped(self, x0: Tensor) -> Tensor:
        """``x0`` within the bounds, in the chosen way."""
        if self.clip == "none":
            return x0
        low, high = self.bounds
        if self.clip == "static":
            return x0.clamp(low, high)
        middle, half = (low + high) / 2, (high - low) / 2
        size = (x0 - middle).abs().flatten(1)
        limit = torch.quantile(size.float(), self.dynamic_quantile, dim=1).clamp(min=half)
        limit = limit.reshape(-1, *[1] * (x0.ndim - 1))
        return middle + (x0 - middle).clamp(-limit, limit) * (half / limit)


class Guided:
    """A denoiser that holds a denoiser and leans towards the class asked for.

    Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): the guided answer is
    ``null + scale (wanted - null)``, so that 1 is off and 0 ignores the class. Both answers come
    from one call of the network with a batch of twice the size. A learned variance is that of
    the class asked for.

    Args:
        denoiser: one whose network was trained with label dropout.
        null_label: the label that stands for "no class".
        scale: at least 0.
        rescale: how far the guided answer is brought back to the standard deviation of the
            unguided one, 0 (off) to 1, against too bright colours at large scales (Lin et al.
            2023, arXiv 2305.08891, equations 14 to 16, where it is 0.7).
    """

    def __init__(
        self, denoiser: Denoiser, *, null_label: int, scale: float, rescale: float = 0.0
    ) -> None:
        require(scale >= 0, "guidance", scale, "must be 0 or above; 1 is off")
        require(0 <= rescale <= 1, "guidance_rescale", rescale, "must be between 0 (off) and 1")
        self.denoiser, self.null_label = denoiser, null_label
        self.scale, self.rescale = scale, rescale
        self.diffusion = denoiser.diffusion

    def __call__(
        self, x_t: Tensor, t: int, previous_x0: Tensor | None = None, *, y: Tensor | None = None
    ) -> Prediction:
        """As :meth:`Denoiser.__call__`; ``y`` (B,) says the class of each sample."""
        if y is None:
            y = torch.full((len(x_t),), self.null_label, device=x_t.device)
        time = torch.full((2 * len(x_t),), t, device=x_t.device)
        labels = torch.cat([y, torch.full_like(y, self.null_label)])
        known = None if previous_x0 is None else torch.cat([previous_x0, previous_x0])
        inner, diffusion = self.denoiser, self.diffusion
        both = diffusion.ask(inner.model, torch.cat([x_t, x_t]), time, known, y=labels)
        output, spread = diffusion.parted(both)
        guided = self._guided(*output.chunk(2))
        if spread is not None:
            guided = torch.cat([guided, spread.chunk(2)[0]], dim=1)
        return inner.settle(diffusion.read(guided, x_t, time[: len(x_t)]), x_t, t)

    def _guided(self, wanted: Tensor, null: Tensor) -> Tensor:
        """The guided answer (B, C, *spatial), brought back in size as far as is asked."""
        guided = null + self.scale * (wanted - null)
        if self.rescale == 0:
            return guided
        spread, asked = (x.flatten(1).std(dim=1) for x in (guided, wanted))
        ratio = (asked / spread.clamp(min=1e-12)).reshape(-1, *[1] * (wanted.ndim - 1))
        return guided * (self.rescale * ratio + 1 - self.rescale)
