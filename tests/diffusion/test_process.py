"""The process: comparison with denoising-diffusion-pytorch, posterior, losses, offset noise."""

import numpy as np
import pytest
import torch

from ddpm.diffusion import (
    Clipping,
    Denoiser,
    DiffusionLoss,
    GaussianDiffusion,
    PredNoise,
    PredV,
    PredX0,
    class_conditioning,
    cosine,
    linear,
    sigmoid,
)
from ddpm.errors import ConfigError
from tests.diffusion.iddpm_cases import assert_near
from tests.oracle import normal
from tests.reference_cases import load_case, relative_error

SCHEDULES = {"linear": linear, "cosine": cosine, "sigmoid": sigmoid}
OBJECTIVES = {"pred_noise": PredNoise, "pred_x0": PredX0, "pred_v": PredV}
UNET_CASES = ["x0_linear", "v_sigmoid", "noise_cosine_minsnr"]


def unet_case(name):
    meta, arrays = load_case(f"unet_process_{name}")
    gamma = meta["min_snr_gamma"] if meta["min_snr_loss_weight"] else None
    objective = OBJECTIVES[meta["objective"]](weighting="noise", min_snr_gamma=gamma)
    schedule = SCHEDULES[meta["schedule"]](num_steps=meta["timesteps"])
    return GaussianDiffusion(schedule, objective), arrays


@pytest.mark.parametrize("name", UNET_CASES)
def test_denoising_diffusion_pytorch(name):
    diffusion, case = unet_case(name)
    t = case["t"]
    x_t = diffusion.diffuse(case["x0"], t, case["noise"])
    assert_near(x_t, case["x_t"])
    a, s = diffusion.schedule.scales(t, x_t)
    assert_near(PredV().target(case["x0"], case["noise"], a, s), case["v"])
    weight = diffusion.objective.weight(diffusion.schedule.snr(t))
    assert_near(weight[:, None], case["loss_weight"][:, None])
    for row, step in enumerate(t.tolist()):
        constant = case["model_output"][row : row + 1]
        denoiser = Clipping(Denoiser(lambda x, time, constant=constant: constant, diffusion))
        x_t = case["x_t"][row : row + 1]
        prediction = denoiser(x_t, step)
        assert relative_error(prediction.x0[0], case["pred_x0"][row]) < 1e-5
        # At a step with little noise the noise is a difference of near numbers, divided by it.
        tolerance = 1e-5 if step > 0 else 1e-4
        assert relative_error(prediction.eps[0], case["pred_noise"][row]) < tolerance
        mean, variance = diffusion.posterior(prediction.x0, x_t, step, step - 1)
        assert relative_error(mean[0], case["p_mean"][row]) < 1e-5
        expected = case["posterior_log_variance_clipped"][row].item()
        assert np.log(max(variance, 1e-20)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["v_sigmoid", "noise_cosine_minsnr"])
def test_loss_of_denoising_diffusion_pytorch(name):
    diffusion, case = unet_case(name)
    loss = DiffusionLoss(diffusion)(
        lambda x, time: case["model_output"], case["x0"], case["t"], case["noise"]
    )
    assert_near(loss[:, None], case["loss"][:, None])


def test_loss_of_x0_is_its_closed_form():
    """Replaces a recorded loss: the original clamped ``model_output`` after computing it.

    ``x_recon.clamp_`` worked in place on what the constant network returned, before the output was
    recorded: a share of it is exactly +-1, and the loss does not follow from the file.
    """
    diffusion, case = unet_case("x0_linear")
    output, x0, t = case["model_output"], case["x0"], case["t"]
    assert (output.abs() == 1).float().mean().item() == pytest.approx(0.1458, abs=1e-3)
    assert output.abs().max() == 1
    alpha_bar = diffusion.schedule.alpha_bar[t]
    expected = (output - x0).double().pow(2).flatten(1).mean(1) * alpha_bar / (1 - alpha_bar)
    loss = DiffusionLoss(diffusion)(lambda x, time: output, x0, t, case["noise"])
    assert_near(loss[:, None], expected[:, None])


@pytest.mark.parametrize("make", [cosine, sigmoid, lambda num_steps: linear(num_steps=1000)])
def test_posterior_of_any_pair_is_the_composition_of_single_steps(make):
    """Marginalise the intermediate steps: x_{u-1} = A x0 + B x_u + N(0, V), from t down to s."""
    schedule = make(num_steps=12)
    diffusion = GaussianDiffusion(schedule, PredNoise())
    betas, alpha_bar = schedule.betas.numpy(), [*schedule.alpha_bar.numpy(), 1.0]  # [-1] is clean
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for t in range(12):
        of_x0, of_x_t, variance = 0.0, 1.0, 0.0
        for u in range(t, -1, -1):
            a = np.sqrt(alpha_bar[u - 1]) * betas[u] / (1 - alpha_bar[u])
            b = np.sqrt(1 - betas[u]) * (1 - alpha_bar[u - 1]) / (1 - alpha_bar[u])
            one_step = betas[u] * (1 - alpha_bar[u - 1]) / (1 - alpha_bar[u])
            of_x0, of_x_t, variance = a + b * of_x0, b * of_x_t, one_step + b * b * variance
            from_x0, got = diffusion.posterior(one, zero, t, u - 1)
            from_x_t, _ = diffusion.posterior(zero, one, t, u - 1)
            assert from_x0.item() == pytest.approx(of_x0, rel=1e-9)
            assert from_x_t.item() == pytest.approx(of_x_t, rel=1e-9, abs=1e-15)
            assert got == pytest.approx(variance, rel=1e-9, abs=1e-15)
            assert got == diffusion.posterior_variance(t, u - 1)
            step = 1 - np.prod(1 - betas[u : t + 1])
            assert diffusion.step_variance(t, u - 1) == pytest.approx(step, rel=1e-9)


def test_the_step_to_clean_data_is_exactly_x0():
    diffusion = GaussianDiffusion(cosine(num_steps=20), PredNoise())
    x0, x_t = torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    for t in range(20):
        mean, variance = diffusion.posterior(x0, x_t, t, -1)
        assert torch.equal(mean, x0)
        assert variance == 0


@pytest.mark.parametrize("spatial", [(), (9,), (4, 5), (2, 3, 4)])
def test_forward_process_at_every_rank(spatial):
    diffusion = GaussianDiffusion(sigmoid(num_steps=50), PredNoise())
    x0, noise = torch.randn(2, 3, 3, *spatial, generator=torch.Generator().manual_seed(3))
    t = torch.tensor([0, 20, 49])
    x_t = diffusion.diffuse(x0, t, noise)
    for row, step in enumerate([0, 20, 49]):
        alpha_bar = diffusion.schedule.alpha_bar[step].item()
        expected = alpha_bar**0.5 * x0[row] + (1 - alpha_bar) ** 0.5 * noise[row]
        torch.testing.assert_close(x_t[row], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_noise_is_added_in_float32_under_autocast(dtype):
    """In bfloat16, 1 - alpha_bar is 0 in the first of 1000 steps, so that no noise is added."""
    diffusion = GaussianDiffusion(linear(num_steps=1000), PredNoise())
    assert (1 - diffusion.schedule.alpha_bar[:10].to(torch.bfloat16) == 0).any()
    t = torch.arange(1000)
    x0, noise = torch.randn(2, 1000, 1, 16, generator=torch.Generator().manual_seed(4))
    plain = diffusion.diffuse(x0, t, noise)
    with torch.autocast("cpu", dtype=dtype):
        inside = diffusion.diffuse(x0, t, noise)
        from_half = diffusion.diffuse(x0.to(dtype), t, noise)
    assert inside.dtype == from_half.dtype == torch.float32
    assert torch.equal(inside, plain)
    assert torch.equal(from_half, diffusion.diffuse(x0.to(dtype).float(), t, noise))
    a, s = diffusion.schedule.scales(t, x0)
    torch.testing.assert_close((inside - a * x0) / s, noise, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", [PredNoise, PredX0, PredV])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_target_and_loss_are_measured_in_float32_under_autocast(objective, dtype):
    diffusion = GaussianDiffusion(cosine(num_steps=100), objective())
    x0, noise, output = torch.randn(3, 4, 2, 8, generator=torch.Generator().manual_seed(5))
    output = output.to(dtype)
    t = torch.tensor([0, 1, 50, 99])
    plain = DiffusionLoss(diffusion)(lambda x, time: output.float(), x0, t, noise)
    with torch.autocast("cpu", dtype=dtype):
        inside = DiffusionLoss(diffusion)(lambda x, time: output, x0, t, noise)
        prediction = Denoiser(lambda x, time: output, diffusion)(x0, t)
    assert inside.dtype == prediction.x0.dtype == prediction.eps.dtype == torch.float32
    assert torch.equal(inside, plain)


@pytest.mark.parametrize("spatial", [(400,), (20, 20), (4, 10, 10)])
def test_offset_noise_is_constant_per_channel(spatial):
    diffusion = GaussianDiffusion(cosine(num_steps=10), PredNoise(), offset_noise=0.5)
    count, pixels = 4000, 400
    x0 = torch.zeros(count, 2, *spatial)
    noise = DiffusionLoss(diffusion).sample_noise(x0, normal(6))
    assert not x0.any()
    assert noise.shape == x0.shape
    flat = noise.double().flatten(2)
    # Per pixel 1 + 0.25; the mean of a channel has 0.25 + 1/pixels; channels do not go together.
    variance = flat.var(dim=0).mean().item()
    means = flat.mean(2)
    cov = np.cov(means.numpy().T)
    error = (2 / count) ** 0.5  # relative, of a variance from `count` samples
    assert variance == pytest.approx(1.25, rel=5 * error)
    assert cov[0, 0] == pytest.approx(0.25 + 1 / pixels, rel=5 * error)
    assert cov[1, 1] == pytest.approx(0.25 + 1 / pixels, rel=5 * error)
    assert abs(cov[0, 1]) < 5 * 0.2525 / count**0.5
    within = (flat - means[:, :, None]).var(dim=2).mean().item()
    assert within == pytest.approx(1, rel=5 * (2 / (2 * count * pixels)) ** 0.5)


def test_offset_noise_is_added_and_is_off_at_0():
    x0 = torch.zeros(3, 2, 4, 5)
    draws = []

    def randn_like(x):
        draws.append(normal(7 + len(draws))(x))
        return draws[-1]

    diffusion = GaussianDiffusion(cosine(num_steps=9), PredNoise(), offset_noise=0.1)
    noise = DiffusionLoss(diffusion).sample_noise(x0, randn_like)
    assert [tuple(draw.shape) for draw in draws] == [(3, 2, 4, 5), (3, 2)]
    torch.testing.assert_close(noise, draws[0] + 0.1 * draws[1][:, :, None, None])
    assert torch.equal(draws[0], normal(7)(x0))  # not in place
    plain = DiffusionLoss(GaussianDiffusion(cosine(num_steps=9), PredNoise()))
    assert torch.equal(plain.sample_noise(x0, normal(7)), draws[0])


def test_offset_noise_of_plain_vectors():
    diffusion = GaussianDiffusion(cosine(num_steps=9), PredNoise(), offset_noise=1.0)
    variance = DiffusionLoss(diffusion).sample_noise(torch.zeros(20000, 2), normal(8)).var().item()
    assert variance == pytest.approx(2, rel=5 * (2 / 40000) ** 0.5)


class Watched(torch.nn.Module):
    """A small self-conditioned network with a record of its inputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv1d(4, 2, 1)
        self.calls = []

    def forward(self, x_t, time, x_self_cond):
        self.calls.append((torch.is_grad_enabled(), time, x_self_cond))
        return self.layer(torch.cat([x_t, x_self_cond], 1))


def self_conditioned_loss(network, estimator):
    diffusion = GaussianDiffusion(cosine(num_steps=50), PredV(), self_condition=True)
    x0, noise = torch.randn(2, 3, 2, 8, generator=torch.Generator().manual_seed(9))
    t = torch.tensor([2, 25, 45])
    return diffusion, x0, t, noise, DiffusionLoss(diffusion)(network, x0, t, noise, estimator)


def test_self_conditioning_without_an_estimate_sees_zeros():
    network = Watched()
    self_conditioned_loss(network, None)
    ((grad, _, inputs),) = network.calls
    assert grad
    assert inputs.shape == (3, 2, 8)
    assert not inputs.any()


def test_self_conditioning_estimates_without_a_gradient_and_sees_the_estimate():
    network = Watched()
    diffusion, x0, t, noise, loss = self_conditioned_loss(network, network)
    first, second = network.calls
    assert (first[0], second[0]) == (False, True)
    assert not first[2].any()
    assert not second[2].requires_grad
    x_t = diffusion.diffuse(x0, t, noise)
    a, s = diffusion.schedule.scales(t, x0)
    output = network.layer(torch.cat([x_t, torch.zeros_like(x_t)], 1))
    torch.testing.assert_close(second[2], a * x_t - s * output.detach())
    assert loss.requires_grad


def test_self_conditioning_keeps_the_gradient_under_autocast():
    """The second call must not use weights that autocast cached without a gradient."""
    network = Watched()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        *_, loss = self_conditioned_loss(network, network)
    loss.sum().backward()
    under = network.layer.weight.grad.clone()
    network.zero_grad()
    self_conditioned_loss(network, network)[-1].sum().backward()
    plain = network.layer.weight.grad
    assert plain.abs().max() > 0.1
    assert relative_error(under, plain) < 0.05


def test_without_self_conditioning_the_network_is_called_once():
    diffusion = GaussianDiffusion(cosine(num_steps=50), PredV())
    calls = []

    def network(x_t, time, **cond):
        calls.append(cond)
        return x_t

    x = torch.ones(2, 1, 3)
    labels = torch.tensor([1, 0])
    conditioning = class_conditioning(labels)
    DiffusionLoss(diffusion)(network, x, torch.tensor([1, 2]), x, network, conditioning)
    assert len(calls) == 1
    assert list(calls[0]) == ["y"]
    assert calls[0]["y"] is labels


@pytest.mark.parametrize(
    ("rescale", "expected"), [(False, [0, 7, 39]), (True, [0.0, 175.0, 975.0])]
)
def test_the_network_receives_the_time(rescale, expected):
    diffusion = GaussianDiffusion(cosine(num_steps=40), PredNoise(), rescale_timesteps=rescale)
    times = []

    def network(x_t, time):
        times.append(time)
        return x_t

    x, t = torch.ones(3, 1, 2), torch.tensor([0, 7, 39])
    DiffusionLoss(diffusion)(network, x, t, x)
    Denoiser(network, diffusion)(x, t)
    assert [time.tolist() for time in times] == [expected, expected]
    assert times[0].is_floating_point() == rescale


@pytest.mark.parametrize(
    ("t", "dtype", "value"),
    [
        (7, torch.int64, 7),
        (7.0, torch.int64, 7),
        (7.5, torch.float32, 7.5),
        (torch.tensor([7, 7]), torch.int64, 7),
        (torch.tensor([7.5, 7.5]), torch.float32, 7.5),
    ],
)
def test_whole_times_are_int64_and_others_float32(t, dtype, value):
    diffusion = GaussianDiffusion(cosine(num_steps=40), PredV())
    times = []

    def network(x_t, time):
        times.append(time)
        return x_t

    Denoiser(network, diffusion)(torch.ones(2, 1, 3), t)
    assert times[0].dtype == dtype
    assert times[0].tolist() == [value, value]


@pytest.mark.parametrize("objective", [PredNoise, PredX0, PredV])
def test_the_perfect_output_has_zero_loss(objective):
    diffusion = GaussianDiffusion(cosine(num_steps=50), objective())
    x0, noise = torch.randn(2, 3, 2, 8, generator=torch.Generator().manual_seed(10))
    t = torch.tensor([5, 25, 40])
    a, s = diffusion.schedule.scales(t, x0)
    target = diffusion.objective.target(x0, noise, a, s)
    assert DiffusionLoss(diffusion)(lambda x, time: target, x0, t, noise).tolist() == [0, 0, 0]
    assert (
        DiffusionLoss(diffusion)(lambda x, time: target + 0.5, x0, t, noise) - 0.25
    ).abs().max() < 1e-6
    x_t = diffusion.diffuse(x0, t, noise)
    prediction = Denoiser(lambda x, time: target, diffusion)(x_t, t)
    torch.testing.assert_close(prediction.x0, x0, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(prediction.eps, noise, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"offset_noise": -0.1}, "offset_noise=-0.1: must be 0 (off) or above"),
        ({"label_dropout": 1.0}, "label_dropout=1.0: must be in [0, 1)"),
        ({"label_dropout": -0.2}, "label_dropout=-0.2: must be in [0, 1)"),
    ],
)
def test_invalid_options_are_rejected(options, line):
    with pytest.raises(ConfigError) as caught:
        GaussianDiffusion(cosine(num_steps=10), PredNoise(), **options)
    assert str(caught.value) == line


def test_attributes():
    diffusion = GaussianDiffusion(cosine(num_steps=10), PredNoise(), label_dropout=0.0)
    assert diffusion.num_steps == 10
    assert diffusion.output_channels(3) == 3
