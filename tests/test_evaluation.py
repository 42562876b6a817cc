"""The variational bound, on Gaussian data whose entropy is a formula."""

import math

import pytest
import torch

from ddpm.diffusion import (
    Denoiser,
    GaussianDiffusion,
    PredNoise,
    PredV,
    bound_term,
    cosine,
    prior_term,
)
from ddpm.evaluation import bits_per_dimension
from ddpm.samplers.base import respaced
from tests.oracle import Oracle, normal

SHAPE = (1, 6, 6)


def perfect(num_steps, **options):
    oracle = Oracle(cosine(num_steps=num_steps), SHAPE)
    network, _ = oracle.network("pred_v")
    process = GaussianDiffusion(oracle.schedule, PredV(), **options)
    return oracle, Denoiser(network, process, clip="none")


def data(oracle, count):
    return oracle.mu + oracle.sigma * torch.randn(
        count, *SHAPE, generator=torch.Generator().manual_seed(0)
    )


def test_terms_are_those_of_bound_term_and_the_total_is_their_sum_with_the_prior():
    oracle, denoiser = perfect(5)
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
        expected = bound_term(denoiser.diffusion, denoiser(x_t, step), x0, x_t, t)
        torch.testing.assert_close(bound.terms[:, step], expected)


@pytest.mark.parametrize("steps", ["ddim4", (1, 3)])
def test_on_a_respaced_process_each_term_spans_its_stride(steps):
    oracle, denoiser = perfect(20)
    kept = respaced(20, steps)
    x0 = data(oracle, 2)
    bound = bits_per_dimension(denoiser, x0, randn_like=normal(1), steps=kept)
    assert bound.steps == tuple(kept)
    draw = normal(1)
    for index, step in enumerate(kept):
        pair = [step, kept[index - 1] if index else -1, kept[min(index + 1, len(kept) - 1)]]
        t, s, after = (torch.full((2,), n) for n in pair)
        x_t = denoiser.diffusion.diffuse(x0, t, draw(x0))
        expected = bound_term(denoiser.diffusion, denoiser(x_t, step), x0, x_t, t, s, after)
        torch.testing.assert_close(bound.terms[:, index], expected)
    torch.testing.assert_close(bound.prior, prior_term(denoiser.diffusion, x0, kept[-1]))


def test_the_bound_is_above_the_entropy_and_near_it():
    """The denoiser is perfect; only the fixed variance keeps the bound from the entropy."""
    oracle, denoiser = perfect(200, bin_width=0.02)
    x0 = data(oracle, 400)
    bound = bits_per_dimension(denoiser, x0, randn_like=normal(2))
    bins = torch.log2(oracle.sigma / 0.02)
    entropy = float(bins.mean()) + 0.5 * math.log2(2 * math.pi * math.e)
    got, error = float(bound.total.mean()), float(bound.total.std()) / 20
    assert entropy - 3 * error < got < entropy + 0.8


def test_labels_reach_the_network():
    seen = []

    def network(x, t, y):
        seen.append(y.tolist())
        return x

    denoiser = Denoiser(network, GaussianDiffusion(cosine(num_steps=3), PredNoise()))
    bits_per_dimension(denoiser, torch.zeros(2, 1, 4), randn_like=normal(0), y=torch.tensor([4, 1]))
    assert seen == [[4, 1]] * 3
