"""Objectives: the target of the network, its inverse, the error and its weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm.errors import require

Scale = Tensor | float


class Objective(ABC):
    """Base class of objectives: a linear map of (x0, eps), its inverse and its loss.

    In all methods ``a`` and ``s`` are ``sqrt(alpha_bar_t)`` and ``sqrt(1 - alpha_bar_t)``: floats
    for a batch with one time, else float32 tensors that are broadcastable to the (B, C, *spatial)
    tensors; ``x_t = a x0 + s eps``.

    Args:
        loss: ``l2``, ``l1`` or ``huber`` (quadratic below 1, linear above).
        weighting: ``uniform`` weights every timestep with 1; ``noise`` turns the loss into the
            squared error of the noise, the default of denoising-diffusion-pytorch.
        min_snr_gamma: truncates the SNR of the ``noise`` weighting at this value (Hang et al.
            2023, arXiv 2303.09556, where it is 5); null = off.

    Raises:
        ConfigError: ``min_snr_gamma`` of 0 or below.
    """

    requires_signal: ClassVar[bool] = False
    """True if the output does not determine x0 where no signal is left (a = 0)."""

    def __init__(
        self,
        *,
        loss: Literal["l2", "l1", "huber"] = "l2",
        weighting: Literal["uniform", "noise"] = "uniform",
        min_snr_gamma: float | None = None,
    ) -> None:
        gamma = min_snr_gamma
        require(gamma is None or gamma > 0, "min_snr_gamma", gamma, "must be above 0, or null")
        self.loss, self.weighting, self.min_snr_gamma = loss, weighting, min_snr_gamma

    def scale_input(self, x_t: Tensor, a: Scale, s: Scale) -> Tensor:
        """Return the input of the network (B, C, *spatial); by default x_t itself."""
        return x_t

    def network_time(self, t: Scale, a: Scale, s: Scale) -> Scale:
        """Return the time input of the network; by default t itself.

        Args:
            t: (B,) times, or one for the batch.
            a: (B,) or a float, as t is.
            s: (B,) or a float, as t is.
        """
        return t

    @abstractmethod
    def target(self, x0: Tensor, eps: Tensor, a: Scale, s: Scale) -> Tensor:
        """Return the target of the network, (B, C, *spatial)."""

    @abstractmethod
    def x0(self, x_t: Tensor, output: Tensor, a: Scale, s: Scale) -> Tensor:
        """Return x0 (B, C, *spatial) as implied by x_t and the network's output."""

    @abstractmethod
    def noise_weight(self, snr: Tensor, capped: Tensor) -> Tensor:
        """Return the factor (B,) that turns this objective's squared error into that of the noise.

        Args:
            snr: (B,) signal-to-noise ratio.
            capped: (B,) the same, truncated for min-SNR.
        """

    def weight(self, snr: Tensor) -> Tensor:
        """Return the loss weights (B,) of signal-to-noise ratios (B,)."""
        if self.min_snr_gamma is None and self.weighting == "uniform":
            return torch.ones_like(snr)
        gamma = float("inf") if self.min_snr_gamma is None else self.min_snr_gamma
        return self.noise_weight(snr, snr.clamp(max=gamma))

    def error(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the unweighted loss of each entry, (B, C, *spatial) float32."""
        functions = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}
        return functions[self.loss](output.float(), target.float(), reduction="none")


class PredNoise(Objective):
    """The network predicts the noise eps (Ho et al. 2020, equation 14)."""

    requires_signal = True

    def target(self, x0: Tensor, eps: Tensor, a: Scale, s: Scale) -> Tensor:
        """Return ``eps``."""
        return eps

    def x0(self, x_t: Tensor, output: Tensor, a: Scale, s: Scale) -> Tensor:
        """Return ``(x_t - s output) / a``."""
        return (x_t - s * output) / a

    def noise_weight(self, snr: Tensor, capped: Tensor) -> Tensor:
        """Return ``min(snr, gamma) / snr``."""
        return capped / snr


class PredX0(Objective):
    """The network predicts the clean data x0."""

    def target(self, x0: Tensor, eps: Tensor, a: Scale, s: Scale) -> Tensor:
        """Return ``x0``."""
        return x0

    def x0(self, x_t: Tensor, output: Tensor, a: Scale, s: Scale) -> Tensor:
        """Return the output itself."""
        return output

    def noise_weight(self, snr: Tensor, capped: Tensor) -> Tensor:
        """Return ``min(snr, gamma)``."""
        return capped


class PredV(Objective):
    """The network predicts ``v = a eps - s x0`` (Salimans & Ho 2022, arXiv 2202.00512, app. D)."""

    def target(self, x0: Tensor, eps: Tensor, a: Scale, s: Scale) -> Tensor:
        """Return ``a eps - s x0``."""
        return a * eps - s * x0

    def x0(self, x_t: Tensor, output: Tensor, a: Scale, s: Scale) -> Tensor:
        """Return ``a x_t - s output``."""
        return a * x_t - s * output

    def noise_weight(self, snr: Tensor, capped: Tensor) -> Tensor:
        """Return ``min(snr, gamma) / (snr + 1)``."""
        return capped / (snr + 1)
