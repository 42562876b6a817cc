"""Denoisers: from x_t and the network to predictions of x0 and noise."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from ddpm.diffusion.conditioning import Conditioning
from ddpm.diffusion.process import GaussianDiffusion, Network, Prediction

Clip = Literal["none", "static", "dynamic"]


@runtime_checkable
class DenoiserProtocol(Protocol):
    """Interface that samplers and guidance require of a denoiser.

    Attributes:
        diffusion: the process.
        needs_gradients: True if a call differentiates the network, which ``torch.inference_mode``
            forbids.
    """

    diffusion: GaussianDiffusion
    needs_gradients: bool

    def __call__(
        self,
        x_t: Tensor,
        t: float,
        previous_x0: Tensor | None = None,
        conditioning: Conditioning | None = None,
    ) -> Prediction:
        """Predict x0 and the noise from x_t.

        Args:
            x_t: (B, C, *spatial), float32.
            t: real time of the whole batch, 0 to T-1.
            previous_x0: earlier prediction of x0, for a self-conditioned network.
            conditioning: of the batch; None for an unconditional network.
        """
        ...


class Denoiser:
    """Predicts with a network; x0 is not clipped.

    Args:
        model: the network, called as ``model(x_t, time, y=..., x_self_cond=...)``. Whole times are
            int64, others float32.
        diffusion: the process the network was trained for.
    """

    needs_gradients = False

    def __init__(self, model: Network, diffusion: GaussianDiffusion) -> None:
        self.model, self.diffusion = model, diffusion

    def __call__(
        self,
        x_t: Tensor,
        t: float,
        previous_x0: Tensor | None = None,
        conditioning: Conditioning | None = None,
    ) -> Prediction:
        """Predict x0 and the noise; see :class:`DenoiserProtocol`."""
        return self.diffusion.predict(self.model, x_t, t, previous_x0, conditioning)


class DenoiserWrapper:
    """Base class of denoisers that wrap a denoiser, and call nothing but it.

    Args:
        denoiser: the denoiser.
    """

    def __init__(self, denoiser: DenoiserProtocol) -> None:
        self.denoiser, self.diffusion = denoiser, denoiser.diffusion
        self.needs_gradients = denoiser.needs_gradients


def without_gradients(denoiser: DenoiserProtocol) -> AbstractContextManager[Any]:
    """Return the fastest context without gradients in which a denoiser can be called."""
    return torch.no_grad() if denoiser.needs_gradients else torch.inference_mode()


class Clipping(DenoiserWrapper):
    """Wraps a denoiser; the predicted x0 is clipped to the range of the data.

    The noise is what the clipped x0 leaves in x_t.

    Args:
        denoiser: the denoiser.
        clip: ``static`` clamps x0 to the bounds; ``dynamic`` clamps each sample at a quantile of
            its magnitudes and rescales it to the bounds (Saharia et al. 2022, arXiv 2205.11487,
            section 2.3); ``none`` leaves it as it is.
        bounds: range of clean data in model space.
        dynamic_quantile: the quantile of ``dynamic``, in (0, 1].
    """

    def __init__(
        self,
        denoiser: DenoiserProtocol,
        clip: Clip = "static",
        *,
        bounds: tuple[float, float] = (-1.0, 1.0),
        dynamic_quantile: float = 0.995,
    ) -> None:
        super().__init__(denoiser)
        self.clip, self.bounds, self.dynamic_quantile = clip, bounds, dynamic_quantile

    def __call__(
        self,
        x_t: Tensor,
        t: float,
        previous_x0: Tensor | None = None,
        conditioning: Conditioning | None = None,
    ) -> Prediction:
        """Predict x0 and the noise; see :class:`DenoiserProtocol`."""
        prediction = self.denoiser(x_t, t, previous_x0, conditioning)
        if self.clip == "none":
            return prediction
        mask = self.diffusion.conditioning_mask
        return prediction.with_x0(mask.apply(self.clip_x0(prediction.x0), x_t))

    def clip_x0(self, x0: Tensor) -> Tensor:
        """Return ``x0`` (B, C, *spatial) clipped to the bounds."""
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
