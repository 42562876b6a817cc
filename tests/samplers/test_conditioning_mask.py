"""Sampling with conditioning entries: they stay clean, the others follow their distribution."""

import math

import pytest
import torch

from ddpm.diffusion import Clipping, Denoiser, GaussianDiffusion, PredV, PredX0, cosine
from ddpm.samplers import DDIM, DDPM
from tests.oracle import normal

SAMPLERS = [DDPM(), DDPM(steps=7), DDIM(steps=9), DDIM(steps=9, eta=1.0), DDIM(steps="ddim10")]
CHANNELS = torch.tensor([[True], [False], [False]])
PLACES = torch.zeros(3, 4, dtype=torch.bool)
PLACES[:, :2] = True
BOTH = CHANNELS | PLACES


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("mask", [CHANNELS, PLACES, BOTH])
@pytest.mark.parametrize("learned", [False, True])
def test_conditioning_entries_stay_equal_at_every_step(sampler, mask, learned):
    variance = {"variance": "learned_range", "loss": "hybrid"} if learned else {}
    process = GaussianDiffusion(cosine(num_steps=50), PredV(), mask, **variance)
    condition, x = 3 * normal(0)(torch.empty(2, 2, 3, 4))  # beyond the bounds, which clip the rest
    where = mask.expand(3, 4)
    seen, states = [], []

    def network(x_t, time):
        seen.append(x_t)
        answer = process.conditioning_mask.select_generated(torch.sin(x_t))
        return torch.cat([answer, answer], dim=1) if learned else answer

    out = sampler.sample(
        Clipping(Denoiser(network, process)),
        x,
        randn_like=normal(1),
        condition=condition,
        on_step=lambda done, total, x: states.append(x),
    )
    assert out.shape == x.shape
    assert len(seen) == len(states) == len(sampler.timesteps(process.schedule)) - 1
    for each in (*seen, *states, out):
        assert torch.equal(each[:, where], condition[:, where])
    assert torch.equal(seen[0][:, ~where], x[:, ~where])
    assert out[:, ~where].abs().max() <= 1
    assert (out[:, ~where] - condition[:, ~where]).abs().min() > 0


def test_other_entries_of_the_condition_are_ignored():
    process = GaussianDiffusion(cosine(num_steps=50), PredV(), BOTH)
    condition, x, other = normal(2)(torch.empty(3, 2, 3, 4))

    def network(x_t, time):
        return process.conditioning_mask.select_generated(torch.sin(x_t))

    denoiser = Clipping(Denoiser(network, process))
    first, second = (
        DDPM(steps=10).sample(denoiser, x, randn_like=normal(3), condition=clean)
        for clean in (condition, torch.where(BOTH, condition, other))
    )
    assert torch.equal(first, second)


def test_sampling_in_two_parts_keeps_the_conditioning_entries():
    process = GaussianDiffusion(cosine(num_steps=50), PredV(), PLACES)
    condition, x = normal(4)(torch.empty(2, 2, 3, 4))
    denoiser = Clipping(Denoiser(lambda x_t, time: torch.sin(x_t), process))
    whole = DDIM(steps=50).sample(denoiser, x, randn_like=normal(5), condition=condition)
    half = DDIM(steps=50).sample(denoiser, x, randn_like=normal(5), condition=condition, stop=20)
    assert torch.equal(half[:, PLACES], condition[:, PLACES])
    rest = DDIM(steps=50).sample(
        denoiser, half, randn_like=normal(5), condition=condition, start=20
    )
    assert torch.equal(rest, whole)


@pytest.mark.parametrize("mask", [None, PLACES])
def test_a_condition_and_a_conditioning_mask_require_each_other(mask):
    process = GaussianDiffusion(cosine(num_steps=50), PredV(), mask)
    x = torch.zeros(2, 3, 4)
    condition = x if mask is None else None
    denoiser = Denoiser(lambda x_t, time: x_t, process)
    with pytest.raises(AssertionError, match="a condition is required if and only if"):
        DDIM(steps=2).sample(denoiser, x, randn_like=normal(6), condition=condition)


MU, SIGMA = (0.2, -0.3), (0.5, 0.7)


class Pair:
    """Two correlated Gaussians, and the ideal network for the second given the first.

    The first stands in entry ``first`` of a sample and is given, the second in ``second``.
    """

    def __init__(self, schedule, correlation, first, second):
        self.schedule, self.first, self.second = schedule, first, second
        self.slope = correlation * SIGMA[1] / SIGMA[0]
        self.left = SIGMA[1] ** 2 * (1 - correlation**2)

    def mean(self, first):
        """Return the mean of the second entry for values of the first."""
        return MU[1] + self.slope * (first - MU[0])

    def network(self, x_t, time):
        """Return E[second | its x_t, the first] in both entries."""
        a, s = self.schedule.signal_noise(int(time[0]))
        mean = self.mean(x_t[self.first])
        gain = a * self.left / (a**2 * self.left + s**2)
        return (mean + gain * (x_t[self.second] - a * mean)).unsqueeze(1)


COUNT = 20000
LAYOUTS = {
    "channels": (torch.tensor([[True], [False]]), (slice(None), 0), (slice(None), 1)),
    "places": (torch.tensor([[True, False]]), (slice(None), 0, 0), (slice(None), 0, 1)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("correlation", [0.9, -0.6, 0.0])
@pytest.mark.parametrize("sampler", [DDPM(), DDPM(variance="fixed_large"), DDIM(steps=150)])
def test_generated_entries_follow_the_conditional_distribution(layout, correlation, sampler):
    mask, first, second = LAYOUTS[layout]
    schedule = cosine(num_steps=200)
    pair = Pair(schedule, correlation, first, second)
    shape = (COUNT, 2, 1) if layout == "channels" else (COUNT, 1, 2)

    def network(x_t, time):
        answer = pair.network(x_t, time)
        return answer if layout == "channels" else answer.expand(COUNT, 2).unsqueeze(1)

    denoiser = Denoiser(network, GaussianDiffusion(schedule, PredX0(), mask))
    condition = normal(7)(torch.empty(shape))
    condition[first] = MU[0] + SIGMA[0] * condition[first]
    x = normal(8)(torch.empty(shape))
    out = sampler.sample(denoiser, x, randn_like=normal(9), condition=condition)
    conditions, generated = (out[part].double().flatten() for part in (first, second))
    assert torch.equal(conditions, condition[first].double().flatten())
    std = math.sqrt(pair.left)
    rest = generated - pair.mean(conditions)
    # Five standard errors, and what the steps leave out.
    error = 5 / math.sqrt(COUNT)
    assert abs(rest.mean().item()) < error * std
    assert rest.std().item() == pytest.approx(std, rel=error / math.sqrt(2) + 0.02)
    dependence = (rest * (conditions - MU[0])).mean().item() / (std * SIGMA[0])
    assert abs(dependence) < error
    assert generated.mean().item() == pytest.approx(MU[1], abs=2 * error * SIGMA[1])
    assert generated.std().item() == pytest.approx(SIGMA[1], rel=2 * error + 0.01)
