"""Heun's method with churn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm.errors import require
from ddpm.samplers.base import Sampler, SamplingPath, StepContext
from ddpm.samplers.grids import Spacing

MAX_CHURN = math.sqrt(2) - 1
"""Largest relative increase of the noise level per step (Karras et al. 2022, algorithm 2)."""


class Coefficients(NamedTuple):
    """Factors of a step from t, by way of the noisier time t_hat, to s.

    ``x_hat = x x_t + fresh z`` with new noise z, ``x_s = signal x0 + noise eps`` by Euler's method,
    corrected by ``correction (x0' - x0)`` with the prediction x0' at s; None without a correction.
    """

    t_hat: float
    x: float
    fresh: float
    signal: float
    noise: float
    correction: float | None


@dataclass(kw_only=True, eq=False)
class Heun(Sampler):
    """Heun's method (Karras et al. 2022, arXiv 2206.00364, algorithm 2), of order 2.

    It solves ``d(x / alpha) / d rho = eps`` in ``rho = sigma / alpha``, the sigma of the paper, in
    two network calls per step, one in the step to clean data. From pure noise without signal, where
    rho is infinite, the first step is the trapezoidal rule in 1 / rho. The other steps in rho must
    not be long at high noise: for the cosine and sigmoid schedules, whose rho rises above 1,000,
    use ``karras`` or ``log_snr``.

    Args:
        steps: with two network calls each, one in the last; null = 20. See :class:`Sampler`.
        churn: S_churn of the paper, 0 for the deterministic sampler. Each step first adds noise, to
            ``1 + churn / number of steps`` times rho, at most ``sqrt(2)`` times; never beyond the
            noise of timestep T-1.
        s_min, s_max: lowest and highest rho at which noise is added; null = no limit.
        s_noise: standard deviation of the new noise.
    """

    default_steps = 20

    spacing: Spacing = "karras"
    churn: float = 0.0
    s_min: float = 0.0
    s_max: float | None = None
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("churn", "s_min", "s_noise"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be 0 or above")
        good = self.s_max is None or self.s_max >= self.s_min
        require(good, "s_max", self.s_max, f"must be at least s_min={self.s_min}")

    def num_calls(self, num_steps: int, clean: bool = True) -> int:
        """Return the number of network calls of a path: two per step, one to clean data."""
        return max(2 * num_steps - clean, 0)

    def coefficients(self, path: SamplingPath) -> list[Coefficients]:
        return [self._factors(path, index) for index in range(len(path))]

    def _factors(self, path: SamplingPath, index: int) -> Coefficients:
        t, (signal, noise) = path.times[index], (path.alphas[index + 1], path.sigmas[index + 1])
        t_hat = self._churned_time(path, index)
        alpha, sigma = path.schedule.signal_noise(t_hat)
        scale = 1.0 if t_hat == t else alpha / path.alphas[index]
        fresh = self.s_noise * max(sigma**2 - (scale * path.sigmas[index]) ** 2, 0.0) ** 0.5
        correction = None
        if noise > 0:  # eps' - eps = (x0 - x0') signal / noise at the end of Euler's step
            correction = signal / 2
            if alpha > 0:
                correction *= sigma * signal / (alpha * noise) - 1
        return Coefficients(t_hat, scale, fresh, signal, noise, correction)

    def _churned_time(self, path: SamplingPath, index: int) -> float:
        """Return the time to which a step adds noise; its start if it adds none."""
        t, rho = path.times[index], math.exp(-path.lambdas[index])
        limit = math.inf if self.s_max is None else self.s_max
        if self.churn == 0 or math.isinf(rho) or not self.s_min <= rho <= limit:
            return t
        growth = 1 + min(self.churn / len(path), MAX_CHURN)
        return max(path.schedule.time(-2 * math.log(rho * growth)), t)

    def step(self, context: StepContext) -> Tensor:
        factors, x = context.coefficients, context.x
        keep = context.diffusion.conditioning_mask.apply
        if factors.t_hat != context.t:
            noisier = torch.add(factors.x * x, context.randn_like(x), alpha=factors.fresh)
            x = keep(noisier, context.x)
        now = context.denoise(x, factors.t_hat)
        if factors.correction is None:
            return now.x0
        euler = torch.add(factors.signal * now.x0, now.eps, alpha=factors.noise)
        euler = keep(euler, context.x)
        ahead = context.denoise(euler, context.s)
        return euler.add(ahead.x0 - now.x0, alpha=factors.correction)
