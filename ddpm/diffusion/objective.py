"""Objectives: input, time and target of the network, and the inverse of the target."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ddpm.errors import ConfigError, require

Scale = Tensor | float


def add_scaled(x: Tensor, factor: Scale, y: Tensor) -> Tensor:
    """Return ``x + factor y`` (B, C, *spatial), in one operation where the factor is a float."""
    return x + factor * y if isinstance(factor, Tensor) else x.add(y, alpha=factor)


class Objective(ABC):
    """Base class of objectives: a linear map of (x0, eps) and its inverse.

    In all methods ``a`` and ``s`` are ``sqrt(alpha_bar_t)`` and ``sqrt(1 - alpha_bar_t)``: floats
    for a batch with one time, else float32 tensors that are broadcastable to the (B, C, *spatial)
    tensors; ``x_t = a x0 + s eps``.

    The options describe the error of the output, which :class:`~ddpm.diffusion.DiffusionLoss`
    computes.

    Args:
        loss: ``l2``, ``l1`` or ``huber`` (quadratic below 1, linear above).
        weighting: ``uniform`` weights every timestep with 1; ``noise`` turns the loss into the
            squared error of the noise, the default of denoising-diffusion-pytorch.
        min_snr_gamma: truncates the SNR of the ``noise`` weighting at this value (Hang et al.
            2023, arXiv 2303.09556, where it is 5), above 0; null = off.
    """

    signal_reason: ClassVar[str | None] = None
    """Reason why the objective is not defined where no signal is left (a = 0); None if it is."""
    measured: ClassVar[tuple[str, ...]] = ()
    """Options that are the standard deviation of the training data where they are null."""

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

    @property
    def preconditions(self) -> bool:
        """True if the class has an input or a time of the network of its own."""
        own = type(self)
        same = own.scale_input is Objective.scale_input
        return not (same and own.network_time is Objective.network_time)

    def scale_input(self, x_t: Tensor, a: Scale, s: Scale) -> Tensor:
        """Return the input of the network (B, C, *spatial); by default x_t itself."""
        return x_t

    def network_time(self, t: Scale, a: Scale, s: Scale) -> Scale:
        """Return the time input of the network, (B,) or a float as the arguments; by default t."""
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

        The signal-to-noise ratios ``capped`` are (B,) as ``snr``, and truncated for min-SNR.
        """

    def weight(self, snr: Tensor) -> Tensor:
        """Return the loss weights (B,) of signal-to-noise ratios (B,)."""
        if self.min_snr_gamma is None and self.weighting == "uniform":
            return torch.ones_like(snr)
        gamma = math.inf if self.min_snr_gamma is None else self.min_snr_gamma
        return self.noise_weight(snr, snr.clamp(max=gamma))


class PredNoise(Objective):
    """The network predicts the noise eps (Ho et al. 2020, equation 14)."""

    signal_reason = "the noise does not determine x0 (Lin et al. 2023)"

    def target(self, x0: Tensor, eps: Tensor, a: Scale, s: Scale) -> Tensor:
        return eps

    def x0(self, x_t: Tensor, output: Tensor, a: Scale, s: Scale) -> Tensor:
        return add_scaled(x_t, -s, output) / a

    def noise_weight(self, snr: Tensor, capped: Tensor) -> Tensor:
        return capped / snr


class PredX0(Objective):
    """The network predicts the clean data x0."""

    def target(self, x0: Tensor, eps: Tensor, a: Scale, s: Scale) -> Tensor:
        return x0

    def x0(self, x_t: Tensor, output: Tensor, a: Scale, s: Scale) -> Tensor:
        return output

    def noise_weight(self, snr: Tensor, capped: Tensor) -> Tensor:
        return capped


class PredV(Objective):
    """The network predicts ``v = a eps - s x0`` (Salimans & Ho 2022, arXiv 2202.00512, app. D)."""

    def target(self, x0: Tensor, eps: Tensor, a: Scale, s: Scale) -> Tensor:
        return a * eps - s * x0

    def x0(self, x_t: Tensor, output: Tensor, a: Scale, s: Scale) -> Tensor:
        return add_scaled(a * x_t, -s, output)

    def noise_weight(self, snr: Tensor, capped: Tensor) -> Tensor:
        return capped / (snr + 1)


class PredFlow(Objective):
    """The network predicts the velocity ``eps - x0`` of rectified flow (Liu et al. 2022).

    Its input is ``x_t / (a + s)``, which is ``(1 - u) x0 + u eps`` at the flow's time
    ``u = s / (a + s)``. The time input is t: on the schedule ``rectified`` without a shift it is
    ``T u - 1``, in the range that networks for T timesteps expect.
    """

    def scale_input(self, x_t: Tensor, a: Scale, s: Scale) -> Tensor:
        return x_t / (a + s)

    def target(self, x0: Tensor, eps: Tensor, a: Scale, s: Scale) -> Tensor:
        return eps - x0

    def x0(self, x_t: Tensor, output: Tensor, a: Scale, s: Scale) -> Tensor:
        return add_scaled(x_t, -s, output) / (a + s)

    def noise_weight(self, snr: Tensor, capped: Tensor) -> Tensor:
        return capped / (1 + snr.sqrt()) ** 2


class EDM(Objective):
    """The network predicts F of EDM's preconditioning (Karras et al. 2022, table 1).

    ``D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)`` with ``x = x_t / a`` and
    ``sigma = s / a``. Input and target have unit variance for data of standard deviation
    ``sigma_data``. The paper's weight of the error in x0, multiplied by ``c_out^2``, is 1:
    ``weighting=uniform``. For a ``sigma_data`` of 1, F is ``-v``.

    Args:
        loss, weighting, min_snr_gamma: see :class:`Objective`.
        sigma_data: standard deviation of the data in model space, above 0; null = that of the
            training data, measured at the start of a run, without which it is an error.
    """

    signal_reason = "the time input ln(sigma) / 4 is infinite"
    measured = ("sigma_data",)

    def __init__(
        self,
        *,
        loss: Literal["l2", "l1", "huber"] = "l2",
        weighting: Literal["uniform", "noise"] = "uniform",
        min_snr_gamma: float | None = None,
        sigma_data: float | None = None,
    ) -> None:
        super().__init__(loss=loss, weighting=weighting, min_snr_gamma=min_snr_gamma)
        if sigma_data is None:
            problem = "is measured at the start of a training only; set a number, such as 0.5"
            raise ConfigError("sigma_data", None, problem)
        require(sigma_data > 0, "sigma_data", sigma_data, "must be above 0")
        self.sigma_data = sigma_data

    def _variance(self, a: Scale, s: Scale) -> Scale:
        """Return the variance of x_t, ``a^2 sigma_data^2 + s^2``."""
        return (a * self.sigma_data) ** 2 + s**2

    def scale_input(self, x_t: Tensor, a: Scale, s: Scale) -> Tensor:
        """Return ``c_in x_t / a``, which has unit variance."""
        return x_t / self._variance(a, s) ** 0.5

    def network_time(self, t: Scale, a: Scale, s: Scale) -> Scale:
        """Return ``c_noise``, ``ln(sigma) / 4``, whatever t is."""
        sigma = s / a
        return sigma.log() / 4 if isinstance(sigma, Tensor) else math.log(sigma) / 4

    def target(self, x0: Tensor, eps: Tensor, a: Scale, s: Scale) -> Tensor:
        """Return ``(x0 - c_skip x_t / a) / c_out``."""
        scale = self.sigma_data * self._variance(a, s) ** 0.5
        return (s * x0 - (self.sigma_data**2 * a) * eps) / scale

    def x0(self, x_t: Tensor, output: Tensor, a: Scale, s: Scale) -> Tensor:
        """Return ``c_skip x_t / a + c_out output``."""
        variance = self._variance(a, s)
        skip, scale = self.sigma_data**2 * a / variance, self.sigma_data * s / variance**0.5
        return add_scaled(skip * x_t, scale, output)

    def noise_weight(self, snr: Tensor, capped: Tensor) -> Tensor:
        variance = self.sigma_data**2
        return capped * variance / (1 + variance * snr)
