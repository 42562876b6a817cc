"""Update rules in a single step, and the state that the loop passes between steps."""

import math

import pytest
import torch

from ddpm.diffusion import (
    Clipping,
    Denoiser,
    GaussianDiffusion,
    PredV,
    PredX0,
    class_conditioning,
    cosine,
    linear,
    sigmoid,
)
from ddpm.errors import ConfigError
from ddpm.interop import import_network
from ddpm.samplers import DDIM, DDPM
from tests.oracle import Oracle, normal
from tests.reference_cases import filled, load_case, relative_error

ONE, ZERO = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)


def update(sampler, schedule, t, s, x0, eps, fresh, **options):
    """Return x_s for predicted x0 and eps, with ``fresh`` as the noise of the step."""
    denoiser = Denoiser(lambda x, time: x0, GaussianDiffusion(schedule, PredX0(), **options))
    a, noise = schedule.signal_noise(t)
    x_t = a * x0 + noise * eps
    return sampler.sample(denoiser, x_t, times=[t, s], randn_like=lambda x: fresh)


@pytest.mark.parametrize("make", [linear, cosine, sigmoid])
def test_coefficients_of_every_rule_for_pairs_near_and_far(make):
    """x_s is linear in (x0, eps, fresh noise), with the coefficients of the paper."""
    schedule = make(num_steps=60)
    alpha_bar = schedule.alpha_bar.tolist()
    for t in range(1, 60, 7):
        for s in range(t):
            at, as_ = alpha_bar[t], alpha_bar[s]
            small = (1 - as_) / (1 - at) * (1 - at / as_)
            spread = {
                DDPM(variance="fixed_small"): (small, small),
                DDPM(variance="fixed_large"): (1 - at / as_, small),
                DDIM(): (0, 0),
                DDIM(eta=0.3): (0.09 * small, 0.09 * small),
                DDIM(eta=1.0): (small, small),
            }
            for sampler, (fresh, left_out) in spread.items():
                of_x0, of_eps, of_fresh = (
                    update(sampler, schedule, t, s, *unit).item()
                    for unit in ((ONE, ZERO, ZERO), (ZERO, ONE, ZERO), (ZERO, ZERO, ONE))
                )
                assert of_x0 == pytest.approx(math.sqrt(as_), rel=1e-9)
                assert of_eps == pytest.approx(math.sqrt(1 - as_ - left_out), rel=1e-8, abs=1e-9)
                assert of_fresh == pytest.approx(math.sqrt(fresh), rel=1e-9)


@pytest.mark.parametrize("sampler", [DDPM(), DDPM(variance="fixed_large"), DDIM(), DDIM(eta=1.0)])
def test_the_last_step_returns_the_predicted_x0_without_noise(sampler):
    x0 = torch.tensor([0.25, -0.5], dtype=torch.float64)
    for t in (0, 5, 19):
        out = update(sampler, cosine(num_steps=20), t, -1, x0, x0 + 1, 100 * x0)
        assert torch.equal(out, x0)


def test_sampler_variance_overrides_that_of_the_process():
    schedule = linear(num_steps=50)
    small, large = 0.0, 0.0
    for own, expected in ((None, "fixed_large"), ("fixed_small", "fixed_small")):
        process = GaussianDiffusion(schedule, PredX0(), variance="fixed_large")
        out = update(DDPM(variance=own), schedule, 30, 20, ZERO, ZERO, ONE, variance="fixed_large")
        small, large = process.posterior_variance(30, 20), process.step_variance(30, 20)
        expected = {"fixed_small": small, "fixed_large": large}[expected]
        assert out.item() == pytest.approx(math.sqrt(expected), rel=1e-12)
    assert large / small > 1.1  # far enough apart to be distinguished


def test_ddim_with_eta_1_is_finite_where_alpha_bar_is_almost_1():
    """The variance of the reused noise is 1e-30, and rounding makes it negative."""
    schedule = sigmoid(num_steps=1000, tau=0.1)
    process = GaussianDiffusion(schedule, PredX0())
    denoiser = Clipping(Denoiser(lambda x, time: torch.zeros_like(x), process))
    out = DDIM(steps=2, eta=1.0).sample(
        denoiser, torch.ones(1, 1, 2), randn_like=torch.zeros_like, start=831
    )
    assert out.dtype == torch.float32
    assert out.tolist() == [[[0.0, 0.0]]]


@pytest.mark.parametrize("sampler", [DDPM(steps=5), DDIM(steps=5), DDPM(), DDIM(steps=5, eta=1.0)])
def test_the_first_network_call_is_at_start(sampler):
    oracle = Oracle(cosine(num_steps=100), (1, 4))
    denoiser, inputs = oracle.denoiser("pred_v")
    x = normal(1)(torch.empty(2, 1, 4))
    done = []
    sampler.sample(
        denoiser,
        x,
        randn_like=normal(2),
        start=37,
        on_step=lambda i, n, x0: done.append((i, n, x0.shape)),
    )
    assert inputs[0] == 37
    assert inputs == sampler.timesteps(oracle.schedule, start=37)[:-1]
    assert done == [(i + 1, len(inputs), x.shape) for i in range(len(inputs))]
    inputs.clear()
    sampler.sample(denoiser, x, randn_like=normal(2))
    assert inputs[0] == 99


@pytest.mark.parametrize("sampler", [DDPM(), DDIM(steps=100), DDIM(steps=100, eta=0.4)])
def test_sampling_in_two_parts_equals_sampling_at_once(sampler):
    oracle = Oracle(cosine(num_steps=100), (1, 4))
    denoiser, _ = oracle.denoiser("pred_noise")
    x = normal(1)(torch.empty(2, 1, 4))
    whole = sampler.sample(denoiser, x, randn_like=normal(3))
    randn_like = normal(3)
    middle = sampler.sample(denoiser, x, randn_like=randn_like, stop=40)
    assert (middle - whole).abs().max() > 0.05
    rest = sampler.sample(denoiser, middle, randn_like=randn_like, start=40)
    assert torch.equal(rest, whole)


def test_each_prediction_is_passed_to_the_next_call():
    process = GaussianDiffusion(cosine(num_steps=30), PredX0(), self_condition=True)
    inputs, previous, answers, states = [], [], [], []

    def network(x_t, time, x_self_cond):
        inputs.append(x_t)
        previous.append(x_self_cond)
        answers.append(x_t * 2 + 0.1)
        return answers[-1]

    result = DDIM(steps=4).sample(
        Clipping(Denoiser(network, process)),
        normal(4)(torch.empty(2, 1, 5)),
        randn_like=normal(5),
        on_step=lambda done, total, x: states.append(x),
    )
    assert len(inputs) == len(states) == 4
    assert not previous[0].any()
    for i in range(3):
        assert torch.equal(previous[i + 1], answers[i].clamp(-1, 1))
        assert torch.equal(states[i], inputs[i + 1])
    assert states[3] is result
    assert any((answer.abs() > 1).any() for answer in answers[:3])


def test_labels_reach_the_network():
    process = GaussianDiffusion(cosine(num_steps=30), PredV())
    seen = []

    def network(x_t, time, y):
        seen.append(y)
        return x_t

    y = torch.tensor([3, 1])
    denoiser = Clipping(Denoiser(network, process))
    conditioning = class_conditioning(y)
    x = torch.ones(2, 1, 5)
    DDPM(steps=3).sample(denoiser, x, randn_like=normal(5), conditioning=conditioning)
    assert [labels is y for labels in seen] == [True] * 3


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: DDPM(steps=0), "steps=0: must be at least 1; null = the default"),
        (lambda: DDIM(steps=-3), "steps=-3: must be at least 1; null = the default"),
        (
            lambda: DDIM(eta=1.5),
            "eta=1.5: must be between 0 (deterministic) and 1 (ancestral)",
        ),
        (
            lambda: DDIM(eta=-0.1),
            "eta=-0.1: must be between 0 (deterministic) and 1 (ancestral)",
        ),
        (
            lambda: DDPM(dynamic_quantile=0.0),
            "dynamic_quantile=0.0: must be above 0 and at most 1",
        ),
        (
            lambda: DDIM(dynamic_quantile=1.01),
            "dynamic_quantile=1.01: must be above 0 and at most 1",
        ),
    ],
)
def test_invalid_options_are_rejected(make, line):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == line


def test_a_complete_ddim_run_of_denoising_diffusion_pytorch():
    meta, case = load_case("unet_ddim")
    weights = filled(meta["state_dict"])
    network = import_network("denoising-diffusion-pytorch", meta["kwargs"], weights).eval()
    process = GaussianDiffusion(sigmoid(num_steps=meta["timesteps"]), PredV())
    sampler = DDIM(steps=meta["sampling_timesteps"], spacing="trailing")
    denoiser = Clipping(Denoiser(network, process))
    sample = sampler.sample(denoiser, case["x_T"], randn_like=torch.randn_like)
    assert relative_error((sample + 1) / 2, case["sample"]) < 1e-4
