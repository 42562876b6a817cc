"""Grids of times: the times at which a sampling path calls the network."""

from __future__ import annotations

import math
import re
from itertools import accumulate, repeat
from typing import Literal

import numpy as np

from ddpm.diffusion import Schedule
from ddpm.errors import ConfigError, require

Spacing = Literal["uniform", "quadratic", "trailing", "leading", "log_snr", "karras"]
Steps = int | str | tuple[int, ...] | None

LOWEST_LOG_SNR = -10.2
"""Log-SNR at which ``log_snr`` and ``karras`` begin, if the schedule goes below it.

It is twice the limit -5.1 of DPM-Solver's half log-SNR: x_t is then noise but for 0.6 %, whereas
the cosine schedule spends equal distances of log-SNR down to -20 on its last 4 of 1,000 timesteps.
"""
KARRAS_EXPONENT = 7
"""Exponent of ``karras``, the rho of Karras et al. 2022, equation 5."""


def sampling_times(
    schedule: Schedule, steps: Steps, spacing: Spacing, *, start: int, stop: int
) -> list[float]:
    """Return the times of a sampling path, descending from ``start`` to ``stop``.

    The path has the requested number of steps, or fewer if ``start`` and ``stop`` are closer.
    ``ddim50`` and sections visit their timesteps within this range. From T-1, which is pure noise,
    these and ``leading`` start at the highest of theirs, and :func:`_times_by_noise` may, too.

    Args:
        schedule: of the process.
        steps, spacing: see :class:`ddpm.samplers.Sampler`; no ``steps`` = one per timestep.
        start: first time, a timestep.
        stop: last time, a timestep, or -1 for clean data.
    """
    available, from_noise = start - stop, start == schedule.num_steps - 1
    if available <= 0:
        return [start]
    if isinstance(steps, (str, tuple)):
        visited = respaced_timesteps(schedule.num_steps, steps)
        times = [t for t in reversed(visited) if stop < t <= start]
        if times and from_noise:
            return [*times, stop]
        return [start, *(t for t in times if t < start), stop]
    count = min(steps or available, available)
    if spacing == "leading":
        stride = available // count
        first = (count - 1) * stride if from_noise and stop < 0 else start
        return [*(first - i * stride for i in range(count)), stop]
    if spacing == "trailing" and stop < 0:
        return [*((i * (start + 1)) // count - 1 for i in range(count, 0, -1)), -1]
    # The step to clean data is apart: the others end at timestep 0.
    lowest, count, clean = (0, count, [-1]) if stop < 0 else (stop, count + 1, [])
    if spacing in ("log_snr", "karras"):
        ascending = _times_by_noise(schedule, lowest, start, count, spacing)
    else:
        ascending = spaced_timesteps(lowest, start, count, spacing)
    return [*reversed(ascending), *clean]


def _times_by_noise(
    schedule: Schedule, first: int, last: int, count: int, spacing: Spacing
) -> list[float]:
    """Return ``count`` real times, ascending from ``first`` to ``last``, spaced by their noise.

    They are equidistant in the measure of :func:`_spaced_log_snrs` where the log-SNR is above
    ``LOWEST_LOG_SNR``. Below it, x_t is almost pure noise, and the only time is ``last``; for T-1
    not even that, because pure noise stands for x_t at ``LOWEST_LOG_SNR`` unless T-1 has no signal.
    """
    if count == 1:
        return [last]
    high, low = schedule.log_snr(first), schedule.log_snr(last)
    if low < LOWEST_LOG_SNR < high:
        pure_noise = last == schedule.num_steps - 1 and not schedule.zero_terminal_snr
        ends = [] if pure_noise else [last]
        log_snrs = _spaced_log_snrs(high, LOWEST_LOG_SNR, count - len(ends), spacing)
        return [first, *map(schedule.time, log_snrs[1:]), *ends]
    if math.isinf(low):  # all times are below it, and the last one has no signal
        return [first + (last - first) * i / (count - 1) for i in range(count)]
    log_snrs = _spaced_log_snrs(high, low, count, spacing)
    return [first, *map(schedule.time, log_snrs[1:-1]), last]


def _spaced_log_snrs(high: float, low: float, count: int, spacing: Spacing) -> list[float]:
    """Return ``count`` values of the log-SNR from ``high`` down to ``low``; one is ``high``.

    ``log_snr`` has equal distances. ``karras`` has equal distances in ``(sigma / alpha)^(1/7)``,
    which is ``exp(-log_snr / 14)`` (Karras et al. 2022, equation 5).
    """
    parts = [i / max(count - 1, 1) for i in range(count)]
    if spacing == "log_snr":
        return [high + (low - high) * part for part in parts]
    scale = 2 * KARRAS_EXPONENT
    first, last = math.exp(-high / scale), math.exp(-low / scale)
    return [-scale * math.log(first + (last - first) * part) for part in parts]


def spaced_timesteps(first: int, last: int, count: int, spacing: Spacing) -> list[int]:
    """Return ``count`` distinct timesteps, ascending from ``first`` to ``last`` inclusive.

    For ``quadratic`` they are ``first + c i^2`` (Song et al. 2020, appendix D.2), rounded down, or
    up where they would not be distinct; else evenly spaced. A single one is ``last``.
    """
    if count == 1:
        return [last]
    if spacing == "quadratic":
        grid = first + np.linspace(0, (last - first) ** 0.5, count) ** 2
        grid[-1] = last
        rising = np.maximum.accumulate(np.floor(grid).astype(int) - np.arange(count))
        return [int(value) for value in rising + np.arange(count)]
    # Summed, not multiplied, and rounded half to even, so that ties round as in the original.
    strides = repeat((last - first) / (count - 1), count - 1)
    return [first + round(value) for value in accumulate(strides, initial=0.0)]


def respaced_timesteps(num_steps: int, steps: str | tuple[int, ...]) -> list[int]:
    """Return the timesteps that improved-diffusion's respacing retains, ascending.

    Args:
        num_steps: T.
        steps: ``ddimN`` for N timesteps in an integer stride from 0; a tuple for the numbers of
            timesteps in equal sections, evenly spaced from the first to the last of each section.

    Raises:
        ConfigError: (key ``steps``) no integer stride gives N timesteps, or a section has fewer
            timesteps than requested.
    """
    if isinstance(steps, str):
        count = int(steps.removeprefix("ddim"))
        for stride in range(1, num_steps + 1):
            timesteps = range(0, num_steps, stride)
            if len(timesteps) == count:
                return list(timesteps)
        remedy = f"use steps={min(count, num_steps)}"
        problem = f"no integer stride selects {count} of {num_steps} steps; {remedy}"
        raise ConfigError("steps", steps, problem)
    size, extra = divmod(num_steps, len(steps))
    timesteps, first = [], 0
    for index, count in enumerate(steps):
        section = size + (1 if index < extra else 0)
        problem = f"section {index + 1} has only {section} steps; request at most {section}"
        require(count <= section, "steps", steps, problem)
        last = first + section - 1
        timesteps += [first] if count == 1 else spaced_timesteps(first, last, count, "uniform")
        first += section
    return timesteps


def check_steps_option(steps: Steps) -> None:
    """Raise ConfigError for steps that are invalid for every process."""
    if isinstance(steps, str):
        good = re.fullmatch(r"ddim[1-9][0-9]*", steps) is not None
        problem = "invalid value; expected a number, ddim50, or sections such as [10,15,20]"
    elif isinstance(steps, tuple):
        good = len(steps) > 0 and all(count >= 1 for count in steps)
        problem = "must be sections of at least 1 step each"
    else:
        good, problem = steps is None or steps >= 1, "must be at least 1; null = the default"
    require(good, "steps", steps, problem)
