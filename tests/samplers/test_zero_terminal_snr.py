"""Sampling with zero terminal SNR: the distribution of the data, and finite values."""

import math

import pytest
import torch

from ddpm.diffusion import (
    Clipping,
    Denoiser,
    GaussianDiffusion,
    PredV,
    class_conditioning,
    cosine,
    linear,
    sigmoid,
)
from ddpm.guidance.denoisers import ClassifierFreeGuidance
from ddpm.samplers import DDIM, DDPM
from tests.oracle import Oracle, normal

T = 200
COUNT = 4000
SAMPLERS = {
    "ddpm": DDPM(),
    "ddpm_large": DDPM(variance="fixed_large"),
    "ddim": DDIM(steps=T),
    "ddim_quadratic": DDIM(steps=100, spacing="quadratic"),
}


@pytest.mark.parametrize("make", [linear, cosine, sigmoid])
@pytest.mark.parametrize("objective", ["pred_v", "pred_x0"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling_from_pure_noise_reaches_the_data(make, objective, name):
    oracle = Oracle(make(num_steps=T, zero_terminal_snr=True), (2, 4))
    denoiser, times = oracle.denoiser(objective)
    finite = []
    samples = SAMPLERS[name].sample(
        denoiser,
        normal(0)(torch.empty(COUNT, 2, 4)),
        randn_like=normal(1),
        on_step=lambda done, total, x: finite.append(bool(torch.isfinite(x).all())),
    )
    assert times[0] == T - 1
    assert all(finite)
    z = ((samples - oracle.mu) / oracle.sigma).double()
    error = 5 / math.sqrt(COUNT)
    assert z.mean(0).abs().max() < error + 0.005
    assert (z.std(0) - 1).abs().max() < error / math.sqrt(2) + 0.05


def test_mean_brightness_is_correct_with_zero_terminal_snr():
    """The flaw that Lin et al. correct: sampling starts from pure noise, unlike x_T in training."""
    off = {}
    for zero in (False, True):
        schedule = linear(num_steps=T, beta_end=0.004, zero_terminal_snr=zero)
        oracle = Oracle(schedule, (2, 4))
        x = normal(2)(torch.empty(COUNT, 2, 4))
        samples = DDIM(steps=T).sample(oracle.denoiser("pred_v")[0], x, randn_like=normal(3))
        off[zero] = ((samples - oracle.mu) / oracle.sigma).mean(0).abs().max().item()
    assert off[False] > 0.2
    assert off[True] < 5 / math.sqrt(COUNT) + 0.005


@pytest.mark.parametrize("sampler", [DDIM(steps=1), DDPM(steps=1), DDIM(steps=5), DDPM(steps=5)])
def test_few_steps_with_guidance_are_finite(sampler):
    process = GaussianDiffusion(cosine(num_steps=T, zero_terminal_snr=True), PredV())

    def network(x_t, time, y):
        return torch.sin(3 * x_t) + 0.1 * y.float().reshape(-1, 1, 1)

    guidance = ClassifierFreeGuidance(Denoiser(network, process), scale=4.0, rescale=0.7)
    x, y = normal(4)(torch.empty(3, 2, 4)), class_conditioning(torch.tensor([0, 1, 2]), 3)
    out = sampler.sample(Clipping(guidance), x, randn_like=normal(5), conditioning=y)
    assert torch.isfinite(out).all()
    assert out.abs().max() <= 1
