"""Samplers with Gaussian data and the ideal denoiser: distribution, order of convergence."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from ddpm.diffusion import cosine, linear
from ddpm.samplers import DDIM, DDPM
from tests.oracle import OBJECTIVES, SHAPES, Oracle, normal

NUM_STEPS = 200


def law(oracle, times, fixed_large):
    """Return mean and variance of each element of ancestral samples, by recursion."""
    alpha_bar = [*oracle.schedule.alpha_bar.tolist(), 1.0]  # [-1] is clean
    mu, var = oracle.mu.double().numpy(), oracle.sigma.double().numpy() ** 2
    mean, spread = np.zeros_like(mu), np.ones_like(mu)
    for t, s in pairwise(times):
        at, as_ = alpha_bar[t], alpha_bar[s]
        slope = math.sqrt(at) * var / (at * var + 1 - at)  # E[x0 | x_t] = offset + slope x_t
        offset = mu * (1 - math.sqrt(at) * slope)
        of_x0 = math.sqrt(as_) * (1 - at / as_) / (1 - at)
        of_x_t = math.sqrt(at / as_) * (1 - as_) / (1 - at)
        fresh = (1 - at / as_) * (1 if fixed_large else (1 - as_) / (1 - at))
        gain = of_x0 * slope + of_x_t
        mean, spread = of_x0 * offset + gain * mean, gain**2 * spread + (fresh if s >= 0 else 0)
    return mean, spread


def standardised(oracle, samples):
    """Return the samples standardized per element."""
    return ((samples - oracle.mu) / oracle.sigma).double().flatten()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_reaches_the_data(shape, objective, variance):
    oracle = Oracle(linear(num_steps=NUM_STEPS), shape)
    denoiser, times = oracle.denoiser(objective)
    randn_like = normal(11)
    x = randn_like(torch.empty(800, *shape))
    sampler = DDPM(variance=variance)
    z = standardised(oracle, sampler.sample(denoiser, x, randn_like=randn_like))
    assert times == list(range(NUM_STEPS - 1, -1, -1))
    # Five standard errors around the chain's own law, which itself lies near the data's.
    mean, spread = law(oracle, sampler.timesteps(oracle.schedule), variance == "fixed_large")
    bias = (mean - oracle.mu.numpy()) / oracle.sigma.numpy()
    ratio = spread / oracle.sigma.numpy() ** 2
    second = float((ratio + bias**2).mean())
    assert abs(z.mean().item() - bias.mean()) < 5 / math.sqrt(len(z))
    assert abs(z.pow(2).mean().item() - second) < 5 * math.sqrt(2 / len(z))
    assert np.abs(bias).max() < 0.01
    assert np.abs(np.sqrt(ratio) - 1).max() < 10 / NUM_STEPS


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_in_few_steps_has_the_moments_of_its_recursion(shape, steps, variance):
    """Few steps miss the data distribution: mean and variance of each element are compared."""
    oracle = Oracle(cosine(num_steps=NUM_STEPS), shape)
    denoiser, _ = oracle.denoiser("pred_v", variance=variance)  # the process's choice holds
    randn_like = normal(12)
    sampler = DDPM(steps=steps)
    count = 4000
    x = randn_like(torch.empty(count, *shape))
    samples = sampler.sample(denoiser, x, randn_like=randn_like).double()
    mean, spread = law(oracle, sampler.timesteps(oracle.schedule), variance == "fixed_large")
    far = (samples.mean(0).numpy() - mean[0]) / np.sqrt(spread[0] / count)
    wide = (samples.var(0).numpy() / spread[0] - 1) / math.sqrt(2 / count)
    assert np.abs(far).max() < 5
    assert np.abs(wide).max() < 5
    # Means of squares over all elements: about 1 if both are as computed.
    assert np.mean(far**2) == pytest.approx(1, abs=5 * math.sqrt(2 / far.size))
    assert np.mean(wide**2) == pytest.approx(1, abs=5 * math.sqrt(2 / wide.size))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sampler", [DDPM(steps=20), DDIM(steps=20), DDIM(steps=20, eta=0.5)])
def test_all_objectives_give_the_same_samples(shape, sampler):
    oracle = Oracle(linear(num_steps=NUM_STEPS), shape)
    x = normal(13)(torch.empty(8, *shape))
    noise, x0, v = (
        sampler.sample(oracle.denoiser(name)[0], x, randn_like=normal(14)) for name in OBJECTIVES
    )
    assert noise.dtype == torch.float32
    torch.testing.assert_close(noise, v, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x0, v, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("spacing", ["uniform", "quadratic"])
def test_ddim_converges_to_the_flow_at_order_1(shape, objective, spacing):
    T = 20000
    oracle = Oracle(linear(num_steps=T), shape)
    denoiser, _ = oracle.denoiser(objective)
    x = normal(15)(torch.empty(16, *shape))
    # The flow takes x to step 0; the last step answers E[x0 | x_0].
    a, s = oracle.schedule.signal_noise(0)
    exact, _ = oracle.predict(oracle.flow(x, T - 1, 0), a, s)
    counts = [40, 80, 160, 320]
    errors = []
    for steps in counts:
        sampler = DDIM(steps=steps, spacing=spacing)
        ours = sampler.sample(denoiser, x, randn_like=normal(0))
        errors.append((ours - exact).double().pow(2).mean().sqrt().item())
    order = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert 0.85 < order < 1.15, (order, errors)
    assert errors[-1] < 0.01


@pytest.mark.parametrize("shape", SHAPES)
def test_ddim_in_all_steps_is_near_the_flow(shape):
    T = 1000
    oracle = Oracle(linear(num_steps=T), shape)
    denoiser, times = oracle.denoiser("pred_v")
    x = normal(16)(torch.empty(4, *shape))
    ours = DDIM(steps=T).sample(denoiser, x, randn_like=normal(0))
    assert times == list(range(T - 1, -1, -1))
    a, s = oracle.schedule.signal_noise(0)
    exact, _ = oracle.predict(oracle.flow(x, T - 1, 0), a, s)
    torch.testing.assert_close(ours, exact, rtol=0, atol=0.01)
