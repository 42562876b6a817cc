"""The variational bound: terms in closed form, and their sum, the entropy of Gaussian data."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ddpm.diffusion import (
    GaussianDiffusion,
    Prediction,
    PredX0,
    bound_term,
    cosine,
    discretised_log_likelihood,
    linear,
    normal_kl,
    prior_term,
)
from ddpm.diffusion.process import EIGHT_BITS
from tests.oracle import normal


def test_normal_kl_matches_torch():
    mean, log, mean_q, log_q = normal(0)(torch.empty(4, 3, 2, 5, dtype=torch.float64))
    of = (Normal(mean, (log / 2).exp()), Normal(mean_q, (log_q / 2).exp()))
    torch.testing.assert_close(normal_kl(mean, log, mean_q, log_q), kl_divergence(*of))
    assert not normal_kl(mean, log, mean, log).any()


@pytest.mark.parametrize("ratio", [1e-2, 1e-3, -1e-4])
def test_a_small_kl_has_no_cancellation(ratio):
    """Near 0 it is a quarter of the squared relative difference of the variances."""
    zero = torch.zeros(1)
    small = normal_kl(zero, zero + ratio, zero, zero).item()
    assert small == pytest.approx(ratio**2 / 4 * (1 + ratio / 3), rel=2e-3)


@pytest.mark.parametrize("num_bins", [2, 16, 256, 1024, 4097])
@pytest.mark.parametrize(
    ("mean", "scale"), [(0.0, 0.3), (0.95, 0.1), (-1.3, 0.5), (0.123, 0.02), (0.4, 5.0)]
)
def test_bin_probabilities_sum_to_one(num_bins, mean, scale):
    width = 2 / (num_bins - 1)
    x = torch.linspace(-1, 1, num_bins, dtype=torch.float64)
    constant = torch.full_like(x, mean), torch.full_like(x, math.log(scale))
    share = discretised_log_likelihood(x, *constant, bin_width=width).exp().numpy()
    assert share.sum() == pytest.approx(1, abs=1e-8)
    edges = torch.cat([x[:1] - math.inf, (x[1:] + x[:-1]) / 2, x[:1] + math.inf])
    exact = np.diff(torch.special.ndtr((edges - mean) / scale).numpy())
    assert np.abs(share - exact).max() < 4.1e-4  # twice what the tanh formula is off by


def test_the_default_bins_are_those_of_8_bits_and_half_a_bin_reaches_each_way():
    zero, log_scale = torch.zeros(1, dtype=torch.float64), torch.tensor([math.log(0.1)])
    assert EIGHT_BITS == 2 / 255
    default = discretised_log_likelihood(zero, zero, log_scale).item()
    assert default == discretised_log_likelihood(zero, zero, log_scale, 2 / 255).item()
    density = -0.5 * math.log(2 * math.pi) - math.log(0.1)
    assert default == pytest.approx(density + math.log(2 / 255), abs=2e-3)
    wider = discretised_log_likelihood(zero, zero, log_scale, 2 / 127).item()
    assert wider == pytest.approx(density + math.log(2 / 127), abs=2e-3)


def test_only_the_outermost_bins_extend_to_infinity():
    log_scale = torch.full((4,), math.log(0.01))
    x = torch.tensor([-1.0, 1.0, -1 + 2 / 255, 1 - 2 / 255])
    beyond = discretised_log_likelihood(x, 3 * x.sign(), log_scale)
    assert beyond[:2].abs().max() < 1e-6
    assert beyond[2:].tolist() == pytest.approx([math.log(1e-12)] * 2, rel=1e-6)


@pytest.mark.parametrize("x", [0.995, -0.995, 0.9985, -0.9985])
def test_values_near_an_end_are_not_in_the_outermost_bins(x):
    at, log_scale = torch.tensor([x], dtype=torch.float64), torch.tensor([math.log(0.01)])
    share = discretised_log_likelihood(at, at, log_scale).exp().item()
    assert share == pytest.approx(math.erf(1 / 2.55 / math.sqrt(2)), abs=4e-4)
    end = discretised_log_likelihood(at.sign(), at.sign(), log_scale).exp().item()
    assert end == pytest.approx(0.5 + math.erf(1 / 2.55 / math.sqrt(2)) / 2, abs=4e-4)


def test_a_bin_of_probability_zero_has_a_finite_gradient():
    mean = torch.tensor([0.9, -0.9, 0.0], requires_grad=True)
    log = discretised_log_likelihood(-mean.detach(), mean, torch.full((3,), -9.0))
    log.sum().backward()
    assert torch.isfinite(log).all()
    assert torch.isfinite(mean.grad).all()


MU, SIGMA, BIN = -0.2, 0.1, 1e-3
ENTROPY = 0.5 * math.log2(2 * math.pi * math.e * SIGMA**2) - math.log2(BIN)
"""Bits per dimension of the discretised Gaussian with narrow bins."""


def gaussian_bound(schedule, variance):
    """Return prior and terms, averaged over data and noise, of the ideal network.

    The expectation is a Gauss-Hermite sum. A learned variance is that of x_s given x_t, with
    which the reverse process is the data's own.
    """
    loss = "vlb" if variance == "learned" else "simple"
    process = GaussianDiffusion(schedule, PredX0(), variance=variance, bin_width=BIN, loss=loss)
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    grid = torch.tensor([(a, b) for a in nodes for b in nodes], dtype=torch.float32)
    share = torch.tensor([a * b for a in weights for b in weights]) / (2 * math.pi)
    T = schedule.num_steps
    t = torch.arange(T).repeat_interleave(len(grid))
    data, noise = grid.repeat(T, 1)[:, :, None].unbind(1)
    x0 = MU + SIGMA * data
    x_t = process.diffuse(x0, t, noise)
    at, as_ = schedule.alpha_bar_at(t, x0), schedule.alpha_bar_at(t - 1, x0)
    total = at * SIGMA**2 + 1 - at
    guess = (MU + at.sqrt() * SIGMA**2 * (x_t - at.sqrt() * MU) / total).float()
    slope = as_.sqrt() * (1 - at / as_) / (1 - at)
    exact = process.posterior_variance(t, t - 1, x0) + slope**2 * SIGMA**2 * (1 - at) / total
    spread = exact.log().float() if variance == "learned" else None
    prediction = Prediction(guess, x_t, *schedule.scales(t, x0), spread)
    term = bound_term(process, prediction, x0, t)
    terms = (term.double().reshape(T, -1) * share).sum(1)
    prior = (prior_term(process, x0[: len(grid)]).double() * share).sum()
    return float(terms.sum() + prior)


@pytest.mark.parametrize("make", [linear, cosine])
@pytest.mark.parametrize("num_steps", [50, 400])
def test_the_bound_of_gaussian_data_with_its_own_variance_is_the_entropy(make, num_steps):
    """The reverse steps are Gaussian, so that any number of steps is exact."""
    # The tanh formula's density is off by 1e-3 of itself; what is left at T counts twice.
    bound = gaussian_bound(make(num_steps=num_steps), "learned")
    assert bound == pytest.approx(ENTROPY, abs=4e-3)


@pytest.mark.parametrize("make", [linear, cosine])
def test_the_bound_with_a_fixed_variance_comes_down_to_the_entropy_as_T_grows(make):
    """Except for the decoder term, whose variance is a substitute and adds a constant.

    ``fixed_small`` is too small in the first steps, for any T, and loses more.
    """
    gaps = []
    for T in (40, 160, 640):
        schedule = make(num_steps=T)
        at = schedule.alpha_bar[0]
        true = SIGMA**2 * (1 - at) / (at * SIGMA**2 + 1 - at)
        stand_in = GaussianDiffusion(schedule, PredX0()).posterior_variance(1, 0)
        ratio = float(true / stand_in)
        decoder = 0.5 * (ratio - 1 - math.log(ratio)) / math.log(2)
        large, small = (gaussian_bound(schedule, f"fixed_{kind}") for kind in ("large", "small"))
        gaps.append(large - ENTROPY - decoder)
        print(T, large - ENTROPY, small - ENTROPY, decoder, gaps)
        assert small > large
    assert 0 < gaps[2] < gaps[1] / 3 < gaps[0] / 9, gaps
    assert gaps[2] < 0.06
