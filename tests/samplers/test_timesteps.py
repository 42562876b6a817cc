"""Timestep grids: chaining, length and comparison with the originals."""

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch

from ddpm.errors import ConfigError
from ddpm.samplers import DDIM, DDPM
from ddpm.samplers.base import Spacing, respaced_timesteps, spaced_timesteps
from tests.reference_cases import load_case

SPACINGS = get_args(Spacing)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    ("start", "stop"), [(49, -1), (30, -1), (0, -1), (49, 0), (49, 7), (20, 19)]
)
def test_steps_connect_start_and_stop_in_the_requested_number(spacing, start, stop):
    for steps in range(1, 51):
        pairs = DDPM(steps=steps, spacing=spacing).timesteps(start, stop)
        assert len(pairs) == min(steps, start - stop)
        assert pairs[0][0] == start
        assert pairs[-1][1] == stop
        assert all(t > s for t, s in pairs)
        assert all(type(node) is int for pair in pairs for node in pair)
        assert all(before[1] == after[0] for before, after in pairwise(pairs))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_all_steps_by_default_for_ddpm_and_100_for_ddim(spacing):
    everything = [(t, t - 1) for t in range(299, -1, -1)]
    assert DDPM(spacing=spacing).timesteps(299) == everything
    assert DDPM(steps=300, spacing=spacing).timesteps(299) == everything
    assert len(DDIM(spacing=spacing).timesteps(299)) == 100
    assert DDIM(spacing=spacing).timesteps(49) == everything[-50:]


def test_equal_start_and_stop_give_no_steps():
    assert DDPM(steps=5).timesteps(10, 10) == []


def as_option(sections):
    """Return improved-diffusion's argument as the option ``steps``."""
    if isinstance(sections, list):
        return tuple(sections)
    return sections if sections.startswith("ddim") else tuple(map(int, sections.split(",")))


def called(pairs):
    """Return the timesteps of the network calls, ascending."""
    return [t for t, _ in reversed(pairs)]


def test_respacing_matches_improved_diffusion():
    meta, _ = load_case("iddpm_respacing")
    assert [sections for _, sections, _ in meta["cases"]] == [
        *("10,15,20", "ddim250", "ddim50", [25], [100], "1")
    ]
    for num_steps, sections, expected in meta["cases"]:
        option = as_option(sections)
        assert respaced_timesteps(num_steps, option) == expected
        pairs = DDPM(steps=option).timesteps(num_steps - 1)
        assert called(pairs) == expected
        assert pairs[-1] == (expected[0], -1)
        assert all(before[1] == after[0] for before, after in pairwise(pairs))
        if isinstance(option, tuple) and len(option) == 1 and option != (1,):
            (count,) = option  # a single section is a plain number
            assert called(DDPM(steps=count).timesteps(num_steps - 1)) == expected
    # But for one step: the original's asks at step 0 about pure noise, ours at T-1.
    assert DDPM(steps=1).timesteps(999) == [(999, -1)]
    assert DDPM(steps=(1,)).timesteps(999) == [(0, -1)]


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
    assert called(DDIM(steps=option, spacing="trailing").timesteps(num_steps - 1)) == expected


@pytest.mark.parametrize("option", ["ddim10", (4, 5, 6), (25,)])
@pytest.mark.parametrize("T", [50, 100])
def test_respacing_between_two_timesteps_visits_those_between(option, T):
    nodes = respaced_timesteps(T, option)
    for start in range(T - 1):
        for stop in range(-1, start):
            pairs = DDIM(steps=option).timesteps(start, stop, num_steps=T)
            expected = [stop, *(node for node in nodes if stop < node < start), start]
            assert [*(s for _, s in reversed(pairs)), pairs[0][0]] == expected
    whole = DDIM(steps=option).timesteps(T - 1, num_steps=T)
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
        DDIM(steps=option).timesteps(num_steps - 1)
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
    pairs = DDIM(steps=meta["sampling_timesteps"], spacing="trailing").timesteps(999)
    assert [pairs[0][0], *(s for _, s in pairs)] == meta["times"]


@pytest.mark.parametrize("num_steps", [50, 1000])
def test_trailing_is_a_truncated_linspace(num_steps):
    for steps in range(1, num_steps + 1):
        pairs = DDIM(steps=steps, spacing="trailing").timesteps(num_steps - 1)
        nodes = np.array([-1, *(t for t, _ in reversed(pairs))])
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


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("first", "last"), [(0, 49), (7, 49), (3, 3), (5, 6)])
def test_spaced_timesteps_are_distinct_and_ascending(spacing, first, last):
    assert spaced_timesteps(first, last, 1, spacing) == [last]
    for count in range(2, last - first + 2):
        nodes = spaced_timesteps(first, last, count, spacing)
        assert len(nodes) == count
        assert (nodes[0], nodes[-1]) == (first, last)
        assert np.diff(nodes).min() >= 1
