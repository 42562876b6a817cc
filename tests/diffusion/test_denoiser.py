"""Denoisers: clipping compared with NumPy, recomputed noise, guidance."""

import numpy as np
import pytest
import torch

from ddpm.diffusion import (
    Clipping,
    Conditioning,
    Denoiser,
    GaussianDiffusion,
    PredNoise,
    PredV,
    PredX0,
    class_conditioning,
    cosine,
)
from ddpm.errors import ConfigError
from ddpm.guidance.denoisers import ClassifierFreeGuidance

SCHEDULE = cosine(num_steps=100)


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Classes:
    """A network whose output depends on the class, with a record of its calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, x_t, time, **cond):
        self.calls.append((x_t, time, cond))
        shift = cond["y"].float().reshape(-1, *[1] * (x_t.ndim - 1))
        return 0.3 * x_t + 0.1 * shift


@pytest.mark.parametrize("spatial", [(), (9,), (4, 5), (2, 3, 4)])
@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (-2.0, 4.0)])
def test_clipping_matches_numpy(spatial, bounds):
    sizes = torch.tensor([0.3, 3, 6, 15]).reshape(4, 1, *[1] * len(spatial))
    x0 = sizes * draws(4, 3, *spatial)
    x_t = draws(4, 3, *spatial, seed=1)
    diffusion = GaussianDiffusion(SCHEDULE, PredX0())
    low, high = bounds
    middle, half = (low + high) / 2, (high - low) / 2
    flat = x0.double().reshape(4, -1).numpy() - middle
    limit = np.maximum(np.quantile(np.abs(flat), 0.9, axis=1), half)[:, None]
    expected = {
        "none": flat + middle,
        "static": np.clip(flat + middle, low, high),
        "dynamic": middle + np.clip(flat, -limit, limit) * half / limit,
    }
    assert limit.min() == half
    assert limit.max() > half
    for clip, want in expected.items():
        unclipped = Denoiser(lambda x, t: x0, diffusion)
        denoiser = Clipping(unclipped, clip, bounds=bounds, dynamic_quantile=0.9)
        prediction = denoiser(x_t, 60)
        want = torch.from_numpy(want).float().reshape(x0.shape)
        torch.testing.assert_close(prediction.x0, want, rtol=1e-6, atol=1e-6)
        a, s = SCHEDULE.signal_noise(60)
        torch.testing.assert_close(
            a * prediction.x0 + s * prediction.eps, x_t, rtol=1e-5, atol=1e-6
        )


def test_dynamic_clipping_keeps_values_within_the_bounds():
    x0 = draws(2, 3, 5).clamp(-0.99, 0.99)
    denoiser = Clipping(Denoiser(lambda x, t: x0, GaussianDiffusion(SCHEDULE, PredX0())), "dynamic")
    torch.testing.assert_close(denoiser(x0, 5).x0, x0)


@pytest.mark.parametrize("objective", [PredNoise, PredX0, PredV])
def test_unclipped_prediction_is_the_objectives_inverse(objective):
    x_t, output = draws(2, 3, 2, 6)
    denoiser = Denoiser(lambda x, t: output, GaussianDiffusion(SCHEDULE, objective()))
    a, s = SCHEDULE.signal_noise(40)
    x0, eps = {
        PredNoise: ((x_t - s * output) / a, output),
        PredX0: (output, (x_t - a * output) / s),
        PredV: (a * x_t - s * output, s * x_t + a * output),
    }[objective]
    prediction = denoiser(x_t, 40)
    torch.testing.assert_close(prediction.x0, x0, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prediction.eps, eps, rtol=1e-5, atol=1e-5)


def test_a_denoiser_passes_labels_time_and_the_previous_estimate():
    network = Classes()
    process = GaussianDiffusion(SCHEDULE, PredV(), self_condition=True)
    denoiser = Clipping(Denoiser(network, process))
    x_t, previous, y = draws(3, 2, 6), draws(3, 2, 6, seed=1), torch.tensor([4, 0, 2])
    denoiser(x_t, 17, previous, class_conditioning(y))
    denoiser(x_t, 17, conditioning=class_conditioning(y))
    (seen, time, cond), (_, _, first) = network.calls
    assert seen is x_t
    assert time.tolist() == [17, 17, 17]
    assert cond["y"] is y
    assert cond["x_self_cond"] is previous
    assert not first["x_self_cond"].any()


@pytest.mark.parametrize("objective", [PredNoise, PredX0, PredV])
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_matches_its_formula(objective, scale):
    network, null = Classes(), 10
    x_t, y = draws(3, 2, 6), class_conditioning(torch.tensor([4, 0, 7]), null)
    denoiser = Denoiser(network, GaussianDiffusion(SCHEDULE, objective()))
    conditional = denoiser(x_t, 40, conditioning=y).eps
    without = denoiser(x_t, 40, conditioning=class_conditioning(torch.full((3,), null))).eps
    assert (conditional - without).abs().min() > 0.1
    network.calls.clear()
    guided = ClassifierFreeGuidance(denoiser, scale=scale)(x_t, 40, conditioning=y)
    expected = without + scale * (conditional - without)
    torch.testing.assert_close(guided.eps, expected, rtol=1e-4, atol=1e-5)
    a, s = SCHEDULE.signal_noise(40)
    torch.testing.assert_close(a * guided.x0 + s * guided.eps, x_t, rtol=1e-5, atol=1e-5)
    ((seen, time, cond),) = network.calls  # once, with twice the batch
    assert torch.equal(seen, torch.cat([x_t, x_t]))
    assert time.tolist() == [40] * 6
    assert cond["y"].tolist() == [4, 0, 7, null, null, null]


@pytest.mark.parametrize("clip", ["none", "static", "dynamic"])
def test_scale_1_is_the_plain_denoiser_and_0_the_null_label(clip):
    denoiser = Denoiser(Classes(), GaussianDiffusion(SCHEDULE, PredNoise()))
    x_t, y = 3 * draws(3, 2, 6), class_conditioning(torch.tensor([4, 0, 7]), 10)
    for scale, labels in ((1.0, y), (0.0, class_conditioning(torch.full((3,), 10)))):
        guidance = Clipping(ClassifierFreeGuidance(denoiser, scale=scale), clip)
        guided = guidance(x_t, 40, conditioning=y)
        plain = Clipping(denoiser, clip)(x_t, 40, conditioning=labels)
        torch.testing.assert_close(guided.x0, plain.x0, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(guided.eps, plain.eps, rtol=1e-5, atol=1e-5)


def test_guidance_clips_the_guided_output():
    denoiser = Denoiser(Classes(), GaussianDiffusion(SCHEDULE, PredX0()))
    x_t, y = torch.zeros(1, 1, 2), torch.tensor([2])
    guidance = Clipping(ClassifierFreeGuidance(denoiser, scale=3.0))
    guided = guidance(x_t, 40, conditioning=class_conditioning(y, 5))
    # 0.5 + 3 (0.2 - 0.5)
    assert guided.x0.flatten().tolist() == pytest.approx([-0.4, -0.4], abs=1e-6)
    guidance = Clipping(ClassifierFreeGuidance(denoiser, scale=0.5))
    guided = guidance(x_t, 40, conditioning=class_conditioning(y, 20))
    # 2 + 0.5 (0.2 - 2) = 1.1, clipped; of clipped predictions it would be 0.6
    assert guided.x0.flatten().tolist() == [1.0, 1.0]


def test_guidance_doubles_the_previous_estimate():
    network = Classes()
    diffusion = GaussianDiffusion(SCHEDULE, PredNoise(), self_condition=True)
    guided = ClassifierFreeGuidance(Denoiser(network, diffusion), scale=2.0)
    x_t, previous = draws(2, 1, 4), draws(2, 1, 4, seed=1)
    y = class_conditioning(torch.full((2,), 3), 3)
    prediction = guided(x_t, 9, previous, y)
    ((_, _, cond),) = network.calls
    assert cond["y"].tolist() == [3, 3, 3, 3]
    assert torch.equal(cond["x_self_cond"], torch.cat([previous, previous]))
    torch.testing.assert_close(prediction.eps, 0.3 * x_t + 0.3)
    assert guided.diffusion is diffusion


@pytest.mark.parametrize("conditioning", [None, Conditioning()])
def test_guidance_without_conditioning_is_the_denoiser(conditioning):
    calls = []

    def network(x_t, time):
        calls.append(x_t)
        return 0.3 * x_t

    denoiser = Denoiser(network, GaussianDiffusion(SCHEDULE, PredNoise()))
    x_t = draws(2, 1, 4)
    prediction = ClassifierFreeGuidance(denoiser, scale=2.0)(x_t, 9, None, conditioning)
    assert [len(x) for x in calls] == [2]
    assert torch.equal(prediction.eps, denoiser(x_t, 9).eps)


class Uneven:
    """A network whose outputs differ between classes by more than a constant."""

    def __call__(self, x_t, time, y):
        shift = y.float().reshape(-1, *[1] * (x_t.ndim - 1))
        return torch.cos(x_t * (1 + shift)) + 0.2 * shift


@pytest.mark.parametrize("spatial", [(6,), (4, 5), (2, 3, 4)])
@pytest.mark.parametrize("rescale", [0.0, 0.3, 0.7, 1.0])
def test_rescaling_matches_lin_et_al(spatial, rescale):
    """Equations 14 to 16 in NumPy; the standard deviation is that of a sample."""
    denoiser = Denoiser(Uneven(), GaussianDiffusion(SCHEDULE, PredX0()))
    x_t, y, scale = draws(3, 2, *spatial), torch.tensor([4, 0, 7]), 5.0
    guidance = ClassifierFreeGuidance(denoiser, scale=scale, rescale=rescale)
    guided = guidance(x_t, 40, conditioning=class_conditioning(y, 10))
    conditional = Uneven()(x_t, None, y).double().numpy()
    null = Uneven()(x_t, None, torch.full((3,), 10)).double().numpy()
    for row in range(3):
        cfg = null[row] + scale * (conditional[row] - null[row])
        rescaled = cfg * np.std(conditional[row]) / np.std(cfg)
        expected = rescale * rescaled + (1 - rescale) * cfg
        np.testing.assert_allclose(guided.x0[row].numpy(), expected, rtol=1e-4, atol=1e-5)
        if rescale == 1:
            assert guided.x0[row].std().item() == pytest.approx(
                conditional[row].std(ddof=1), rel=1e-4
            )


@pytest.mark.parametrize("objective", [PredNoise, PredX0, PredV])
@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_scale_1_is_the_plain_denoiser_with_any_rescaling(objective, rescale):
    denoiser = Denoiser(Uneven(), GaussianDiffusion(SCHEDULE, objective()))
    x_t, y = draws(3, 2, 6), class_conditioning(torch.tensor([4, 0, 7]), 10)
    guidance = Clipping(ClassifierFreeGuidance(denoiser, scale=1.0, rescale=rescale))
    guided = guidance(x_t, 40, conditioning=y)
    plain = Clipping(denoiser)(x_t, 40, conditioning=y)
    torch.testing.assert_close(guided.x0, plain.x0, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(guided.eps, plain.eps, rtol=1e-4, atol=1e-5)


def test_rescaling_is_off_by_default_and_acts_before_the_clip():
    denoiser = Denoiser(Uneven(), GaussianDiffusion(SCHEDULE, PredX0()))
    x_t, y = draws(3, 2, 6), class_conditioning(torch.tensor([4, 0, 7]), 10)
    off, zero, on = (
        ClassifierFreeGuidance(denoiser, scale=6.0, **options)
        for options in ({}, {"rescale": 0.0}, {"rescale": 1.0})
    )
    first, second, rescaled = (
        Clipping(guidance)(x_t, 40, conditioning=y).x0 for guidance in (off, zero, on)
    )
    assert torch.equal(first, second)
    assert (rescaled - first).abs().max() > 0.1
    assert torch.equal(rescaled, on(x_t, 40, conditioning=y).x0.clamp(-1, 1))


def test_rescaling_of_a_constant_output_is_finite():
    """The output of an untrained network can be 0 everywhere."""
    process = GaussianDiffusion(SCHEDULE, PredV())
    denoiser = Denoiser(lambda x, time, y: torch.zeros_like(x), process)
    x_t, y = draws(2, 1, 6), class_conditioning(torch.tensor([4, 0]), 10)
    guidance = ClassifierFreeGuidance(denoiser, scale=3.0, rescale=0.7)
    guided = guidance(x_t, 40, conditioning=y)
    torch.testing.assert_close(guided.x0, denoiser(x_t, 40, conditioning=y).x0)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_guidance_uses_the_learned_variance_of_the_conditional_output(rescale):
    process = GaussianDiffusion(SCHEDULE, PredNoise(), variance="learned_range", loss="hybrid")

    def network(x_t, time, y):
        shift = y.float().reshape(-1, 1, 1)
        return torch.cat([Uneven()(x_t, time, y), 0.1 * shift * torch.ones_like(x_t)], dim=1)

    x_t, y = draws(3, 2, 6), class_conditioning(torch.tensor([4, 0, 7]), 10)
    learned = Denoiser(network, process)
    guided = ClassifierFreeGuidance(learned, scale=3.0, rescale=rescale)(x_t, 40, conditioning=y)
    for row, shift in enumerate((4, 0, 7)):
        assert guided.variance_output[row].shape == (2, 6)
        torch.testing.assert_close(guided.variance_output[row], torch.full((2, 6), 0.1 * shift))
    fixed = Denoiser(Uneven(), GaussianDiffusion(SCHEDULE, PredNoise()))
    plain = ClassifierFreeGuidance(fixed, scale=3.0, rescale=rescale)(x_t, 40, conditioning=y)
    assert torch.equal(guided.x0, plain.x0)
    assert plain.variance_output is None


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"scale": -0.5}, "guidance=-0.5: must be 0 or above; 1 is off"),
        (
            {"scale": 2.0, "rescale": 1.5},
            "guidance_rescale=1.5: must be between 0 (off) and 1",
        ),
        (
            {"scale": 2.0, "rescale": -0.1},
            "guidance_rescale=-0.1: must be between 0 (off) and 1",
        ),
    ],
)
def test_invalid_options_are_rejected(options, line):
    denoiser = Denoiser(Classes(), GaussianDiffusion(SCHEDULE, PredNoise()))
    with pytest.raises(ConfigError) as caught:
        ClassifierFreeGuidance(denoiser, **options)
    assert str(caught.value) == line
