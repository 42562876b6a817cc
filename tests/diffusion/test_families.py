"""Rectified flow and EDM as processes on one table: closed forms."""

import math
from itertools import pairwise

import pytest
import torch

from ddpm.diffusion import (
    EDM,
    Denoiser,
    DiffusionLoss,
    GaussianDiffusion,
    PredFlow,
    PredNoise,
    PredV,
    PredX0,
    cosine,
    edm,
    linear,
    rectified,
)
from ddpm.errors import ConfigError
from ddpm.samplers import DDIM

OBJECTIVES = {
    "pred_noise": PredNoise(),
    "pred_x0": PredX0(),
    "pred_v": PredV(),
    "pred_flow": PredFlow(),
    "edm": EDM(sigma_data=0.5),
    "edm_wide": EDM(sigma_data=3.0),
}
ANGLES = [0.002, 0.1, 0.5, math.pi / 4, 1.0, 1.4, 1.56]


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize("num_steps", [2, 10, 1000])
def test_rectified_is_the_straight_path_divided_by_its_standard_deviation(num_steps, shift):
    schedule = rectified(num_steps=num_steps, shift=shift)
    assert schedule.num_steps == num_steps
    assert schedule.zero_terminal_snr and schedule.alpha_bar[-1] == 0
    for t in range(num_steps):
        u = (t + 1) / num_steps
        u = shift * u / (1 + (shift - 1) * u)
        a, s = schedule.signal_noise(t)
        assert s / (a + s) == pytest.approx(u, rel=1e-9)
        assert a == pytest.approx((1 - u) / math.hypot(1 - u, u), rel=1e-9, abs=1e-15)
    assert (schedule.betas > 0).all() and (schedule.betas <= 1).all()


def test_edm_is_uniform_in_log_sigma_between_its_timesteps_too():
    schedule = edm(num_steps=40, sigma_min=0.01, sigma_max=50.0)
    low, high = math.log(0.01), math.log(50.0)
    for t in [0, 1, 0.25, 7.5, 20, 38.9, 39]:
        sigma = math.exp(low + (high - low) * t / 39)
        assert schedule.alpha_bar_at(t) == pytest.approx(1 / (1 + sigma**2), rel=1e-9)
        assert schedule.time(-2 * math.log(sigma)) == pytest.approx(t, abs=1e-8)
    default = edm()
    a, s = default.signal_noise(0)
    assert (default.num_steps, s / a) == (1000, pytest.approx(0.002, rel=1e-9))
    a, s = default.signal_noise(999)
    assert s / a == pytest.approx(80, rel=1e-9)


@pytest.mark.parametrize(
    ("make", "options", "line"),
    [
        (rectified, {"num_steps": 1}, "num_steps=1: needs at least 2 steps"),
        (rectified, {"shift": 0.0}, "shift=0.0: must be above 0; 1 is off"),
        (edm, {"num_steps": 1}, "num_steps=1: needs at least 2 steps"),
        (edm, {"sigma_min": 0.0}, "sigma_min=0.0: must be above 0"),
        (edm, {"sigma_min": 90.0}, "sigma_min=90.0: must be below sigma_max=80.0"),
        (EDM, {"sigma_data": -1.0}, "sigma_data=-1.0: must be above 0"),
        (
            EDM,
            {},
            "sigma_data: is measured at the start of a training only; set a number, such as 0.5",
        ),
    ],
)
def test_invalid_options_are_rejected(make, options, line):
    with pytest.raises(ConfigError) as caught:
        make(**options)
    assert str(caught.value) == line


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("angle", ANGLES)
def test_x0_is_the_inverse_of_the_target(name, angle):
    objective, a, s = OBJECTIVES[name], math.cos(angle), math.sin(angle)
    x0, eps = normal(4, 2, 3), normal(4, 2, 3, seed=1)
    x_t = a * x0 + s * eps
    scales = tuple(torch.full((4, 1, 1), value, dtype=torch.float64) for value in (a, s))
    for each in ((a, s), scales):
        again = objective.x0(x_t, objective.target(x0, eps, *each), *each)
        torch.testing.assert_close(again, x0, rtol=0, atol=1e-8 if name == "pred_noise" else 1e-12)
    as_float, as_tensor = (objective.scale_input(x_t, *each) for each in ((a, s), scales))
    torch.testing.assert_close(as_float, as_tensor, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("angle", ANGLES)
def test_noise_weight_is_the_squared_ratio_of_the_errors(name, angle):
    """The error of the implied noise, divided by that of the output."""
    objective, a, s = OBJECTIVES[name], math.cos(angle), math.sin(angle)
    x_t, output, error = normal(50), normal(50, seed=1), normal(50, seed=2)
    x0, wrong = objective.x0(x_t, output, a, s), objective.x0(x_t, output + error, a, s)
    ratio = ((wrong - x0) * (a / s)).square().sum() / error.square().sum()
    snr = torch.tensor([(a / s) ** 2], dtype=torch.float64)
    weight = objective.noise_weight(snr, snr)
    assert weight.item() == pytest.approx(ratio.item(), rel=1e-6)
    capped = snr.clamp(max=0.3)
    assert objective.noise_weight(snr, capped).item() == pytest.approx(
        (ratio * capped / snr).item(), rel=1e-6
    )


def test_at_pure_noise_the_velocity_determines_x0():
    x0, eps = normal(5), normal(5, seed=1)
    assert torch.equal(PredFlow().target(x0, eps, 0.0, 1.0), eps - x0)
    torch.testing.assert_close(PredFlow().x0(eps, eps - x0, 0.0, 1.0), x0)
    assert torch.equal(PredFlow().scale_input(eps, 0.0, 1.0), eps)


@pytest.mark.parametrize("schedule", [rectified(num_steps=60), rectified(num_steps=60, shift=3.0)])
@pytest.mark.parametrize("steps", [1, 7, 60])
def test_euler_steps_along_the_velocity_are_ddim_steps(schedule, steps):
    """From u to u' for any network: x_flow + (u' - u) v."""

    def network(x, time):
        return torch.tanh(1.3 * x + time.double().reshape(-1, 1) / 60) - 0.2 * x

    process = GaussianDiffusion(schedule, PredFlow())
    sampler = DDIM(steps=steps, clip="none")
    x = normal(3, 5)
    drawn = sampler.sample(Denoiser(network, process), x, randn_like=torch.randn_like)
    times = sampler.timesteps(schedule)
    assert len(times) == steps + 1 and times[-1] == -1
    for t, after in pairwise(times):
        here, there = (s / (a + s) for a, s in map(schedule.signal_noise, (t, after)))
        x = x + (there - here) * network(x, torch.full((3,), t))
    torch.testing.assert_close(drawn, x, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "schedule", [edm(num_steps=50), cosine(num_steps=50), linear(num_steps=50)]
)
@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 2.0])
def test_edm_is_its_published_preconditioning(schedule, sigma_data):
    """c_skip, c_out, c_in and c_noise of table 1, in terms of x = x_t / a and sigma = s / a."""
    calls = []

    def network(x, time):
        calls.append((x, time))
        return torch.cos(x)

    process = GaussianDiffusion(schedule, EDM(sigma_data=sigma_data), rescale_timesteps=True)
    x_t, t = normal(4, 3), torch.tensor([0, 20, 33, 49])
    prediction = Denoiser(network, process)(x_t, t)
    sigma = (schedule.sigma(t) / schedule.alpha(t))[:, None]
    x, variance = x_t / schedule.alpha(t)[:, None], sigma**2 + sigma_data**2
    scaled, time = calls[0]
    near = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(scaled, x / variance.sqrt(), **near)
    torch.testing.assert_close(time.double(), sigma[:, 0].log() / 4, **near)
    skip, out = sigma_data**2 / variance, sigma * sigma_data / variance.sqrt()
    torch.testing.assert_close(prediction.x0, skip * x + out * torch.cos(scaled), **near)
    single = Denoiser(network, process)(x_t, 20)
    torch.testing.assert_close(calls[1][1][0], time[1], **near)
    torch.testing.assert_close(single.x0[1], prediction.x0[1], **near)


def test_edm_with_unit_variance_predicts_the_negative_velocity():
    x0, eps = normal(6), normal(6, seed=1)
    a, s = math.cos(0.7), math.sin(0.7)
    objective = EDM(sigma_data=1.0)
    torch.testing.assert_close(objective.target(x0, eps, a, s), -PredV().target(x0, eps, a, s))
    torch.testing.assert_close(objective.scale_input(x0, a, s), x0)


def test_input_and_target_of_edm_have_unit_variance():
    x0, eps = 0.3 * normal(200_000), normal(200_000, seed=1)
    objective = EDM(sigma_data=0.3)
    for angle in ANGLES:
        a, s = math.cos(angle), math.sin(angle)
        assert objective.scale_input(a * x0 + s * eps, a, s).std().item() == pytest.approx(
            1, rel=0.01
        )
        assert objective.target(x0, eps, a, s).std().item() == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("sigma_data", [0.4, 1.7])
def test_the_loss_of_edm_has_the_published_weight(sigma_data):
    """An error of D has the weight lambda = (sigma^2 + sd^2) / (sigma sd)^2; lambda c_out^2 = 1."""
    schedule = edm(num_steps=30)
    process = GaussianDiffusion(schedule, EDM(sigma_data=sigma_data))
    x0, noise, output = (normal(4, 3, seed=seed).float() for seed in range(3))
    t = torch.tensor([0.0, 7.25, 19.5, 29.0])
    loss = DiffusionLoss(process)(lambda x, time: output, x0, t, noise)
    denoised = Denoiser(lambda x, time: output, process)(process.diffuse(x0, t, noise), t).x0
    sigma = schedule.sigma(t) / schedule.alpha(t)
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    expected = weight * (denoised - x0).double().square().mean(1)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-3, atol=0)
    c_out = sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()
    torch.testing.assert_close(weight * c_out**2, torch.ones(4).double())


def gaussian_network(mean, std):
    """Return F of the perfect denoiser of N(mean, std^2), from c_noise alone."""

    def network(x, time):
        sigma = torch.exp(4 * time.double()).reshape(-1, 1)
        return (mean * sigma / (std * (sigma**2 + std**2).sqrt())).expand_as(x)

    return network


def test_a_perfect_edm_network_gives_the_gaussian():
    mean, std = 0.3, 0.6
    schedule = edm(num_steps=1000)
    process = GaussianDiffusion(schedule, EDM(sigma_data=std))
    network, x = gaussian_network(mean, std), normal(2000, 2)
    for t in [0, 12.5, 400, 730.25, 999]:
        a, s = schedule.signal_noise(t)
        posterior = mean + std**2 * a / (s**2 + std**2 * a**2) * (x - a * mean)
        torch.testing.assert_close(
            Denoiser(network, process)(x, t).x0, posterior, rtol=0, atol=1e-6
        )
    a, s = schedule.signal_noise(999)
    flow = mean + std * (x - a * mean) / math.sqrt(s**2 + std**2 * a**2)
    sampler = DDIM(steps=1000, clip="none")
    drawn = sampler.sample(Denoiser(network, process), x, randn_like=torch.randn_like)
    torch.testing.assert_close(drawn, flow, rtol=0, atol=0.02)
    assert drawn.mean().item() == pytest.approx(mean, abs=0.03)
    assert drawn.std().item() == pytest.approx(std, abs=0.03)


@pytest.mark.parametrize("objective", [PredNoise(), EDM(sigma_data=0.5)])
def test_objectives_that_require_signal_are_rejected_with_the_reason(objective):
    for schedule, key in (
        (rectified(num_steps=9), "schedule: "),
        (cosine(num_steps=9, zero_terminal_snr=True), "schedule.zero_terminal_snr=true: "),
    ):
        with pytest.raises(ConfigError) as caught:
            GaussianDiffusion(schedule, objective)
        assert str(caught.value) == (
            f"{key}leaves no signal at the last step, where {objective.signal_reason}; use "
            "objective=pred_v, pred_flow or pred_x0"
        )


@pytest.mark.parametrize("loss", ["vlb", "hybrid"])
def test_the_bound_rounds_real_times_to_timesteps(loss):
    variance = "learned_range" if loss == "hybrid" else "fixed_small"
    process = GaussianDiffusion(
        rectified(num_steps=20), PredFlow(), loss=loss, variance=variance, rescale_timesteps=True
    )
    x0, noise = normal(3, 2).float(), normal(3, 2, seed=1).float()
    output = normal(3, process.output_channels(2), seed=2).float()
    losses = [
        DiffusionLoss(process)(lambda x, time: output, x0, t, noise)
        for t in (torch.tensor([0.4, 7.7, 18.9]), torch.tensor([0, 8, 19]))
    ]
    assert torch.equal(*losses) and losses[0].isfinite().all()
