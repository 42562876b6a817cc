"""Profiles of averages, their closed forms, and their combinations."""

import math

import numpy as np
import pytest

from ddpm.training.power_profile import MAX_SIGMA_REL, Profile, fit, gamma, sigma_rel

SNAPSHOTS = [Profile(s, t) for t in range(50, 1001, 50) for s in (0.05, 0.1)]


@pytest.mark.parametrize(("sigma", "exponent"), [(0.05, 16.97), (0.10, 6.94), (0.20, 1.826)])
def test_the_exponent_of_a_standard_deviation(sigma, exponent):
    assert gamma(sigma) == pytest.approx(exponent, abs=5e-3)  # the first two are published


@pytest.mark.parametrize("exponent", [0.0, 0.1, 1.0, 6.94, 16.97, 100.0, 3000.0])
def test_exponent_and_standard_deviation_are_inverse(exponent):
    """The mean of tau**gamma on [0, 1] is (g + 1) / (g + 2), that of tau^2 (g + 1) / (g + 3)."""
    mean = (exponent + 1) / (exponent + 2)
    variance = (exponent + 1) / (exponent + 3) - mean**2
    assert sigma_rel(exponent) == pytest.approx(math.sqrt(variance), rel=1e-5)
    assert gamma(sigma_rel(exponent)) == pytest.approx(exponent, rel=1e-9, abs=1e-9)
    assert sigma_rel(exponent) <= MAX_SIGMA_REL


@pytest.mark.parametrize("sigma", [0.03, 0.1, 0.28])
def test_the_shares_add_up_to_one_and_have_the_mean_and_the_deviation(sigma):
    shares = Profile(sigma, 5000).shares(np.arange(5001.0))
    times = np.arange(5000) + 0.5
    mean = (shares * times).sum()
    assert shares.sum() == pytest.approx(1, abs=1e-12)
    assert mean / 5000 == pytest.approx((gamma(sigma) + 1) / (gamma(sigma) + 2), abs=1e-6)
    spread = math.sqrt((shares * (times - mean) ** 2).sum())
    assert spread / 5000 == pytest.approx(sigma, rel=1e-4)


def test_weights_of_the_first_update_stand_for_those_before_it():
    shares = Profile(0.1, 10, start=4).shares(np.arange(11.0))
    plain = Profile(0.1, 10).shares(np.arange(11.0))
    assert shares[:3].tolist() == [0, 0, 0]
    assert shares[3] == pytest.approx(plain[:4].sum(), abs=1e-15)
    assert np.array_equal(shares[4:], plain[4:])


@pytest.mark.parametrize("index", [0, 17, 38, 39])
def test_a_stored_profile_is_reproduced_exactly(index):
    target = SNAPSHOTS[index]
    profiles = [each for each in SNAPSHOTS if each.updates <= target.updates]
    result = fit(target, profiles)
    assert result.error == 0
    assert result.coefficients == [float(each == target) for each in profiles]


@pytest.mark.parametrize(
    ("sigma", "error"),
    [
        *[(0.02, 0.087), (0.03, 0.026), (0.04, 0.007), (0.07, 0.003), (0.08, 0.002)],
        *[(0.12, 0.002), (0.15, 0.006), (0.2, 0.015), (0.25, 0.06)],
    ],
)
@pytest.mark.parametrize("scale", [1, 1000])
def test_twenty_snapshots_approximate_other_profiles(sigma, error, scale):
    """The errors are those of docs/training.md."""
    profiles = [each._replace(updates=scale * each.updates) for each in SNAPSHOTS]
    result = fit(Profile(sigma, 1000 * scale), profiles)
    assert result.error == pytest.approx(error, abs=1e-3)
    assert sum(result.coefficients) == pytest.approx(1, abs=1e-12)
    assert sum(map(abs, result.coefficients)) < 25  # rounding of the snapshots is not amplified


def test_the_error_is_that_of_the_shares():
    """Up to 16,384 updates, each is a cell; the norm is that of piecewise constant profiles."""
    target, edges = Profile(0.08, 1000), np.arange(1001.0)
    result = fit(target, SNAPSHOTS)
    pairs = zip(result.coefficients, SNAPSHOTS, strict=True)
    combined = sum(c * each.shares(edges) for c, each in pairs)
    expected = target.shares(edges)
    error = np.linalg.norm(combined - expected) / np.linalg.norm(expected)
    assert result.error == pytest.approx(error, rel=1e-6)


def test_more_snapshots_reduce_the_error_by_their_square():
    errors = []
    for count in (8, 16, 32):
        times = [round(k * 1000 / count) for k in range(1, count + 1)]
        profiles = [Profile(s, t) for t in times for s in (0.05, 0.1)]
        errors.append(fit(Profile(0.08, 1000), profiles).error)
    assert errors[0] / errors[1] > 3 and errors[1] / errors[2] > 3


def test_averages_that_began_late_have_a_profile_of_their_own():
    late = [each._replace(start=400) for each in SNAPSHOTS if each.updates >= 400]
    assert fit(Profile(0.2, 1000, 400), late).error < 0.01
    assert fit(Profile(0.2, 1000, 1), late).error > 0.1


def test_a_single_profile():
    result = fit(Profile(0.08, 10), [Profile(0.1, 10)])
    assert result.coefficients == [1.0] and 0.01 < result.error < 1
