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

    ``x_hat = scale x_t + fresh z`` with new noise z; ``x_s = alpha_s x0 + sigma_s eps`` by Euler's
    method with the prediction from x_hat; by Heun's ``x_s + correction (x0' - x0)`` with the
    prediction x0' from that x_s, or None in the step to clean data.
    """

    t_hat: float
    scale: float
    fresh: float
    alpha_s: float
    sigma_s: float
    correction: float | None


@dataclass(kw_only=True, eq=False)
class Heun(Sampler):
    """Heun's method (Karras et al. 2022, arXiv 2206.00364, algorithm 2), of order 2.

    It solves ``d(x / alpha) / d level = eps`` in the noise level ``sigma / alpha``, the paper's
    sigma, in two network calls per step, one in the step to clean data. From pure noise without
    signal, where the level is infinite, the first step is the trapezoidal rule in ``1 / level``.
    The other steps must not be long at high noise: for the cosine and sigmoid schedules, whose
    level rises above 1,000, use ``karras`` or ``log_snr``.

    Args:
        steps: with two network calls each, one in the last; null = 20. See :class:`Sampler`.
        churn: S_churn of the paper, 0 for the deterministic sampler. Each step first adds noise, to
            ``1 + churn / number of steps`` times its level, at most ``sqrt(2)`` times; never beyond
            that of timestep T-1.
        s_min, s_max: lowest and highest level at which noise is added; null = no limit.
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
        return [self._step_coefficients(path, index) for index in range(len(path))]

    def _step_coefficients(self, path: SamplingPath, index: int) -> Coefficients:
        """Return the factors of a step."""
        t, alpha_s, sigma_s = path.times[index], path.alphas[index + 1], path.sigmas[index + 1]
        t_hat = self._churned_time(path, index)
        alpha_hat, sigma_hat = path.schedule.signal_noise(t_hat)
        scale = 1.0 if t_hat == t else alpha_hat / path.alphas[index]
        fresh = self.s_noise * max(sigma_hat**2 - (scale * path.sigmas[index]) ** 2, 0.0) ** 0.5
        correction = None
        if sigma_s > 0:
            # In 1 / level, the trapezoidal rule adds sigma_s (1 / level_s) (x0' - x0) / 2. In the
            # level it adds alpha_s (level_s - level_hat) (eps' - eps) / 2 to Euler's x_s, at which
            # eps' - eps = alpha_s (x0 - x0') / sigma_s.
            correction = alpha_s / 2
            if alpha_hat > 0:
                correction *= sigma_hat * alpha_s / (alpha_hat * sigma_s) - 1
        return Coefficients(t_hat, scale, fresh, alpha_s, sigma_s, correction)

    def _churned_time(self, path: SamplingPath, index: int) -> float:
        """Return the time t_hat to which a step adds noise; its start t if it adds none."""
        t, level = path.times[index], math.exp(-path.lambdas[index])
        s_max = math.inf if self.s_max is None else self.s_max
        if self.churn == 0 or math.isinf(level) or not self.s_min <= level <= s_max:
            return t
        growth = 1 + min(self.churn / len(path), MAX_CHURN)
        return max(path.schedule.time(-2 * math.log(level * growth)), t)

    def step(self, context: StepContext) -> Tensor:
        """Return x_s in one or two network calls; conditioning entries stay those of x_t."""
        factors, x_hat = context.coefficients, context.x
        keep_conditions = context.diffusion.conditioning_mask.apply
        if factors.t_hat != context.t:
            noise = context.randn_like(x_hat)
            x_hat = torch.add(factors.scale * x_hat, noise, alpha=factors.fresh)
            x_hat = keep_conditions(x_hat, context.x)
        prediction = context.denoise(x_hat, factors.t_hat)
        if factors.correction is None:
            return prediction.x0
        x_s = torch.add(factors.alpha_s * prediction.x0, prediction.eps, alpha=factors.sigma_s)
        x_s = keep_conditions(x_s, context.x)
        corrected = context.denoise(x_s, context.s)
        return x_s.add(corrected.x0 - prediction.x0, alpha=factors.correction)
