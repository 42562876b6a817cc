"""Schedules with zero terminal SNR: tables and invalid combinations."""

import math

import numpy as np
import pytest
import torch

from ddpm.diffusion import (
    Denoiser,
    DiffusionLoss,
    GaussianDiffusion,
    PredNoise,
    PredV,
    PredX0,
    Schedule,
    cosine,
    linear,
    prior_term,
    sigmoid,
)
from ddpm.errors import ConfigError
from tests.oracle import normal

SCHEDULES = [linear, cosine, sigmoid]


@pytest.mark.parametrize("make", SCHEDULES)
@pytest.mark.parametrize("num_steps", [25, 1000])
def test_rescaling_is_algorithm_1_of_lin_et_al(make, num_steps):
    plain, schedule = (make(num_steps=num_steps, zero_terminal_snr=on) for on in (False, True))
    signal = np.sqrt(plain.alpha_bar.numpy())
    expected = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    alpha_bar = schedule.alpha_bar.numpy()
    np.testing.assert_allclose(np.sqrt(alpha_bar), expected, rtol=1e-12, atol=1e-15)
    assert alpha_bar[-1] == 0
    assert alpha_bar[0] == pytest.approx(plain.alpha_bar[0].item(), rel=1e-14)
    assert np.all(np.diff(alpha_bar, prepend=1.0) < 0)
    assert np.all(alpha_bar <= plain.alpha_bar.numpy() + 1e-15)
    assert (plain.zero_terminal_snr, schedule.zero_terminal_snr) == (False, True)


@pytest.mark.parametrize("make", SCHEDULES)
def test_betas_match_the_rescaled_table(make):
    schedule = make(num_steps=40, zero_terminal_snr=True)
    assert schedule.num_steps == 40
    assert schedule.betas[-1].item() == 1
    assert ((schedule.betas > 0) & (schedule.betas <= 1)).all()
    torch.testing.assert_close(torch.cumprod(1 - schedule.betas, 0), schedule.alpha_bar)
    assert schedule.signal_noise(39) == (0, 1)
    assert schedule.alpha_bar_at(torch.tensor([-1, 0, 39])).tolist() == [
        1,
        schedule.alpha_bar[0].item(),
        0,
    ]


@pytest.mark.parametrize("make", SCHEDULES)
def test_it_is_off_by_default(make):
    schedule = make(num_steps=40)
    assert schedule.alpha_bar[-1] > 0
    assert torch.equal(schedule.alpha_bar, torch.cumprod(1 - schedule.betas, 0))


@pytest.mark.parametrize("make", [linear, cosine])
def test_predicted_noise_is_rejected(make):
    schedule = make(num_steps=50, zero_terminal_snr=True)
    with pytest.raises(ConfigError) as caught:
        GaussianDiffusion(schedule, PredNoise())
    assert str(caught.value) == (
        "schedule.zero_terminal_snr=true: leaves no signal at the last step, where the noise does "
        "not determine x0 (Lin et al. 2023); use objective=pred_v, pred_flow or pred_x0"
    )
    assert GaussianDiffusion(schedule, PredV()).num_steps == 50
    assert GaussianDiffusion(schedule, PredX0()).num_steps == 50


def test_a_single_step_is_rejected():
    with pytest.raises(ConfigError) as caught:
        cosine(num_steps=1, zero_terminal_snr=True)
    assert str(caught.value) == "zero_terminal_snr=true: needs at least 2 steps"
    alpha_bar = cosine(num_steps=2, zero_terminal_snr=True).alpha_bar
    assert alpha_bar[1] == 0
    assert alpha_bar[0] == pytest.approx(cosine(num_steps=2).alpha_bar[0].item())


def test_an_underflowing_schedule_is_rejected():
    with pytest.raises(ConfigError) as caught:
        Schedule(torch.full((800,), 0.9, dtype=torch.float64))
    assert str(caught.value) == (
        "num_steps=800: alpha_bar underflows to 0 at the last step; use smaller betas"
    )


@pytest.mark.parametrize("objective", [PredV, PredX0])
@pytest.mark.parametrize("weighting", ["uniform", "noise"])
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_weights_and_losses_are_finite_at_the_last_step(objective, weighting, gamma):
    schedule = linear(num_steps=50, zero_terminal_snr=True)
    process = GaussianDiffusion(schedule, objective(weighting=weighting, min_snr_gamma=gamma))
    t = torch.arange(50)
    weight = process.objective.weight(schedule.snr(t))
    assert torch.isfinite(weight).all()
    assert weight[-1] == (1 if (weighting, gamma) == ("uniform", None) else 0)
    assert (weight[:-1] > 0).all()
    x0, noise, answer = normal(0)(torch.empty(3, 50, 2, 4))
    assert torch.equal(process.diffuse(x0, t, noise)[-1], noise[-1])
    loss = DiffusionLoss(process)(lambda x, time: answer, x0, t, noise)
    assert torch.isfinite(loss).all()


@pytest.mark.parametrize(
    ("variance", "loss"), [("learned_range", "hybrid"), ("fixed_large", "vlb")]
)
@pytest.mark.parametrize("objective", [PredV, PredX0])
def test_the_bound_is_finite_at_the_last_step(variance, loss, objective):
    schedule = cosine(num_steps=50, zero_terminal_snr=True)
    process = GaussianDiffusion(schedule, objective(), variance=variance, loss=loss)
    t = torch.arange(50)
    x0, noise = normal(1)(torch.empty(2, 50, 2, 4))
    answer = normal(2)(torch.empty(50, process.output_channels(2), 4)).requires_grad_()
    value = DiffusionLoss(process)(lambda x, time: answer, x0, t, noise)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(answer.grad).all()
    assert prior_term(process, x0).tolist() == [0] * 50  # x_T is what the prior says it is
    last = process.log_variance(None, 49, 48, like=x0[:1], kind="fixed_large")
    assert last.unique().tolist() == [0]
    last = process.log_variance(None, 49, 48, like=x0[:1], kind="fixed_small")
    assert last.unique().item() == pytest.approx(math.log(1 - schedule.alpha_bar[48]), rel=1e-5)


def test_x0_at_the_last_step_is_the_networks_output():
    schedule = linear(num_steps=50, zero_terminal_snr=True)
    x_t, answer = normal(3)(torch.empty(2, 3, 2, 4))
    for objective, expected in ((PredV, -answer), (PredX0, answer)):
        process = GaussianDiffusion(schedule, objective())
        prediction = Denoiser(lambda x, time: answer, process)(x_t, 49)
        torch.testing.assert_close(prediction.x0, expected)
        torch.testing.assert_close(prediction.eps, x_t)
        mean, variance = process.posterior(prediction.x0, x_t, 49, 20)
        torch.testing.assert_close(mean, schedule.alpha_bar[20].sqrt().float() * expected)
        assert variance == pytest.approx(1 - schedule.alpha_bar[20].item(), rel=1e-12)
