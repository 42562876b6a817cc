"""Noise schedules: how much of the signal is left at step t."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddpm.errors import ConfigError, require

MAX_BETA = 0.999


class Schedule:
    """A table of alpha-bar in float64, and the only place that broadcasts it to a tensor's rank.

    Steps are counted 0..T-1; -1 is clean data, where alpha-bar is 1. Reference: Ho et al. 2020,
    section 2, ``x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps``.

    Args:
        betas: (T,) float64, the variance added at each step, each in (0, 1).
        zero_terminal_snr: shift and stretch ``sqrt(alpha_bar)`` so that its first value stays and
            its last is 0: x_T is then pure noise, as sampling takes it to be (Lin et al. 2023,
            arXiv 2305.08891, algorithm 1). The noise cannot be predicted from such an x_T.

    Raises:
        ConfigError: a beta outside (0, 1), which would make alpha-bar negative or not falling.
    """

    def __init__(self, betas: Tensor, *, zero_terminal_snr: bool = False) -> None:
        betas = betas.to(torch.float64)
        require(betas.ndim == 1 and len(betas) > 0, "num_steps", len(betas), "needs at least 1")
        bad = ~((betas > 0) & (betas < 1))
        if bad.any():
            at = int(bad.nonzero()[0])
            problem = (
                f"beta at step {at} is {betas[at].item():.4g}, outside (0, 1); take more steps, "
                "other schedule parameters, or schedule=cosine"
            )
            raise ConfigError("num_steps", len(betas), problem)
        self.betas = betas
        self.alpha_bar = torch.cumprod(1 - betas, dim=0)
        gone = "so much noise that float64 has no signal left at the end; take smaller betas"
        require(bool(self.alpha_bar[-1] > 0), "num_steps", len(betas), gone)
        self.ends_in_noise = zero_terminal_snr
        if zero_terminal_snr:
            self._end_in_noise()
        clean_first = torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar])
        self._tables = {torch.device("cpu"): clean_first}

    def _end_in_noise(self) -> None:
        """Let the signal end at 0."""
        require(len(self.betas) > 1, "zero_terminal_snr", True, "needs at least 2 steps")
        signal = self.alpha_bar.sqrt()
        first, last = signal[0], signal[-1]
        self.alpha_bar = ((signal - last) * (first / (first - last))) ** 2
        before = torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar[:-1]])
        self.betas = 1 - self.alpha_bar / before

    @property
    def num_steps(self) -> int:
        """T, the number of steps of the whole process."""
        return len(self.betas)

    def alpha_bar_at(self, t: Tensor | int, like: Tensor | None = None) -> Tensor:
        """Alpha-bar at t in float64: (B,) for t (B,), or with ``like``'s rank, (B, 1, ...).

        ``t`` may be an int, which stands for a batch of one; -1 gives 1.
        """
        device = t.device if isinstance(t, Tensor) else torch.device("cpu")
        if device not in self._tables:
            with torch.inference_mode(False):  # training may use what sampling has asked for
                self._tables[device] = self._tables[torch.device("cpu")].to(device)
        at = t.long() if isinstance(t, Tensor) else torch.tensor([t])
        values = self._tables[device][at + 1]
        return values if like is None else values.reshape(-1, *[1] * (like.ndim - 1))

    def scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """``sqrt(alpha_bar_t)`` and ``sqrt(1 - alpha_bar_t)``, float32, in ``like``'s rank.

        Args:
            t: (B,) integer steps.
            like: (B, C, *spatial), gives the rank to broadcast to.
        """
        alpha_bar = self.alpha_bar_at(t, like)
        return alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()

    def signal_noise(self, t: int) -> tuple[float, float]:
        """The same two numbers at one step, as Python floats for samplers."""
        alpha_bar = float(self.alpha_bar_at(t))
        return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio ``alpha_bar / (1 - alpha_bar)``, (B,) float64."""
        alpha_bar = self.alpha_bar_at(t)
        return alpha_bar / (1 - alpha_bar)


def linear_betas(num_steps: int, beta_start: float, beta_end: float) -> Tensor:
    """Betas that rise linearly, (T,) float64; the ends are for T = 1000 and scale with 1000/T."""
    scale = 1000 / num_steps
    first = beta_start if num_steps > 1 else beta_end  # a single step has to be the last
    return torch.linspace(scale * first, scale * beta_end, num_steps, dtype=torch.float64)


def betas_from_alpha_bar(alpha_bar: Tensor, max_beta: float = MAX_BETA) -> Tensor:
    """Betas (T,) of a curve (T+1,) of alpha-bar that starts at clean data, capped."""
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta)


def linear(
    *,
    num_steps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    zero_terminal_snr: bool = False,
) -> Schedule:
    """The linear schedule of Ho et al. 2020, its ends scaled by 1000/T (Nichol & Dhariwal 2021).

    Raises:
        ConfigError: fewer than 1 step, or so few (under 21 with these ends) that a beta reaches 1.
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
    """The cosine schedule of Nichol & Dhariwal 2021, equation 17, betas capped at ``max_beta``."""
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
    """The sigmoid schedule of Jabri et al. 2022 (arXiv 2212.11972), a curve of alpha-bar.

    This is denoising-diffusion-pytorch's curve; diffusers gives the name to a curve of betas.
    """
    _check_steps(num_steps)
    require(start < end, "start", start, f"must lie below end={end}")
    require(tau > 0, "tau", tau, "must be above 0")
    time = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    curve = torch.sigmoid((time * (end - start) + start) / tau)
    # The original rounds the two ends to float32, which moves alpha-bar by 3e-5 of itself near T.
    low, high = torch.sigmoid(torch.tensor([start / tau, end / tau])).double()
    alpha_bar = (high - curve) / (high - low)
    betas = betas_from_alpha_bar(alpha_bar / alpha_bar[0])
    return Schedule(betas, zero_terminal_snr=zero_terminal_snr)


def _check_steps(num_steps: int) -> None:
    require(num_steps >= 1, "num_steps", num_steps, "needs at least 1 step")
