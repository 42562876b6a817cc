"""Objectives: inverses, errors and weights."""

import pytest
import torch
import torch.nn.functional as F

from ddpm.diffusion import DiffusionLoss, GaussianDiffusion, PredNoise, PredV, PredX0, cosine
from ddpm.errors import ConfigError

OBJECTIVES = [PredNoise, PredX0, PredV]
SCHEDULE = cosine(num_steps=100)


def error_of(objective, output, target):
    """Return the error of each entry that the loss of an objective computes."""
    return DiffusionLoss(GaussianDiffusion(SCHEDULE, objective)).error(output, target)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("t", [0, 3, 50, 90])
def test_the_inverse_undoes_the_target(objective, t):
    generator = torch.Generator().manual_seed(t)
    x0, eps = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64)
    a, s = (torch.tensor(value) for value in SCHEDULE.signal_noise(t))
    objective = objective()
    target = objective.target(x0, eps, a, s)
    torch.testing.assert_close(objective.x0(a * x0 + s * eps, target, a, s), x0)


@pytest.mark.parametrize(
    ("objective", "expected"), [(PredNoise, 5.0), (PredX0, 2.0), (PredV, 0.6 * 5 - 0.8 * 2)]
)
def test_targets(objective, expected):
    values = [torch.tensor(value, dtype=torch.float64) for value in (2.0, 5.0, 0.6, 0.8)]
    assert objective().target(*values).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "function"), [("l2", F.mse_loss), ("l1", F.l1_loss), ("huber", F.smooth_l1_loss)]
)
@pytest.mark.parametrize("spatial", [(), (7,), (3, 5), (2, 3, 4)])
def test_error_matches_torch_per_sample(loss, function, spatial):
    generator = torch.Generator().manual_seed(1)
    output, target = 2 * torch.randn(2, 3, 2, *spatial, generator=generator)
    error = error_of(PredX0(loss=loss), output, target).flatten(1).mean(1)
    expected = torch.stack([function(output[i], target[i]) for i in range(3)])
    assert error.shape == (3,)
    torch.testing.assert_close(error, expected)


def test_huber_is_quadratic_below_1_and_linear_above():
    error = error_of(PredNoise(loss="huber"), torch.tensor([[0.5], [3.0]]), torch.zeros(2, 1))[:, 0]
    assert error.tolist() == [0.125, 2.5]


def test_error_of_half_precision_is_measured_in_float32():
    output = torch.full((1, 4096), 300.0, dtype=torch.float16)  # its square is not a float16
    error = error_of(PredNoise(), output, torch.zeros(1, 4096, dtype=torch.float16)).mean()
    assert error.dtype == torch.float32
    assert error.item() == 90000


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_uniform_weights_are_1(objective):
    snr = torch.tensor([1e-9, 1.0, 1e4], dtype=torch.float64)
    assert objective().weight(snr).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("objective", "options", "expected"),
    [
        (PredNoise, {"weighting": "noise"}, [1, 1, 1]),
        (PredX0, {"weighting": "noise"}, [0.25, 4, 100]),
        (PredV, {"weighting": "noise"}, [0.2, 0.8, 100 / 101]),
        (PredNoise, {"min_snr_gamma": 5}, [1, 1, 0.05]),
        (PredX0, {"min_snr_gamma": 5}, [0.25, 4, 5]),
        (PredV, {"min_snr_gamma": 5}, [0.2, 0.8, 5 / 101]),
        (PredX0, {"min_snr_gamma": 1, "weighting": "noise"}, [0.25, 1, 1]),
    ],
)
def test_weights(objective, options, expected):
    snr = torch.tensor([0.25, 4, 100], dtype=torch.float64)
    assert objective(**options).weight(snr).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("gamma", [None, 5.0, 0.7])
def test_weight_of_the_error_in_x0_is_equal_for_all_objectives(objective, gamma):
    """An error in x0 has the loss ``min(SNR, gamma)`` times its square with all objectives."""
    generator = torch.Generator().manual_seed(2)
    x0, eps, wrong = torch.randn(3, 4, 2, 6, generator=generator)
    t = torch.tensor([5, 30, 55, 80])
    diffusion = GaussianDiffusion(SCHEDULE, objective(weighting="noise", min_snr_gamma=gamma))
    a, s = SCHEDULE.scales(t, x0)
    x_t = a * x0 + s * eps

    def network(x_t, time):
        guess = x0 + 0.1 * wrong
        noise = (x_t - a * guess) / s
        return {PredNoise: noise, PredX0: guess, PredV: a * noise - s * guess}[objective]

    snr = (a / s).flatten() ** 2
    weight = snr if gamma is None else snr.clamp(max=gamma)
    expected = weight * (0.1 * wrong).pow(2).flatten(1).mean(1)
    torch.testing.assert_close(diffusion.diffuse(x0, t, eps), x_t)
    torch.testing.assert_close(
        DiffusionLoss(diffusion)(network, x0, t, eps), expected, rtol=2e-4, atol=1e-7
    )


@pytest.mark.parametrize("gamma", [0, -1.5])
def test_gamma_must_be_positive(gamma):
    with pytest.raises(ConfigError) as caught:
        PredNoise(min_snr_gamma=gamma)
    assert str(caught.value) == f"min_snr_gamma={gamma}: must be above 0, or null"
