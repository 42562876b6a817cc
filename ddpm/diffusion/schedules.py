"""Published noise schedules, as tables of T steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddpm.diffusion.schedule import Schedule
from ddpm.errors import require

MAX_BETA = 0.999


def betas_from_alpha_bar(alpha_bar: Tensor, max_beta: float = MAX_BETA) -> Tensor:
    """Return the betas (T,), at most ``max_beta``, of alpha-bar (T+1,) from clean data on."""
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
        num_steps: T; below 21 by default, a beta reaches 1, which is an error.
        beta_start, beta_end: first and last beta for T = 1000; scaled by 1000/T (Nichol &
            Dhariwal 2021).
        zero_terminal_snr: see :class:`Schedule`.
    """
    require(num_steps >= 1, "num_steps", num_steps, "needs at least 1 step")
    scale = 1000 / num_steps
    first = beta_start if num_steps > 1 else beta_end  # a single step is the last one
    betas = torch.linspace(scale * first, scale * beta_end, num_steps, dtype=torch.float64)
    return Schedule(betas, zero_terminal_snr=zero_terminal_snr)


def table(*, betas: tuple[float, ...], zero_terminal_snr: bool = False) -> Schedule:
    """Return the schedule of a list of betas, such as an imported one.

    Args:
        betas: one per timestep, in (0, 1); the last may be 1, which leaves no signal there.
        zero_terminal_snr: see :class:`Schedule`.
    """
    values = torch.tensor(betas, dtype=torch.float64)
    if len(betas) < 2 or betas[-1] != 1:
        return Schedule(values, zero_terminal_snr=zero_terminal_snr)
    alpha_bar = Schedule(values[:-1]).alpha_bar  # which checks them
    return Schedule.from_alpha_bar(torch.cat([alpha_bar, torch.zeros(1, dtype=torch.float64)]))


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
    """
    require(num_steps >= 1, "num_steps", num_steps, "needs at least 1 step")
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
        start, end: arguments of the sigmoid at clean data and at T, before the division by tau.
        tau: temperature, above 0.
        zero_terminal_snr: see :class:`Schedule`.
    """
    require(num_steps >= 1, "num_steps", num_steps, "needs at least 1 step")
    require(start < end, "start", start, f"must be below end={end}")
    require(tau > 0, "tau", tau, "must be above 0")
    time = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    curve = torch.sigmoid((time * (end - start) + start) / tau)
    # The original rounds the two ends to float32, a relative change of alpha-bar of 3e-5 near T.
    low, high = torch.sigmoid(torch.tensor([start / tau, end / tau])).double()
    alpha_bar = (high - curve) / (high - low)
    betas = betas_from_alpha_bar(alpha_bar / alpha_bar[0])
    return Schedule(betas, zero_terminal_snr=zero_terminal_snr)


def rectified(*, num_steps: int = 1000, shift: float = 1.0) -> Schedule:
    """Return the schedule of rectified flow (Liu et al. 2022, arXiv 2209.03003).

    The straight path ``(1 - u) x0 + u eps`` with ``u = (i + 1) / T`` at timestep i, divided by its
    standard deviation ``sqrt((1 - u)^2 + u^2)``, is a process whose ``alpha_bar`` is
    ``(1 - u)^2 / ((1 - u)^2 + u^2)``. An Euler step along the velocity ``eps - x0`` is a DDIM step.
    The last timestep has no signal.

    Args:
        num_steps: T, at least 2.
        shift: m of ``u' = m u / (1 + (m - 1) u)``, above 0: more noise at the same timestep above
            1, usual for large images (Esser et al. 2024, arXiv 2403.03206, section 5.3.2).
    """
    require(num_steps >= 2, "num_steps", num_steps, "needs at least 2 steps")
    require(shift > 0, "shift", shift, "must be above 0; 1 is off")
    time = torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps
    time = shift * time / (1 + (shift - 1) * time)
    signal = (1 - time) ** 2
    signal[-1] = 0  # a shift may leave a rounding error
    return Schedule.from_alpha_bar(signal / (signal + time**2))


def edm(*, num_steps: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Schedule:
    """Return the schedule of EDM (Karras et al. 2022, arXiv 2206.00364): ``x0 + sigma eps``.

    Divided by its standard deviation, it is a process with ``alpha_bar = 1 / (1 + sigma^2)``. The
    timesteps are uniform in ``log(sigma)``: the table is exact between them too, because a schedule
    interpolates log-SNR, which is ``-2 log(sigma)``.

    Args:
        num_steps: T, at least 2.
        sigma_min, sigma_max: sigma of timesteps 0 and T-1, above 0.
    """
    require(num_steps >= 2, "num_steps", num_steps, "needs at least 2 steps")
    require(sigma_min > 0, "sigma_min", sigma_min, "must be above 0")
    problem = f"must be below sigma_max={sigma_max}"
    require(sigma_min < sigma_max, "sigma_min", sigma_min, problem)
    ends = math.log(sigma_min), math.log(sigma_max)
    sigma = torch.linspace(*ends, num_steps, dtype=torch.float64).exp()
    return Schedule.from_alpha_bar(1 / (1 + sigma**2))
