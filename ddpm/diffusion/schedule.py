"""Noise schedules: alpha-bar as a function of the timestep."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddpm.errors import ConfigError, require

MAX_BETA = 0.999


class Schedule:
    """Table of alpha-bar in float64; only this class broadcasts it to the rank of a tensor.

    ``x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps`` (Ho et al. 2020, section 2).
    Timesteps are 0 to T-1; -1 is clean data, where alpha-bar is 1.

    Args:
        betas: (T,) float64, the variance added at each step, each in (0, 1).
        zero_terminal_snr: rescale ``sqrt(alpha_bar)`` linearly so that its first value stays and
            its last is 0: x_T is then pure noise, as sampling assumes (Lin et al. 2023,
            arXiv 2305.08891, algorithm 1). Objectives that predict the noise do not support it.

    Raises:
        ConfigError: a beta outside (0, 1), for which alpha-bar would not decrease within (0, 1), or
            an alpha-bar that underflows.
    """

    def __init__(self, betas: Tensor, *, zero_terminal_snr: bool = False) -> None:
        betas = betas.to(torch.float64)
        require(betas.ndim == 1 and len(betas) > 0, "num_steps", len(betas), "needs at least 1")
        bad = ~((betas > 0) & (betas < 1))
        if bad.any():
            at = int(bad.nonzero()[0])
            problem = (
                f"beta at step {at} is {betas[at].item():.4g}, outside (0, 1); use more steps, "
                "other schedule parameters, or schedule=cosine"
            )
            raise ConfigError("num_steps", len(betas), problem)
        self.betas = betas
        self.alpha_bar = torch.cumprod(1 - betas, dim=0)
        problem = "alpha_bar underflows to 0 at the last step; use smaller betas"
        require(bool(self.alpha_bar[-1] > 0), "num_steps", len(betas), problem)
        self.zero_terminal_snr = zero_terminal_snr
        if zero_terminal_snr:
            self._rescale_to_zero_terminal_snr()
        clean_first = torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar])
        self._tables = {torch.device("cpu"): clean_first}

    def _rescale_to_zero_terminal_snr(self) -> None:
        """Rescale alpha-bar so that it ends at 0."""
        require(len(self.betas) > 1, "zero_terminal_snr", True, "needs at least 2 steps")
        signal = self.alpha_bar.sqrt()
        first, last = signal[0], signal[-1]
        self.alpha_bar = ((signal - last) * (first / (first - last))) ** 2
        before = torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar[:-1]])
        self.betas = 1 - self.alpha_bar / before

    @property
    def num_steps(self) -> int:
        """T, the number of timesteps."""
        return len(self.betas)

    def alpha_bar_at(self, t: Tensor | int, like: Tensor | None = None) -> Tensor:
        """Return alpha-bar at t, float64 (B,), or (B, 1, ...) with the rank of ``like``.

        Args:
            t: (B,) timesteps, -1 to T-1, or one of them for a batch of one; at -1 alpha-bar is 1.
            like: (B, C, *spatial), for the rank of the result.
        """
        device = t.device if isinstance(t, Tensor) else torch.device("cpu")
        if device not in self._tables:
            with torch.inference_mode(False):  # training may use this copy as well
                self._tables[device] = self._tables[torch.device("cpu")].to(device)
        at = t.long() if isinstance(t, Tensor) else torch.tensor([t])
        values = self._tables[device][at + 1]
        return values if like is None else values.reshape(-1, *[1] * (like.ndim - 1))

    def scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``sqrt(alpha_bar_t)`` and ``sqrt(1 - alpha_bar_t)``, float32 (B, 1, ...).

        Args:
            t: (B,) integer timesteps, -1 to T-1.
            like: (B, C, *spatial), for the rank of the result.
        """
        alpha_bar = self.alpha_bar_at(t, like)
        return alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()

    def signal_noise(self, t: int) -> tuple[float, float]:
        """Return ``sqrt(alpha_bar_t)`` and ``sqrt(1 - alpha_bar_t)`` of a timestep, as floats."""
        alpha_bar = float(self.alpha_bar_at(t))
        return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)

    def snr(self, t: Tensor) -> Tensor:
        """Return ``alpha_bar / (1 - alpha_bar)``, the signal-to-noise ratio at t, (B,) float64."""
        alpha_bar = self.alpha_bar_at(t)
        return alpha_bar / (1 - alpha_bar)


def linear_betas(num_steps: int, beta_start: float, beta_end: float) -> Tensor:
    """Return betas that rise linearly, (T,) float64.

    Args:
        num_steps: T.
        beta_start: first beta for T = 1000; scaled by 1000/T.
        beta_end: last beta for T = 1000; scaled by 1000/T.
    """
    scale = 1000 / num_steps
    first = beta_start if num_steps > 1 else beta_end  # a single step is the last one
    return torch.linspace(scale * first, scale * beta_end, num_steps, dtype=torch.float64)


def betas_from_alpha_bar(alpha_bar: Tensor, max_beta: float = MAX_BETA) -> Tensor:
    """Return the betas (T,) of a curve of alpha-bar.

    Args:
        alpha_bar: (T+1,) float64, from clean data, where it is 1.
        max_beta: upper limit of the betas.
    """
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta)


def linear(
    *,
    num_steps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    zero_terminal_snr: bool = False,
) -> Schedule:
    """Return the linear schedule of Ho et al. 2020.

    Args:
        num_steps: T.
        beta_start: first beta for T = 1000; scaled by 1000/T (Nichol & Dhariwal 2021).
        beta_end: last beta for T = 1000; scaled by 1000/T.
        zero_terminal_snr: see :class:`Schedule`.

    Raises:
        ConfigError: fewer than 1 step, or so few (below 21 by default) that a beta reaches 1.
    """
    _check_steps(num_steps)
    betas = linear_betas(num_steps, beta_start, beta_end)
    return Schedule(betas, zero_terminal_snr=zero_terminal_snr)


def cosine(
    *,
    num_steps: int = 1000,
    offset: float = 0.008,
    max_beta: float = MAX_BETA,
    zero_terminal_snr: bool = False,
) -> Schedule:
    """Return the cosine schedule of Nichol & Dhariwal 2021, equation 17.

    Args:
        num_steps: T.
        offset: the paper's s, at least 0.
        max_beta: upper limit of the betas, in (0, 1).
        zero_terminal_snr: see :class:`Schedule`.

    Raises:
        ConfigError: an option outside its range.
    """
    _check_steps(num_steps)
    require(offset >= 0, "offset", offset, "must be 0 or above")
    require(0 < max_beta < 1, "max_beta", max_beta, "must be between 0 and 1")
    time = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    curve = torch.cos((time + offset) / (1 + offset) * math.pi / 2) ** 2
    betas = betas_from_alpha_bar(curve, max_beta)
    return Schedule(betas, zero_terminal_snr=zero_terminal_snr)


def sigmoid(
    *,
    num_steps: int = 1000,
    start: float = -3.0,
    end: float = 3.0,
    tau: float = 1.0,
    zero_terminal_snr: bool = False,
) -> Schedule:
    """Return the sigmoid schedule of Jabri et al. 2022 (arXiv 2212.11972), a curve of alpha-bar.

    It is that of denoising-diffusion-pytorch; the ``sigmoid`` of diffusers is a curve of betas.

    Args:
        num_steps: T.
        start: argument of the sigmoid at clean data, before the division by ``tau``.
        end: argument of the sigmoid at T.
        tau: temperature, above 0.
        zero_terminal_snr: see :class:`Schedule`.

    Raises:
        ConfigError: an option outside its range.
    """
    _check_steps(num_steps)
    require(start < end, "start", start, f"must be below end={end}")
    require(tau > 0, "tau", tau, "must be above 0")
    time = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    curve = torch.sigmoid((time * (end - start) + start) / tau)
    # The original rounds the two ends to float32, a relative change of alpha-bar of 3e-5 near T.
    low, high = torch.sigmoid(torch.tensor([start / tau, end / tau])).double()
    alpha_bar = (high - curve) / (high - low)
    betas = betas_from_alpha_bar(alpha_bar / alpha_bar[0])
    return Schedule(betas, zero_terminal_snr=zero_terminal_snr)


def _check_steps(num_steps: int) -> None:
    require(num_steps >= 1, "num_steps", num_steps, "needs at least 1 step")
