"""The variational bound on data with a closed-form entropy and an ideal denoiser."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from ddpm.diffusion import (
    Clipping,
    Denoiser,
    GaussianDiffusion,
    PredNoise,
    PredV,
    PredX0,
    bound_term,
    class_conditioning,
    cosine,
    linear,
    prior_term,
)
from ddpm.evaluation.bits_per_dimension import bits_per_dimension
from ddpm.samplers.grids import respaced_timesteps
from tests.oracle import Oracle, normal

SHAPE = (1, 6, 6)


def ideal(num_steps, **options):
    oracle = Oracle(cosine(num_steps=num_steps), SHAPE)
    network, _ = oracle.network("pred_v")
    process = GaussianDiffusion(oracle.schedule, PredV(), **options)
    return oracle, Denoiser(network, process)


def data(oracle, count):
    return oracle.mu + oracle.sigma * torch.randn(
        count, *SHAPE, generator=torch.Generator().manual_seed(0)
    )


def test_the_total_is_the_sum_of_the_terms_and_the_prior():
    oracle, denoiser = ideal(5)
    x0 = data(oracle, 3)
    calls = []
    bound = bits_per_dimension(
        denoiser, x0, randn_like=normal(1), on_step=lambda: calls.append(None)
    )
    assert bound.steps == (0, 1, 2, 3, 4) and len(calls) == 5
    assert bound.terms.shape == (3, 5) and bound.prior.shape == (3,)
    torch.testing.assert_close(bound.total, bound.terms.sum(1) + bound.prior)
    draw = normal(1)
    for step in range(5):
        t = torch.full((3,), step)
        x_t = denoiser.diffusion.diffuse(x0, t, draw(x0))
        expected = bound_term(denoiser.diffusion, denoiser(x_t, step), x0, t)
        torch.testing.assert_close(bound.terms[:, step], expected)


@pytest.mark.parametrize("steps", ["ddim4", (1, 3)])
def test_on_a_respaced_process_each_term_spans_its_stride(steps):
    oracle, denoiser = ideal(20)
    timesteps = respaced_timesteps(20, steps)
    x0 = data(oracle, 2)
    bound = bits_per_dimension(denoiser, x0, randn_like=normal(1), steps=timesteps)
    assert bound.steps == tuple(timesteps)
    draw = normal(1)
    for index, step in enumerate(timesteps):
        pair = [
            step,
            timesteps[index - 1] if index else -1,
            timesteps[min(index + 1, len(timesteps) - 1)],
        ]
        t, s, after = (torch.full((2,), n) for n in pair)
        x_t = denoiser.diffusion.diffuse(x0, t, draw(x0))
        expected = bound_term(denoiser.diffusion, denoiser(x_t, step), x0, t, s, after)
        torch.testing.assert_close(bound.terms[:, index], expected)
    torch.testing.assert_close(bound.prior, prior_term(denoiser.diffusion, x0, timesteps[-1]))


BIN = 1e-3
"""Bin width, so narrow that the probability of a bin is its width times the density."""

EULER = 0.5772156649


def short(num_steps):
    """Return a schedule with so much signal left in x_T that the prior term is not negligible."""
    return linear(num_steps=num_steps, beta_end=0.002)


def narrow(schedule, variance):
    """Return a Gaussian within -1..1 and its ideal denoiser, also of a learned variance."""
    oracle = Oracle(schedule, SHAPE, scale=0.25)
    network, _ = oracle.network("pred_x0")

    def predict_with_variance(x_t, time):
        log = oracle.reverse_variance(int(time[0]), int(time[0]) - 1).log()
        return torch.cat([network(x_t, time), log.expand_as(x_t).float()], dim=1)

    process = GaussianDiffusion(schedule, PredX0(), variance=variance, loss="vlb", bin_width=BIN)
    model = predict_with_variance if process.learns_variance else network
    return oracle, Denoiser(model, process)


def code_length(oracle, x0):
    """Return the bits per dimension of data under the Gaussian, (B,); the mean is the entropy."""
    nats = 0.5 * ((x0 - oracle.mu) / oracle.sigma) ** 2
    normal_nats = torch.log(oracle.sigma * math.sqrt(2 * math.pi) / BIN)
    return (nats + normal_nats).flatten(1).mean(1).double() / math.log(2)


def kl_bits(variance, other, away=0.0):
    """Return KL(N(away, variance) || N(0, other)), averaged over all entries, in bits."""
    ratio = variance / other
    return float((ratio - 1 - ratio.log() + away**2 / other).mean()) / math.log(4)


def losses(oracle, kind, steps):
    """Return the gap between bound and entropy in bits per dimension: decoder, steps, prior.

    It is KL(q(x_0, ..., x_T) || p(x_0, ..., x_T)), the sum of the KL of x_T and those of x_s given
    x_t. All are between Gaussians; those of the steps have equal means, as the denoiser is ideal.
    """
    alpha_bar = {t: float(oracle.schedule.alpha_bar_at(t)) for t in (-1, *steps)}
    gaps = []
    for s, t in pairwise([-1, *steps]):
        # The posterior of clean data has zero variance; that of the next step replaces it.
        at, as_ = (alpha_bar[step] for step in ((steps[1], steps[0]) if s < 0 else (t, s)))
        large, small = 1 - at / as_, (1 - at / as_) * (1 - as_) / (1 - at)
        taken = large if kind == "fixed_large" and s >= 0 else small
        true = oracle.reverse_variance(t, s)
        gaps.append(kl_bits(true, true if kind == "learned" else taken))
    last = steps[-1]
    prior = kl_bits(oracle.variance(last), 1.0, math.sqrt(alpha_bar[last]) * oracle.mu)
    return gaps[0], sum(gaps[1:]), prior


def expected_losses(oracle, denoiser, steps=None):
    """Return the expected gaps of the bound: that of the decoder, and that of all other terms.

    The expectation over data and noise is a Gauss-Hermite sum; the batch is the grid of its nodes.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    grid = torch.tensor([(a, b) for a in nodes for b in nodes], dtype=torch.float32)
    share = torch.tensor([a * b for a in weights for b in weights]) / (2 * math.pi)
    deviation, noise = (column.reshape(-1, 1, 1, 1) for column in grid.unbind(1))
    x0 = oracle.mu + oracle.sigma * deviation
    bound = bits_per_dimension(denoiser, x0, randn_like=noise.expand_as, steps=steps)
    entropy, total = float((code_length(oracle, x0) * share).sum()), bound.total.double()
    first = oracle.reverse_variance(bound.steps[0], -1)
    of_x0_given_first = float(torch.log2(2 * math.pi * math.e * first / BIN**2).mean()) / 2
    decoder = float((bound.terms[:, 0] * share).sum()) - of_x0_given_first
    return decoder, float((total * share).sum()) - entropy - decoder


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
@pytest.mark.parametrize("make", [cosine, linear, short])
@pytest.mark.parametrize("num_steps", [25, 400])
def test_the_gap_to_the_entropy_is_the_kl_of_the_reverse_process(num_steps, make, variance):
    """With the true variance of x_s given x_t as the learned one, only the prior term remains."""
    oracle, denoiser = narrow(make(num_steps=num_steps), variance)
    decoder, steps, prior = losses(oracle, variance, range(num_steps))
    assert prior > 0.05 if make is short else prior < 1e-6
    measured, rest = expected_losses(oracle, denoiser)
    assert rest == pytest.approx(steps + prior, abs=1e-4)
    # The tanh approximation is inaccurate in the tails, for deviations of twice the variance.
    assert measured == pytest.approx(decoder, abs=1e-2)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("make", [cosine, short])
@pytest.mark.parametrize("timesteps", ["ddim40", (7, 3, 5)])
def test_the_gap_of_a_respaced_process_is_the_kl_of_its_steps(timesteps, make, variance):
    oracle, denoiser = narrow(make(num_steps=400), variance)
    timesteps = respaced_timesteps(400, timesteps)
    decoder, steps, prior = losses(oracle, variance, timesteps)
    measured, rest = expected_losses(oracle, denoiser, timesteps)
    assert rest == pytest.approx(steps + prior, abs=1e-4)
    assert measured == pytest.approx(decoder, abs=1e-2)


def test_with_fixed_large_variances_the_gap_decreases_as_1_over_T():
    """Except for the decoder, whose variance tends to half of the true one.

    A step adds a quarter of the squared change in ln Var(x_t), in nats; all steps add 1 / 4T times
    the integral of its squared slope.
    """
    every = [
        expected_losses(*narrow(cosine(num_steps=T), "fixed_large")) for T in (10, 40, 160, 640)
    ]
    decoders, gaps = zip(*every, strict=True)
    assert 2.2 * gaps[1] < gaps[0] < 3.5 * gaps[1]
    assert 3.5 * gaps[2] < gaps[1] < 3.8 * gaps[2]
    assert 3.8 * gaps[3] < gaps[2] < 4 * gaps[3]
    fine = cosine(num_steps=10_000).alpha_bar[:, None, None, None]
    sigma = narrow(cosine(num_steps=2), "fixed_large")[0].sigma
    change = (fine * sigma**2 + 1 - fine).log().diff(dim=0)
    rate = float((change**2).sum(0).mean()) * 10_000 / 4 / math.log(2)
    assert 640 * gaps[3] == pytest.approx(rate, rel=0.01)
    assert max(decoders) < 0.5 * (1 - math.log(2)) / math.log(2)


def test_with_fixed_small_variances_the_gap_tends_to_half_of_eulers_constant():
    """For Gaussian data, the variance of step k is too small by k / (k + 1) for every T."""
    limit = EULER / 2 / math.log(2)
    gaps = [expected_losses(*narrow(cosine(num_steps=T), "fixed_small"))[1] for T in (160, 640)]
    assert limit < gaps[1] < gaps[0] < 2 * limit


@pytest.mark.parametrize("num_steps", [10, 40, 160, 640])
def test_the_gap_on_samples_is_within_its_standard_error(num_steps):
    oracle, denoiser = narrow(cosine(num_steps=num_steps), "fixed_large")
    x0 = data(oracle, 1000)
    bound = bits_per_dimension(denoiser, x0, randn_like=normal(2))
    # Relative to the code length of the samples, not the entropy: their common noise cancels.
    gap = bound.total - code_length(oracle, x0)
    error = float(gap.std()) / math.sqrt(len(x0))
    expected = sum(losses(oracle, "fixed_large", range(num_steps)))
    assert error < expected / 10
    assert abs(float(gap.mean()) - expected) < 3 * error


LEVELS = torch.linspace(-1, 1, 4, dtype=torch.float64)
"""Values of 2-bit data; ``bin_width`` is the distance between them."""


def expected_gap_of_levels(num_steps, variance):
    """Return the expected gap for a Gaussian that is rounded to ``LEVELS``."""
    middle, schedule = (LEVELS[1:] + LEVELS[:-1]) / 2, cosine(num_steps=num_steps)
    below = torch.special.ndtr((middle + 0.2) / 0.5)
    share = torch.cat([torch.zeros(1), below, torch.ones(1)]).diff()

    def network(x_t, time):
        at = schedule.alpha_bar_at(time, x_t)
        away = (x_t - at.sqrt() * LEVELS) ** 2 / (1 - at)
        return ((share.log() - away / 2).softmax(-1) * LEVELS).sum(-1, keepdim=True)

    nodes, weights = np.polynomial.hermite_e.hermegauss(41)
    noise = torch.tensor(nodes).float().repeat(len(LEVELS))[:, None, None]
    x0 = LEVELS.float().repeat_interleave(len(nodes))[:, None, None]
    process = GaussianDiffusion(schedule, PredX0(), variance=variance, bin_width=2 / 3)
    bound = bits_per_dimension(Clipping(Denoiser(network, process)), x0, randn_like=noise.expand_as)
    each = (share[:, None] * torch.tensor(weights) / math.sqrt(2 * math.pi)).flatten()
    entropy = -(share * share.log2()).sum()
    return float((each * bound.total).sum() - entropy)


def test_on_discrete_data_the_gap_with_fixed_small_variances_tends_to_zero():
    """The decoder identifies the value; a step adds half of the SNR increment times the error.

    The bound is then an upper Riemann sum, with an excess of order 1/T, of the integral that equals
    the entropy (I-MMSE, Guo et al. 2005). ``fixed_large`` is too large by (k + 1) / k in step k for
    every T, which adds half of the difference of 1 and Euler's constant.
    """
    gaps = [expected_gap_of_levels(T, "fixed_small") for T in (10, 40, 160, 640)]
    assert 2 * gaps[1] < gaps[0]
    assert 4 * gaps[2] < gaps[1] < 5.5 * gaps[2]
    assert 4 * gaps[3] < gaps[2] < 4.3 * gaps[3]
    assert 0 < gaps[3] < 0.025
    large = [expected_gap_of_levels(T, "fixed_large") for T in (160, 640)]
    assert min(large) > (1 - EULER) / 2 / math.log(2)


def test_labels_reach_the_network():
    seen = []

    def network(x, t, y):
        seen.append(y.tolist())
        return x

    denoiser = Clipping(Denoiser(network, GaussianDiffusion(cosine(num_steps=3), PredNoise())))
    labels = class_conditioning(torch.tensor([4, 1]))
    bits_per_dimension(denoiser, torch.zeros(2, 1, 4), randn_like=normal(0), conditioning=labels)
    assert seen == [[4, 1]] * 3
