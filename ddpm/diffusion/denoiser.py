"""Denoisers: a network and a process that together predict x0 and the noise from x_t."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from ddpm.diffusion.process import GaussianDiffusion, Network, Prediction
from ddpm.errors import require

Clip = Literal["none", "static", "dynamic"]


class DenoiserProtocol(Protocol):
    """Interface that samplers require of a denoiser.

    Attributes:
        diffusion: the process.
    """

    diffusion: GaussianDiffusion

    def __call__(
        self, x_t: Tensor, t: int, previous_x0: Tensor | None = None, *, y: Tensor | None = None
    ) -> Prediction:
        """Predict x0 and the noise from x_t.

        Args:
            x_t: (B, C, *spatial), float32.
            t: timestep of the whole batch, 0 to T-1.
            previous_x0: earlier prediction of x0, for a self-conditioned network.
            y: (B,) class labels.
        """
        ...


class Denoiser:
    """Predicts with a network; the predicted x0 is clipped to the range of the data.

    Args:
        model: the network, called as ``model(x_t, time, y=..., x_self_cond=...)``.
        diffusion: the process the network was trained for.
        bounds: range of clean data in model space.
        clip: ``none`` leaves x0 as it is; ``static`` clamps it to the bounds; ``dynamic`` clamps
            each sample at a quantile of its magnitudes and rescales it to the bounds (Saharia et
            al. 2022, arXiv 2205.11487, section 2.3). The noise is recomputed from x0.
        dynamic_quantile: the quantile of ``dynamic``, in (0, 1].
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
        """Predict x0 and the noise; see :class:`DenoiserProtocol`."""
        time = torch.full((len(x_t),), t, device=x_t.device)
        cond = {} if y is None else {"y": y}
        prediction = self.diffusion.predict(self.model, x_t, time, previous_x0, **cond)
        return self.clip_prediction(prediction, x_t, t)

    def clip_prediction(self, prediction: Prediction, x_t: Tensor, t: int) -> Prediction:
        """Return a prediction with its x0 clipped and the noise that this x0 leaves in x_t.

        Args:
            prediction: from x_t.
            x_t: (B, C, *spatial), float32.
            t: timestep of the whole batch, 0 to T-1.
        """
        a, s = self.diffusion.schedule.signal_noise(t)
        x0 = self.diffusion.conditioning_mask.apply(self.clip_x0(prediction.x0), x_t)
        return Prediction(x0, (x_t - a * x0) / s, prediction.variance_output)

    def clip_x0(self, x0: Tensor) -> Tensor:
        """Return ``x0`` (B, C, *spatial) clipped to the bounds by the configured method."""
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


class ClassifierFreeGuidance:
    """Wraps a denoiser with classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598).

    The guided output is ``unconditional + scale (conditional - unconditional)``: 1 is off and 0
    ignores the class. Both outputs come from one call of the network with a doubled batch. A
    learned variance is that of the conditional output.

    Args:
        denoiser: one whose network was trained with label dropout.
        null_label: the label that means "no class".
        scale: guidance scale, at least 0.
        rescale: share of the rescaling of the guided output to the standard deviation of the
            conditional one, 0 (off) to 1, which counters overexposure at large scales (Lin et al.
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
        """Predict x0 and the noise; see :class:`DenoiserProtocol`."""
        if y is None:
            y = torch.full((len(x_t),), self.null_label, device=x_t.device)
        time = torch.full((2 * len(x_t),), t, device=x_t.device)
        labels = torch.cat([y, torch.full_like(y, self.null_label)])
        previous = None if previous_x0 is None else torch.cat([previous_x0, previous_x0])
        inner, diffusion = self.denoiser, self.diffusion
        both = diffusion.call_network(inner.model, torch.cat([x_t, x_t]), time, previous, y=labels)
        output, variance_output = diffusion.split_output(both)
        guided = self._guide(*output.chunk(2))
        if variance_output is not None:
            guided = torch.cat([guided, variance_output.chunk(2)[0]], dim=1)
        prediction = diffusion.interpret_output(guided, x_t, time[: len(x_t)])
        return inner.clip_prediction(prediction, x_t, t)

    def _guide(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """Return the guided output (B, C, *spatial), rescaled if configured."""
        guided = unconditional + self.scale * (conditional - unconditional)
        if self.rescale == 0:
            return guided
        std, target_std = (x.flatten(1).std(dim=1) for x in (guided, conditional))
        ratio = (target_std / std.clamp(min=1e-12)).reshape(-1, *[1] * (guided.ndim - 1))
        return guided * (self.rescale * ratio + 1 - self.rescale)
