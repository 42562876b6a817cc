"""Grids of times: chaining, length and ends for any schedule, and their definitions."""

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest

from ddpm.diffusion import cosine, linear
from ddpm.samplers import DDIM, DDPM
from ddpm.samplers.grids import LOWEST_LOG_SNR, Spacing

SPACINGS = get_args(Spacing)
BY_NOISE = ("log_snr", "karras")
SCHEDULES = {
    "cosine": cosine,
    "linear": linear,
    "zero_terminal": lambda num_steps: cosine(num_steps=num_steps, zero_terminal_snr=True),
}


def times_of(schedule, spacing, steps=None, start=None, stop=-1):
    return DDPM(steps=steps, spacing=spacing).timesteps(schedule, start=start, stop=stop)


def begins_later(schedule, spacing, start, stop):
    """Return True for grids whose first time may be below T-1: x is then taken to be at it."""
    if start < schedule.num_steps - 1:
        return False
    if spacing == "leading":
        return stop < 0
    below = schedule.log_snr(start) < LOWEST_LOG_SNR
    return spacing in BY_NOISE and below and not schedule.zero_terminal_snr


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("T", [2, 3, 22, 100, 1000])
def test_times_descend_from_start_to_stop_in_the_requested_number(T, name, spacing):
    if name == "linear" and T < 22:
        pytest.skip("betas of the linear schedule reach 1")
    schedule = SCHEDULES[name](num_steps=T)
    starts = {T - 1, T - 2, T // 2, 1, 0} if T > 2 else {1, 0}
    for start in starts:
        for stop in {-1, 0, 1, start // 2, start - 2, start - 1}:
            if not -1 <= stop < start:
                continue
            available = start - stop
            for steps in {1, 2, 3, 7, 20, available // 2 or 1, available - 1 or 1, available, T}:
                times = times_of(schedule, spacing, steps, start, stop)
                case = (start, stop, steps, times[:5])
                assert len(times) - 1 == min(steps, available), case
                assert times[-1] == stop, case
                assert all(t > s for t, s in pairwise(times)), case
                if begins_later(schedule, spacing, start, stop):
                    assert stop < times[0] <= start, case
                else:
                    assert times[0] == start, case


@pytest.mark.parametrize("spacing", BY_NOISE)
@pytest.mark.parametrize("steps", [2, 5, 20, 100])
@pytest.mark.parametrize(("start", "stop"), [(999, -1), (700, -1), (999, 10), (600, 30)])
def test_times_by_noise_are_equidistant(spacing, steps, start, stop):
    schedule = linear(num_steps=1000)
    times = times_of(schedule, spacing, steps, start, stop)
    if stop < 0:
        assert times[-2] == 0  # the last call, followed by the step to clean data
        times = times[:-1]
    levels = np.array([schedule.log_snr(t) for t in times])
    if spacing == "karras":
        levels = np.exp(-levels / 2) ** (1 / 7)  # sigma^(1/7) of x0 + sigma eps
    steps = np.diff(levels)
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("spacing", BY_NOISE)
def test_from_pure_noise_they_begin_at_the_lowest_log_snr(spacing):
    """The cosine schedule has equal distances of log-SNR below it on its last timesteps."""
    schedule = cosine(num_steps=1000)
    assert schedule.log_snr(999) < LOWEST_LOG_SNR == -10.2
    times = times_of(schedule, spacing, 20)
    assert schedule.log_snr(times[0]) == pytest.approx(-10.2, abs=1e-9)
    assert 990 < times[0] < 999
    assert times_of(schedule, spacing, 20, start=998)[0] == 998  # x is at a known time
    assert times_of(linear(num_steps=1000, beta_end=0.01), spacing, 20)[0] == 999


@pytest.mark.parametrize("spacing", BY_NOISE)
def test_zero_terminal_snr_begins_at_the_last_timestep_and_continues_at_the_lowest(spacing):
    schedule = cosine(num_steps=1000, zero_terminal_snr=True)
    times = times_of(schedule, spacing, 20)
    assert times[0] == 999
    assert schedule.log_snr(times[1]) == pytest.approx(-10.2, abs=1e-9)


def test_leading_is_that_of_diffusers():
    schedule = linear(num_steps=1000)
    assert times_of(schedule, "leading", 10) == [*range(900, -1, -100), -1]
    assert times_of(schedule, "leading", 11)[:3] == [900, 810, 720]
    assert DDIM(spacing="leading").timesteps(schedule) == [*range(990, -1, -10), -1]
