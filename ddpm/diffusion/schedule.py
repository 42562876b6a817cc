"""The noise schedule: alpha-bar as a function of time."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Any, TypeVar

import torch
from torch import Tensor

from ddpm.errors import ConfigError, require

Time = TypeVar("Time", float, Tensor)
CPU = torch.device("cpu")


class Schedule:
    """Table of alpha-bar in float64, and its interpolation to real times.

    ``x_t = alpha(t) x0 + sigma(t) eps``, ``alpha^2 = alpha_bar``, ``sigma^2 = 1 - alpha_bar`` (Ho
    et al. 2020, section 2). Time t is real, from 0 to T-1, where a whole t is a timestep of the
    table; -1 is clean data, where alpha is 1. Between two timesteps ``log_snr`` is linear in t;
    next to a timestep without signal, where it is minus infinity, alpha is linear. The methods
    return a float for a float, without a synchronization with a GPU, and for times (B,) a float64
    tensor (B,), or (B, 1, ...) with the rank of a tensor ``like``.

    Args:
        betas: (T,) float64, the variance added at each step, each in (0, 1).
        zero_terminal_snr: rescale ``sqrt(alpha_bar)`` linearly so that its first value stays and
            its last is 0: x_T is then pure noise, as sampling assumes (Lin et al. 2023,
            arXiv 2305.08891, algorithm 1). Objectives that predict the noise do not support it.

    Raises:
        ConfigError: a beta outside (0, 1), for which alpha-bar would not decrease within (0, 1), or
            an alpha-bar that underflows.
    """

    rescaled = False
    """True if the option ``zero_terminal_snr`` has removed the signal of the last timestep."""

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
        alpha_bar = torch.cumprod(1 - betas, dim=0)
        problem = "alpha_bar underflows to 0 at the last step; use smaller betas"
        require(bool(alpha_bar[-1] > 0), "num_steps", len(betas), problem)
        if zero_terminal_snr:
            require(len(betas) > 1, "zero_terminal_snr", True, "needs at least 2 steps")
            signal = alpha_bar.sqrt()
            first, last = signal[0], signal[-1]
            alpha_bar = ((signal - last) * (first / (first - last))) ** 2
            betas, self.rescaled = _betas(alpha_bar), True
        self._set(alpha_bar, betas)

    def _set(self, alpha_bar: Tensor, betas: Tensor) -> None:
        """Set the tables; both (T,) float64."""
        self.alpha_bar, self.betas, self.num_steps = alpha_bar, betas, len(betas)
        self.zero_terminal_snr = float(alpha_bar[-1]) == 0
        # From clean data on, T+1 values: on each device, and as floats.
        self._tables = {CPU: torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar])}
        self._values: list[float] = self._tables[CPU].tolist()
        self._negative_log_snrs = [-_log_snr(value) for value in self._values[1:]]  # ascending

    @classmethod
    def from_alpha_bar(cls, alpha_bar: Tensor) -> Schedule:
        """Return the schedule of a table of alpha-bar, without limit of the betas.

        Args:
            alpha_bar: (T,) float64, decreasing within (0, 1); the last may be 0.
        """
        schedule = cls.__new__(cls)
        schedule._set(alpha_bar, _betas(alpha_bar))
        return schedule

    def alpha(self, t: Time) -> Time:
        """Return the factor of the clean data at real t, from 1 at -1 down to the last timestep."""
        return _sqrt(self.alpha_bar_at(t))

    def sigma(self, t: Time) -> Time:
        """Return the standard deviation of the noise at real t, ``sqrt(1 - alpha(t)^2)``."""
        return _sqrt(1 - self.alpha_bar_at(t))

    def signal_noise(self, t: float) -> tuple[float, float]:
        """Return alpha and sigma at a real t, as floats."""
        return self.alpha(t), self.sigma(t)

    def scales(self, t: Tensor | float, like: Tensor | None = None) -> tuple[Any, Any]:
        """Return alpha and sigma at t; tensors in float32."""
        if not isinstance(t, Tensor):
            return self.signal_noise(t)
        alpha_bar = self.alpha_bar_at(t, like)
        return alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()

    def snr(self, t: Tensor) -> Tensor:
        """Return ``alpha_bar / (1 - alpha_bar)``, the signal-to-noise ratio at times (B,)."""
        alpha_bar = self.alpha_bar_at(t)
        return alpha_bar / (1 - alpha_bar)

    def log_snr(self, t: Time) -> Time:
        """Return ``log(alpha(t)^2 / sigma(t)^2)`` at real t; infinity at clean data."""
        return _log_snr(self.alpha_bar_at(t))

    def time(self, log_snr: float) -> float:
        """Return the real t of a ``log_snr``, the inverse of :meth:`log_snr`.

        Values above that of timestep 0 give 0, values below that of timestep T-1 give T-1. Whole
        results are integers.
        """
        table = self._negative_log_snrs
        upper = bisect_left(table, -log_snr)
        if upper == self.num_steps:
            return self.num_steps - 1
        if upper == 0 or table[upper] == -log_snr:
            return upper
        if math.isinf(table[upper]):
            high = self._values[upper] ** 0.5
            return upper - math.sqrt(_sigmoid(log_snr)) / high
        low = table[upper - 1]
        return upper - 1 + (-log_snr - low) / (table[upper] - low)

    def alpha_bar_at(self, t: Time, like: Tensor | None = None) -> Time:
        """Return alpha-bar at real t."""
        if not isinstance(t, Tensor):
            return self._interpolated(t)
        if t.device not in self._tables:
            with torch.inference_mode(False):  # training may use this copy as well
                self._tables[t.device] = self._tables[CPU].to(t.device)
        table = self._tables[t.device]
        values = table[t + 1] if not t.is_floating_point() else _interpolate(table, t)
        return values if like is None else values.reshape(-1, *[1] * (like.ndim - 1))

    def _interpolated(self, t: float) -> float:
        """Return alpha-bar at a real t."""
        lower = math.floor(t)
        part, values = t - lower, self._values
        if part == 0:
            return values[lower + 1]
        low, high = values[lower + 1 : lower + 3]
        if high == 0:
            return low * (1 - part) ** 2
        return _sigmoid((1 - part) * _log_snr(low) + part * _log_snr(high))


def _betas(alpha_bar: Tensor) -> Tensor:
    """Return the betas (T,) of a table of alpha-bar (T,), which clean data precede."""
    return 1 - alpha_bar / torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])


def _sqrt(value: Any) -> Any:
    return value.sqrt() if isinstance(value, Tensor) else math.sqrt(value)


def _log_snr(alpha_bar: Any) -> Any:
    if isinstance(alpha_bar, Tensor):
        return (alpha_bar / (1 - alpha_bar)).log()
    if alpha_bar in (0.0, 1.0):
        return math.inf if alpha_bar else -math.inf
    return math.log(alpha_bar) - math.log1p(-alpha_bar)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def _interpolate(table: Tensor, t: Tensor) -> Tensor:
    """Return alpha-bar (B,) float64 at real times (B,) from a table (T+1,) of -1 to T-1."""
    t = t.double()
    lower = t.floor()
    part = t - lower
    low = table[lower.long() + 1]
    high = table[(lower.long() + 2).clamp(max=len(table) - 1)]
    between = torch.lerp(_log_snr(low), _log_snr(high), part).sigmoid()
    between = torch.where(high == 0, low * (1 - part) ** 2, between)
    return torch.where(part == 0, low, between)
