"""Timestep grids: chaining, length and comparison with the originals."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from ddpm.diffusion import cosine
from ddpm.errors import ConfigError
from ddpm.samplers import DDIM, DDPM
from ddpm.samplers.grids import respaced_timesteps, spaced_timesteps
from tests.reference_cases import load_case

SPACINGS = ("uniform", "quadratic", "trailing")
"""Those of whole timesteps from T-1 on; see test_grids.py for the others."""


def path(sampler, num_steps, start=None, stop=-1):
    """Return the times of a sampler, descending, in a process of ``num_steps`` steps."""
    return sampler.timesteps(cosine(num_steps=num_steps), start=start, stop=stop)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    ("start", "stop"), [(49, -1), (30, -1), (0, -1), (49, 0), (49, 7), (20, 19)]
)
def test_steps_connect_start_and_stop_in_the_requested_number(spacing, start, stop):
    for steps in range(1, 51):
        times = path(DDPM(steps=steps, spacing=spacing), 50, start, stop)
        assert len(times) - 1 == min(steps, start - stop)
        assert (times[0], times[-1]) == (start, stop)
        assert all(t > s for t, s in pairwise(times))
        assert all(type(t) is int for t in times)


@pytest.mark.parametrize("spacing", [*SPACINGS, "leading"])
def test_all_steps_by_default_for_ddpm_and_100_for_ddim(spacing):
    everything = list(range(299, -2, -1))
    assert path(DDPM(spacing=spacing), 300) == everything
    assert path(DDPM(steps=300, spacing=spacing), 300) == everything
    assert len(path(DDIM(spacing=spacing), 300)) - 1 == 100
    assert path(DDIM(spacing=spacing), 50) == everything[-51:]


def test_equal_start_and_stop_give_no_steps():
    assert path(DDPM(steps=5), 50, 10, 10) == [10]


def as_option(sections):
    """Return improved-diffusion's argument as the option ``steps``."""
    if isinstance(sections, list):
        return tuple(sections)
    return sections if sections.startswith("ddim") else tuple(map(int, sections.split(",")))


def called(times):
    """Return the timesteps of the network calls, ascending."""
    return times[-2::-1]


def test_respacing_matches_improved_diffusion():
    meta, _ = load_case("iddpm_respacing")
    assert [sections for _, sections, _ in meta["cases"]] == [
        *("10,15,20", "ddim250", "ddim50", [25], [100], "1")
    ]
    for num_steps, sections, expected in meta["cases"]:
        option = as_option(sections)
        assert respaced_timesteps(num_steps, option) == expected
        assert path(DDPM(steps=option), num_steps) == [*reversed(expected), -1]
        if isinstance(option, tuple) and len(option) == 1 and option != (1,):
            (count,) = option  # a single section is a plain number
            assert called(path(DDPM(steps=count), num_steps)) == expected
    # But for one step: the original's asks at step 0 about pure noise, ours at T-1.
    assert path(DDPM(steps=1), 1000) == [999, -1]
    assert path(DDPM(steps=(1,)), 1000) == [0, -1]


@pytest.mark.parametrize(
    ("num_steps", "option", "expected"),
    [
        (10, (3, 2), [0, 2, 4, 5, 9]),
        (11, (2, 2, 2), [0, 3, 4, 7, 8, 10]),  # the first sections take what is left over
        (7, (1, 1, 1), [0, 3, 5]),
        (6, (3, 3), [0, 1, 2, 3, 4, 5]),
        (10, "ddim4", [0, 3, 6, 9]),
        (10, "ddim3", [0, 4, 8]),
        (10, "ddim1", [0]),
        (10, "ddim10", list(range(10))),
    ],
)
def test_respacing_by_hand(num_steps, option, expected):
    assert respaced_timesteps(num_steps, option) == expected
    assert called(path(DDIM(steps=option, spacing="trailing"), num_steps)) == expected


@pytest.mark.parametrize("option", ["ddim10", (4, 5, 6), (25,)])
@pytest.mark.parametrize("T", [50, 100])
def test_respacing_between_two_timesteps_visits_those_between(option, T):
    schedule, sampler = cosine(num_steps=T), DDIM(steps=option)
    nodes = respaced_timesteps(T, option)
    for start in range(T - 1):
        for stop in range(-1, start):
            times = sampler.timesteps(schedule, start=start, stop=stop)
            expected = [stop, *(node for node in nodes if stop < node < start), start]
            assert times == expected[::-1]
    whole = sampler.timesteps(schedule)
    assert called(whole) == nodes  # pure noise is taken to be at the highest of them


@pytest.mark.parametrize(
    ("num_steps", "option", "line"),
    [
        (
            1000,
            "ddim300",
            "steps=ddim300: no integer stride selects 300 of 1000 steps; use steps=300",
        ),
        (
            10,
            (3, 6),
            "steps=[3,6]: section 2 has only 5 steps; request at most 5",
        ),
        (2, (1, 1, 1), "steps=[1,1,1]: section 3 has only 0 steps; request at most 0"),
    ],
)
def test_respacings_that_do_not_fit_the_process_are_rejected(num_steps, option, line):
    with pytest.raises(ConfigError) as caught:
        path(DDIM(steps=option), num_steps)
    assert str(caught.value) == line


INVALID = "invalid value; expected a number, ddim50, or sections such as [10,15,20]"


@pytest.mark.parametrize(
    ("option", "line"),
    [
        *((word, f"steps={word}: {INVALID}") for word in ("ddim0", "ddim", "50", "ddim5x")),
        ((), "steps=[]: must be sections of at least 1 step each"),
        ((3, 0), "steps=[3,0]: must be sections of at least 1 step each"),
        (0, "steps=0: must be at least 1; null = the default"),
    ],
)
def test_invalid_steps_are_rejected(option, line):
    for sampler in (DDPM, DDIM):
        with pytest.raises(ConfigError) as caught:
            sampler(steps=option)
        assert str(caught.value) == line


@pytest.mark.parametrize("num_steps", [50, 1000])
def test_uniform_rounds_ties_as_improved_diffusion_does(num_steps):
    for count in range(2, num_steps + 1):
        stride, position, expected = (num_steps - 1) / (count - 1), 0.0, []
        for _ in range(count):
            expected.append(round(position))
            position += stride
        assert spaced_timesteps(0, num_steps - 1, count, "uniform") == expected, count


def test_trailing_matches_denoising_diffusion_pytorch():
    meta, _ = load_case("unet_ddim")
    sampler = DDIM(steps=meta["sampling_timesteps"], spacing="trailing")
    assert path(sampler, 1000) == meta["times"]


@pytest.mark.parametrize("num_steps", [50, 1000])
def test_trailing_is_a_truncated_linspace(num_steps):
    schedule = cosine(num_steps=num_steps)
    for steps in range(1, num_steps + 1):
        nodes = np.array(DDIM(steps=steps, spacing="trailing").timesteps(schedule)[::-1])
        original = torch.linspace(-1, num_steps - 1, steps=steps + 1).int().numpy()
        if num_steps == 50 or num_steps % steps == 0:
            np.testing.assert_array_equal(nodes, original)
        else:  # its float32 falls short of a whole number here and there
            assert set(nodes - original) <= {0, 1}
            assert (nodes - original).mean() < 0.2


def test_quadratic_is_denser_near_the_data():
    nodes = spaced_timesteps(0, 999, 50, "quadratic")
    grid = np.linspace(0, 999**0.5, 50) ** 2
    free = np.diff(grid, prepend=-1) > 1.5  # where neighbours do not fall on one step
    np.testing.assert_array_equal(np.array(nodes)[free][:-1], np.floor(grid[free])[:-1])
    assert free.sum() > 40
    gaps = np.diff(nodes)
    assert gaps.min() >= 1
    assert np.all(np.diff(gaps) >= -1)
    # t < u holds a share sqrt(u / T) of the nodes.
    assert sum(node < 250 for node in nodes) == pytest.approx(25, abs=1)
    assert sum(node < 90 for node in nodes) == pytest.approx(15, abs=1)


@pytest.mark.parametrize("spacing", ["uniform", "quadratic"])
@pytest.mark.parametrize(("first", "last"), [(0, 49), (7, 49), (3, 3), (5, 6)])
def test_spaced_timesteps_are_distinct_and_ascending(spacing, first, last):
    assert spaced_timesteps(first, last, 1, spacing) == [last]
    for count in range(2, last - first + 2):
        nodes = spaced_timesteps(first, last, count, spacing)
        assert len(nodes) == count
        assert (nodes[0], nodes[-1]) == (first, last)
        assert np.diff(nodes).min() >= 1
