"""Guidance: autoguidance, gradient guidance, intervals of noise levels, and their combination."""

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
)
from ddpm.errors import ConfigError
from ddpm.guidance.denoisers import Autoguidance, ClassifierFreeGuidance, GradientGuidance
from ddpm.samplers import DDIM, DDPM
from tests.oracle import Oracle, normal

SCHEDULE = cosine(num_steps=200)
LABELS = torch.tensor([0, 2])


def by_class(x, time, y):
    return 0.3 * x + 0.1 * y.float().reshape(-1, *[1] * (x.ndim - 1))


def conditioning():
    return class_conditioning(LABELS, null=5)


def x_t(*shape):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


def denoiser(network=by_class, objective=PredX0, schedule=SCHEDULE):
    return Denoiser(network, GaussianDiffusion(schedule, objective()))


@pytest.mark.parametrize("shape", [(2, 5), (1, 4, 4), (1, 2, 3, 4)])
def test_a_linear_score_samples_from_the_tilted_gaussian(shape):
    """The density times exp(c x) of a Gaussian is one with its mean moved by c sigma^2."""
    oracle = Oracle(SCHEDULE, shape)
    plain = denoiser(oracle.network("pred_v")[0], PredV)

    def score(x0, t, conditioning):
        return 0.6 * x0.flatten(1).sum(1)

    guided = GradientGuidance(plain, score, scale=0.5)
    assert guided.needs_gradients
    x = torch.randn(4000, *shape, generator=torch.Generator().manual_seed(1))
    for sampler in (DDIM(steps=100, clip="none"), DDPM(clip="none", variance="fixed_large")):
        samples = sampler.sample(guided, x, randn_like=normal(2))
        expected = oracle.mu + 0.3 * oracle.sigma**2
        error = ((samples.mean(0) - expected[0]) / oracle.sigma[0]).abs().max()
        assert error < 4 / 4000**0.5 + 0.01
        spread = samples.std(0) / oracle.sigma[0]
        assert (spread - 1).abs().max() < 0.06
        assert not samples.requires_grad


def test_gradient_guidance_changes_the_noise_by_the_gradient():
    """eps - scale sigma grad, with the gradient through the network."""
    t, x = 80, x_t(1, 4, 4)
    a, s = SCHEDULE.signal_noise(t)
    plain = denoiser(lambda x, time: torch.sin(x), PredV)
    guided = GradientGuidance(
        plain, lambda x0, t, conditioning: (x0**2).flatten(1).sum(1), scale=0.3
    )
    x0 = a * x - s * torch.sin(x)
    gradient = 2 * x0 * (a - s * torch.cos(x))
    prediction = guided(x, t)
    torch.testing.assert_close(
        prediction.eps, plain(x, t).eps - 0.3 * s * gradient, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(a * prediction.x0 + s * prediction.eps, x)


def test_the_score_receives_x0_time_and_classes_of_an_unconditional_network():
    seen = []

    def score(x0, t, conditioning):
        seen.append((x0.shape, t, conditioning["y"].tolist()))
        return x0.flatten(1).mean(1)

    plain = denoiser(lambda x, time: 0.5 * x)
    guided = GradientGuidance(plain, score, conditional=False)
    guided(x_t(1, 4, 4), 12.5, conditioning=conditioning())
    assert seen == [((2, 1, 4, 4), 12.5, [0, 2])]


def test_without_signal_there_is_no_gradient_guidance():
    schedule = cosine(num_steps=50, zero_terminal_snr=True)
    plain = denoiser(lambda x, time: 0.5 * x, PredV, schedule)
    guided = GradientGuidance(plain, lambda x0, t, conditioning: x0.flatten(1).sum(1), scale=7)
    x = x_t(1, 4, 4)
    assert torch.equal(guided(x, 49).x0, plain(x, 49).x0)
    assert torch.isfinite(DDIM(steps=10).sample(guided, x, randn_like=normal(0))).all()


@pytest.mark.parametrize(
    ("score", "problem"),
    [
        (lambda x0, t, conditioning: x0.sum(), r"returned \(\) for 2 samples"),
        (lambda x0, t, conditioning: 3, "returned int"),
        (lambda x0, t, conditioning: torch.zeros(2), "without a gradient"),
    ],
)
def test_a_score_of_another_shape_is_refused(score, problem):
    with pytest.raises(ConfigError, match=problem):
        GradientGuidance(denoiser(lambda x, time: x), score)(x_t(1, 4), 10)


def test_a_score_of_classes_without_classes_is_refused():
    def score(x0, t, conditioning):
        return conditioning["y"] * x0

    guided = GradientGuidance(denoiser(lambda x, time: x), score)
    with pytest.raises(ConfigError, match=r"classes: the guide reads the classes of the samples"):
        guided(x_t(1, 4), 10)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_autoguidance_extrapolates_from_the_guide(scale):
    main, guide = denoiser(), denoiser(lambda x, time, y: 0.1 * x)
    x = x_t(2, 6)
    prediction = Autoguidance(main, guide, scale=scale)(x, 70, conditioning=conditioning())
    expected = 0.1 * x + scale * (by_class(x, None, LABELS) - 0.1 * x)
    torch.testing.assert_close(prediction.x0, expected)


def test_the_guide_is_called_at_the_same_noise_level():
    other, times = linear(num_steps=1000), []
    guide = denoiser(lambda x, time: times.append(float(time[0])) or x, PredX0, other)
    main = denoiser(lambda x, time: x)
    Autoguidance(main, guide, scale=2, conditional=False)(x_t(1, 4), 100)
    assert other.log_snr(times[0]) == pytest.approx(SCHEDULE.log_snr(100), abs=1e-4)
    same = []
    guide = denoiser(lambda x, time: same.append(time.tolist()) or x)
    Autoguidance(main, guide, scale=2)(x_t(1, 4), 100)
    assert same == [[100, 100]]


def test_guidance_acts_within_the_interval_only():
    low, high = (SCHEDULE.sigma(t) / SCHEDULE.alpha(t) for t in (50, 120))
    x, calls = x_t(1, 5), []
    network = lambda x, time, y: calls.append(len(x)) or by_class(x, time, y)  # noqa: E731
    plain = denoiser(network)
    guided = ClassifierFreeGuidance(plain, scale=3, interval=(low - 1e-9, high + 1e-9))
    for t, size in ((49, 2), (50, 4), (120, 4), (121, 2)):
        calls.clear()
        prediction = guided(x, t, conditioning=conditioning())
        assert calls == [size]
        same = torch.equal(prediction.x0, plain(x, t, conditioning=conditioning()).x0)
        assert same == (size == 2)
    for bad in ((3.0, 1.0), (-1.0, 2.0)):
        with pytest.raises(ConfigError, match="guidance_interval"):
            ClassifierFreeGuidance(plain, scale=3, interval=bad)


def test_wrappers_stack():
    """Classifier-free guidance, autoguidance, a gradient and clipping, in one denoiser."""
    x, t = x_t(1, 4, 4), 60
    a, s = SCHEDULE.signal_noise(t)
    stack = ClassifierFreeGuidance(denoiser(), scale=2.0)
    stack = Autoguidance(stack, denoiser(lambda x, time, y: 0.2 * x), scale=1.5)
    stack = GradientGuidance(stack, lambda x0, t, conditioning: x0.flatten(1).sum(1), scale=0.1)
    prediction = Clipping(stack, "static")(x, t, conditioning=conditioning())
    free = by_class(x, None, torch.tensor([5, 5]))
    guided = free + 2 * (by_class(x, None, LABELS) - free)
    guided = 0.2 * x + 1.5 * (guided - 0.2 * x)
    slope = 0.2 + 1.5 * (0.3 - 0.2)
    expected = (guided + 0.1 * s**2 / a * slope).clamp(-1, 1)
    torch.testing.assert_close(prediction.x0, expected)
    torch.testing.assert_close(a * prediction.x0 + s * prediction.eps, x)
