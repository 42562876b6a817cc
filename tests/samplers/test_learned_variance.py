"""Ancestral sampling with a learned variance."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from ddpm.diffusion import (
    Clipping,
    Denoiser,
    GaussianDiffusion,
    PredX0,
    class_conditioning,
    cosine,
    linear,
)
from ddpm.guidance.denoisers import ClassifierFreeGuidance
from ddpm.samplers import DDIM, DDPM
from tests.oracle import Oracle, normal

T = 200
SHAPE = (2, 6)


def process(schedule, variance="learned_range", mask=None):
    return GaussianDiffusion(schedule, PredX0(), mask, variance=variance, loss="hybrid")


def limits(schedule, t, s):
    """Return the variances of the posterior and of the forward step."""
    at, as_ = (schedule.alpha_bar[step].item() for step in (t, s))
    return (1 - at / as_) * (1 - as_) / (1 - at), 1 - at / as_


@pytest.mark.parametrize(("t", "s"), [(199, 198), (150, 50), (20, 0), (1, 0)])
@pytest.mark.parametrize("spatial", [(), (6,), (3, 4)])
def test_a_step_has_the_learned_variance(t, s, spatial):
    """With respaced steps the range is that of the step; each entry has its own variance."""
    schedule = linear(num_steps=T)
    x_t, x0, fresh = normal(0)(torch.empty(3, 4, 2, *spatial))
    small, large = limits(schedule, t, s)
    share = torch.linspace(-0.2, 1.2, 8 * math.prod(spatial)).reshape(x_t.shape)
    for variance, spread, log in (
        (
            "learned_range",
            2 * share - 1,
            share * math.log(large) + (1 - share) * math.log(small),
        ),
        ("learned", share - 3, share - 3),
    ):
        diffusion = process(schedule, variance)
        denoiser = Denoiser(lambda x, time, spread=spread: torch.cat([x0, spread], 1), diffusion)
        out = DDPM().sample(denoiser, x_t, times=[t, s], randn_like=lambda x: fresh)
        mean, _ = diffusion.posterior(x0, x_t, t, s)
        torch.testing.assert_close(out, mean + (0.5 * log).exp() * fresh, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("spread", "kind"), [(-1.0, "fixed_small"), (1.0, "fixed_large")])
@pytest.mark.parametrize("steps", [None, 10, "ddim50", (3, 4, 5)])
def test_the_ends_of_the_range_are_the_fixed_variances(spread, kind, steps):
    schedule = cosine(num_steps=T)
    x = normal(1)(torch.empty(2, *SHAPE))
    learned, fixed = process(schedule), GaussianDiffusion(schedule, PredX0(), variance=kind)

    def network(x_t, time):
        return torch.cat([0.5 * x_t, torch.full_like(x_t, spread)], dim=1)

    ours = DDPM(steps=steps).sample(Clipping(Denoiser(network, learned)), x, randn_like=normal(2))
    plain = Clipping(Denoiser(lambda x_t, time: 0.5 * x_t, fixed))
    expected = DDPM(steps=steps).sample(plain, x, randn_like=normal(2))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    own = DDPM(steps=steps, variance=kind)  # the sampler's choice holds over the process's
    denoiser = Clipping(Denoiser(network, process(schedule, "learned")))
    overruled = own.sample(denoiser, x, randn_like=normal(2))
    torch.testing.assert_close(overruled, expected, rtol=1e-4, atol=1e-4)


def exact_denoiser(oracle, times):
    """Return the ideal denoiser: E[x0 | x_t], and the variance of x_s given x_t."""
    before = dict(pairwise(times))

    def network(x_t, time):
        t = int(time[0])
        s = before[t]
        x0, _ = oracle.predict(x_t, *oracle.schedule.signal_noise(t))
        if s < 0:
            return torch.cat([x0, x0], dim=1)
        at, as_ = (oracle.schedule.alpha_bar[step].item() for step in (t, s))
        small, _ = limits(oracle.schedule, t, s)
        of_x0 = math.sqrt(as_) * (1 - at / as_) / (1 - at)
        left = oracle.sigma**2 * (1 - at) / (at * oracle.sigma**2 + 1 - at)
        return torch.cat([x0, (small + of_x0**2 * left).log().expand_as(x0)], dim=1)

    return Denoiser(network, process(oracle.schedule, "learned"))


@pytest.mark.parametrize("steps", [4, 20, "ddim50"])
def test_the_right_variance_reaches_gaussian_data_in_any_number_of_steps(steps):
    """The reverse steps of Gaussian data are Gaussian: x_0 is exact, x0 almost."""
    oracle = Oracle(linear(num_steps=T, beta_end=0.03), SHAPE)
    sampler, count = DDPM(steps=steps), 20000
    times = sampler.timesteps(oracle.schedule)
    x = normal(3)(torch.empty(count, *SHAPE))
    denoiser = exact_denoiser(oracle, times)
    samples = sampler.sample(denoiser, x, randn_like=normal(4)).double()
    mean, std = samples.mean(0), samples.std(0)
    error = 5 / math.sqrt(count)
    a, s = oracle.schedule.signal_noise(times[-2])
    # The last step answers E[x0 | x_0], a little narrower than the data.
    narrow = oracle.sigma[0] * (a * oracle.sigma[0]) / ((a * oracle.sigma[0]) ** 2 + s**2) ** 0.5
    assert ((mean - oracle.mu[0]) / oracle.sigma[0]).abs().max() < error
    assert (std / narrow - 1).abs().max() < error
    fixed = oracle.denoiser("pred_x0")[0]
    if steps == 4:  # which the fixed variances cannot do
        for kind in ("fixed_small", "fixed_large"):
            other = DDPM(steps=steps, variance=kind).sample(fixed, x, randn_like=normal(4))
            assert (other.double().std(0) / narrow - 1).abs().min() > 0.02, kind


def test_ddim_ignores_a_learned_variance():
    x = normal(5)(torch.empty(2, *SHAPE))
    schedule = cosine(num_steps=T)

    def network(x_t, time):
        return torch.cat([0.5 * x_t, 7 * x_t], dim=1)

    for eta in (0.0, 1.0):
        sampler = DDIM(steps=10, eta=eta)
        learned = Clipping(Denoiser(network, process(schedule)))
        ours = sampler.sample(learned, x, randn_like=normal(6))
        fixed = Denoiser(lambda x_t, time: 0.5 * x_t, GaussianDiffusion(schedule, PredX0()))
        plain = Clipping(fixed)
        assert torch.equal(ours, sampler.sample(plain, x, randn_like=normal(6)))


def test_guidance_uses_the_variance_of_the_requested_class():
    schedule = cosine(num_steps=T)

    def network(x_t, time, y):
        shift = y.float().reshape(-1, 1, 1)
        return torch.cat([0.1 * shift + 0 * x_t, -shift + 0 * x_t], dim=1)

    denoiser = Denoiser(network, process(schedule, "learned"))
    guided = ClassifierFreeGuidance(denoiser, scale=2.0)
    x, y = torch.zeros(3, *SHAPE), class_conditioning(torch.tensor([1, 4, 6]), 9)
    mean, above = (
        DDPM(steps=20).sample(guided, x, randn_like=fresh, conditioning=y, start=50, stop=49)
        for fresh in (torch.zeros_like, torch.ones_like)
    )
    for row, shift in enumerate((1, 4, 6)):
        np.testing.assert_allclose((above - mean)[row], math.exp(-shift / 2), rtol=1e-5)


def test_learned_variance_with_conditioning_channels():
    """Conditioning channels are restored after a step; the others have the learned variance."""
    mask = torch.tensor([[True], [False], [False]])
    diffusion = process(cosine(num_steps=T), "learned", mask)
    assert diffusion.output_channels(3) == 4
    log = torch.log(torch.tensor([0.25, 0.04])).reshape(1, 2, 1)

    def network(x_t, time):
        return torch.cat([0 * x_t[:, 1:], log.expand(len(x_t), 2, 5)], dim=1)

    condition = normal(7)(torch.empty(2, 3, 5))
    mean, above = (
        DDPM(steps=20).sample(
            Clipping(Denoiser(network, diffusion)),
            normal(8)(torch.empty(2, 3, 5)),
            randn_like=fresh,
            start=50,
            stop=49,
            condition=condition,
        )
        for fresh in (torch.zeros_like, torch.ones_like)
    )
    assert torch.equal(above[:, 0], condition[:, 0])
    np.testing.assert_allclose((above - mean)[:, 1], 0.5, rtol=1e-5)
    np.testing.assert_allclose((above - mean)[:, 2], 0.2, rtol=1e-5)
