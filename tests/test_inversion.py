"""DDIM inversion: the noise from which deterministic sampling yields the data."""

from itertools import pairwise

import pytest
import torch

from ddpm.diffusion import (
    Denoiser,
    GaussianDiffusion,
    PredV,
    class_conditioning,
    cosine,
    linear,
    sigmoid,
)
from ddpm.guidance.denoisers import ClassifierFreeGuidance
from ddpm.inversion import invert
from ddpm.samplers import DDIM
from tests.oracle import Oracle, normal

T = 1000
SCHEDULES = {
    "linear": linear(num_steps=T),
    "cosine": cosine(num_steps=T),
    "sigmoid": sigmoid(num_steps=T),
    "zero_terminal": cosine(num_steps=T, zero_terminal_snr=True),
}
SAMPLERS = {
    "uniform": DDIM(steps=50),
    "trailing": DDIM(steps=50, spacing="trailing"),
    "quadratic": DDIM(steps=50, spacing="quadratic"),
    "ddim50": DDIM(steps="ddim50"),
    "sections": DDIM(steps=(30, 20)),
}


def data(oracle, count=8):
    return oracle.mu + oracle.sigma * normal(1)(torch.empty(count, *oracle.mu.shape[1:]))


def round_trip(oracle, sampler, start, refine, objective="pred_v"):
    """Return the largest error of x0 after inversion and sampling."""
    denoiser, _ = oracle.denoiser(objective)
    x0 = data(oracle)
    noise = invert(sampler, denoiser, x0, start=start, refine=refine)
    back = sampler.sample(denoiser, noise, randn_like=normal(0), start=start)
    return (back - x0).abs().max().item()


@pytest.mark.parametrize("start", [T - 1, 500])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_inversion_and_sampling_return_the_data(schedule, sampler, start):
    oracle = Oracle(SCHEDULES[schedule], (2, 8))
    errors = [round_trip(oracle, SAMPLERS[sampler], start, refine) for refine in (0, 1, 3, 6)]
    assert errors[0] > 0.02  # the plain inversion of Song et al. is not an inverse in 50 steps
    assert errors[1] < errors[0] / 5
    assert errors[2] < 2e-4
    assert errors[3] < 1e-5


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("spacing", ["uniform", "trailing"])
def test_few_steps_require_more_refinement(schedule, spacing):
    oracle, sampler = Oracle(SCHEDULES[schedule], (2, 8)), DDIM(steps=10, spacing=spacing)
    errors = [round_trip(oracle, sampler, T - 1, refine) for refine in (0, 1, 3, 6, 12)]
    assert all(after < before / 1.5 for before, after in pairwise(errors))
    assert errors[-1] < 1e-4


@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
def test_inversion_with_every_objective(objective):
    oracle = Oracle(linear(num_steps=T), (1, 4, 4))
    assert round_trip(oracle, DDIM(steps=50), T - 1, 6, objective) < 1e-4


def test_without_refinement_it_is_the_inversion_of_song_et_al():
    """Return x_t from the prediction at the lower end of the step, with the same noise."""
    oracle = Oracle(cosine(num_steps=T), (2, 8))
    denoiser, times = oracle.denoiser("pred_v")
    sampler = DDIM(steps=20)
    x = data(oracle)
    ours = invert(sampler, denoiser, x, start=600, refine=0)
    ascending = sampler.timesteps(oracle.schedule, start=600)[-2::-1]
    assert times == [ascending[0], *ascending[:-1]]
    a, s = oracle.schedule.signal_noise(ascending[0])
    x = a * x + s * denoiser(a * x, ascending[0]).eps
    for below, t in pairwise(ascending):
        prediction = denoiser(x, below)
        a, s = oracle.schedule.signal_noise(t)
        x = a * prediction.x0 + s * prediction.eps
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)


def test_many_steps_converge_to_the_flow():
    oracle = Oracle(linear(num_steps=T), (2, 8))
    denoiser, _ = oracle.denoiser("pred_v")
    x0 = data(oracle)
    noise = invert(DDIM(steps=T), denoiser, x0, start=T - 1)
    exact = oracle.flow(x0, -1, T - 1)
    # At step 0 the walk answers E[x0 | x_0], a little narrower than the flow.
    torch.testing.assert_close(noise, exact, rtol=0, atol=0.03)
    assert noise.std().item() == pytest.approx(1, abs=0.2)


def test_calls_are_counted_and_the_last_guess_is_the_result():
    oracle = Oracle(cosine(num_steps=T), (1, 4))
    denoiser, times = oracle.denoiser("pred_v")
    calls = []
    out = invert(
        DDIM(steps=5),
        denoiser,
        data(oracle),
        start=700,
        refine=2,
        on_step=lambda done, total, x: calls.append((done, total, x)),
    )
    assert [pair[:2] for pair in calls] == [(i + 1, 15) for i in range(15)]
    assert calls[-1][2] is out
    nodes = DDIM(steps=5).timesteps(oracle.schedule, start=700)[-2::-1]
    below = [nodes[0], *nodes[:-1]]
    expected = [[low, t, t] for low, t in zip(below, nodes, strict=True)]
    assert times == [t for calls in expected for t in calls]


def test_inversion_with_labels_and_guidance():
    process = GaussianDiffusion(cosine(num_steps=T), PredV())
    seen = []

    def network(x_t, time, y):
        seen.append(y.tolist())
        return 0.3 * torch.sin(x_t) + 0.1 * y.float().reshape(-1, 1, 1)

    denoiser = ClassifierFreeGuidance(Denoiser(network, process), scale=2.0)
    x0 = 0.5 * normal(2)(torch.empty(2, 1, 6))
    y, swapped = (class_conditioning(torch.tensor(labels), 5) for labels in ([1, 4], [4, 1]))
    sampler = DDIM(steps=20)
    noise = invert(sampler, denoiser, x0, start=800, conditioning=y, refine=12)
    assert seen == [[1, 4, 5, 5]] * (20 * 13)
    back = sampler.sample(denoiser, noise, randn_like=normal(0), start=800, conditioning=y)
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-4)
    other = sampler.sample(denoiser, noise, randn_like=normal(0), start=800, conditioning=swapped)
    assert (other - x0).abs().max() > 0.05


@pytest.mark.parametrize("steps", [20, "ddim20"])
def test_conditioning_entries_stay_clean_during_inversion(steps):
    mask = torch.tensor([[True], [False]])
    process = GaussianDiffusion(cosine(num_steps=T), PredV(), mask)
    x0 = 0.5 * normal(3)(torch.empty(3, 2, 6))
    seen = []

    def network(x_t, time):
        seen.append(x_t[:, :1])
        return 0.3 * torch.sin(x_t[:, 1:] + x_t[:, :1])

    denoiser = Denoiser(network, process)
    noise = invert(DDIM(steps=steps), denoiser, x0, start=800, refine=12)
    back = DDIM(steps=steps).sample(denoiser, noise, randn_like=normal(0), start=800, condition=x0)
    assert all(torch.equal(each, x0[:, :1]) for each in seen)
    assert torch.equal(noise[:, :1], x0[:, :1])
    assert (noise[:, 1:] - x0[:, 1:]).abs().max() > 0.1
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-4)
