"""Samples and interpolations of Gaussian data with the ideal network."""

import pytest
import torch
from torch import nn

from ddpm import generation
from ddpm.data import SequenceCodec
from ddpm.diffusion import (
    Clipping,
    Denoiser,
    GaussianDiffusion,
    PredV,
    cosine,
)
from ddpm.errors import ConfigError
from ddpm.generation import interpolate_noise
from ddpm.guidance.denoisers import ClassifierFreeGuidance
from ddpm.noise import SampleNoise
from ddpm.pipeline import build_pipeline
from ddpm.samplers import DDIM, DDPM
from ddpm.seeding import RandomStream, mix
from tests.oracle import Oracle

T = 200
SHAPE = (2, 16)
CPU = torch.device("cpu")


class Perfect(nn.Module):
    """The oracle as a module; labels shift its output."""

    null_label = 4

    def __init__(self):
        super().__init__()
        self.oracle = Oracle(cosine(num_steps=T), SHAPE)
        self.labels = []

    def forward(self, x, t, y=None):
        a, s = self.oracle.schedule.signal_noise(int(t[0]))
        self.labels.append(None if y is None else y.tolist())
        x0, eps = self.oracle.predict(x, a, s)
        if y is not None:
            x0 = x0 + 0.1 * y.reshape(-1, 1, 1)
            eps = (x - a * x0) / s
        return a * eps - s * x0


def perfect(sampler=None, **options):
    net = Perfect()
    process = GaussianDiffusion(
        net.oracle.schedule, PredV(), label_dropout=options.pop("label_dropout", 0.0)
    )
    codec = SequenceCodec(SHAPE, low=-2.0, high=4.0)
    sampler = sampler or DDIM(steps=20, clip="none")
    pipeline = build_pipeline(net, process, sampler, codec, device=CPU, **options)
    return pipeline, net


def encoded(frames):
    """Return raw data in model space."""
    return (frames - 1.0) / 3.0


def drawn(pipeline, indices, batch_size, **options):
    parts = list(generation.generate(pipeline, indices, batch_size=batch_size, **options))
    labels = [y for _, y in parts]
    assert all(len(raw) <= batch_size for raw, _ in parts)
    return torch.cat([raw for raw, _ in parts]), labels


@pytest.mark.parametrize(
    "sampler",
    [DDIM(steps=20), DDIM(steps=20, eta=1.0), DDPM(steps=20)],
    ids=["ddim", "eta", "ddpm"],
)
def test_a_sample_depends_on_seed_and_index_only(sampler):
    pipeline, _ = perfect(sampler)
    whole, _ = drawn(pipeline, range(7), 7, seed=3)
    for batch_size in (1, 3):
        assert torch.equal(drawn(pipeline, range(7), batch_size, seed=3)[0], whole)
    assert torch.equal(drawn(pipeline, [5, 2], 2, seed=3)[0], whole[[5, 2]])
    assert not torch.equal(drawn(pipeline, range(7), 7, seed=4)[0], whole)
    assert (whole[0] - whole[1]).abs().max() > 0.1


def test_a_deterministic_sample_is_the_flow_from_its_noise():
    pipeline, net = perfect(DDIM(clip="none", steps=T))
    raw, _ = drawn(pipeline, [4], 1, seed=9)
    x = SampleNoise([mix(9, RandomStream.SAMPLE, 4)]).draw(SHAPE)
    a, s = net.oracle.schedule.signal_noise(0)
    exact, _ = net.oracle.predict(net.oracle.flow(x, T - 1, 0), a, s)
    torch.testing.assert_close(encoded(raw), exact, rtol=0, atol=0.03)


def test_labels_are_assigned_by_index():
    pipeline, net = perfect(DDIM(steps=1, clip="none"))
    raw, labels = drawn(pipeline, [0, 1, 2, 7], 3, seed=0, classes=[5, 0])
    assert [y.tolist() for y in labels] == [[5, 0, 5], [0]]
    assert net.labels == [[5, 0, 5], [0]]
    plain, none = drawn(pipeline, [0, 1, 2, 7], 3, seed=0)
    assert none == [None, None]
    shift = (encoded(raw) - encoded(plain)).mean((1, 2))
    torch.testing.assert_close(shift, torch.tensor([0.5, 0, 0.5, 0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("scale", [0.0, 2.0, 3.0])
def test_guidance_extrapolates_from_the_null_label(scale):
    options = {"label_dropout": 0.1, "num_classes": 4, "guidance": scale}
    pipeline, net = perfect(DDIM(steps=1, clip="none"), **options)
    assert isinstance(pipeline.denoiser, Clipping)
    assert isinstance(pipeline.denoiser.denoiser, ClassifierFreeGuidance)
    raw, _ = drawn(pipeline, range(2), 2, seed=0, classes=[1])
    assert net.labels == [[1, 1, 4, 4]]
    plain, _ = drawn(perfect(DDIM(steps=1, clip="none"))[0], range(2), 2, seed=0)
    shift = 0.1 * (4 + scale * (1 - 4))
    torch.testing.assert_close(encoded(raw), encoded(plain) + shift, rtol=0, atol=1e-4)


def test_guidance_of_one_is_off():
    pipeline, net = perfect(label_dropout=0.1, num_classes=4, guidance=1.0)
    assert isinstance(pipeline.denoiser, Clipping)
    assert isinstance(pipeline.denoiser.denoiser, Denoiser) and not net.training
    for options in ({"num_classes": 4}, {"label_dropout": 0.1}):
        with pytest.raises(ConfigError, match=r"guidance=2\.0: the model was not trained"):
            perfect(guidance=2.0, **options)


def test_more_steps_than_the_process_has_are_rejected():
    with pytest.raises(ConfigError, match=f"steps=201: the process has {T} steps; use 1 to {T}"):
        perfect(DDIM(steps=201))
    assert perfect(DDIM(steps=T))[0].num_calls() == T


def pair(shape=(1, 2, 16)):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for _ in range(2))
    return a, 1.5 * b


def shares(count=9):
    return torch.linspace(0, 1, count).reshape(-1, 1, 1)


@pytest.mark.parametrize("mode", ["slerp", "linear"])
def test_interpolate_noise_is_exact_at_the_ends(mode):
    a, b = pair()
    actual = interpolate_noise(a, b, shares(), mode)
    torch.testing.assert_close(actual[:1], a, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(actual[-1:], b, rtol=1e-5, atol=1e-6)


def test_linear_restores_the_norm():
    a, b = pair()
    lengths = interpolate_noise(a, b, shares(), "linear").flatten(1).norm(dim=1)
    expected = torch.lerp(a.norm(), b.norm(), shares().flatten())
    torch.testing.assert_close(lengths, expected, rtol=1e-5, atol=0)
    middle = interpolate_noise(a, b, torch.full((1, 1, 1), 0.5), "linear")
    direction = torch.nn.functional.cosine_similarity(middle.flatten(), (a + b).flatten(), dim=0)
    assert direction == pytest.approx(1, abs=1e-6)


def test_slerp_has_constant_norm_and_angular_speed():
    a, b = pair()
    b = b * a.norm() / b.norm()
    actual = interpolate_noise(a, b, shares(), "slerp").flatten(1)
    torch.testing.assert_close(actual.norm(dim=1), a.norm().expand(9), rtol=1e-5, atol=0)
    unit = actual.double() / actual.double().norm(dim=1, keepdim=True)
    angles = (unit[1:] * unit[:-1]).sum(1).acos()
    torch.testing.assert_close(angles, angles[:1].expand(8), rtol=1e-4, atol=0)


@pytest.mark.parametrize("mode", ["slerp", "linear"])
def test_interpolation_of_equal_noises_is_constant(mode):
    a, _ = pair()
    actual = interpolate_noise(a, a.clone(), shares(), mode)
    torch.testing.assert_close(actual, a.expand(9, -1, -1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["slerp", "linear"])
def test_opposite_noises_give_finite_numbers(mode):
    a, _ = pair()
    actual = interpolate_noise(a, -a, shares(), mode)
    assert actual.isfinite().all() and actual.abs().max() <= a.abs().max() * 1.001
    torch.testing.assert_close(actual[[0, -1]], torch.cat([a, -a]), rtol=1e-4, atol=1e-4)


OPTIONS = {"num_frames": 5, "seed": 1, "batch_size": 2}


def data_ends():
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.rand(SHAPE, generator=generator) * 4 - 1 for _ in range(2))


@pytest.mark.parametrize("mode", ["slerp", "linear"])
def test_at_a_small_t_the_endpoints_are_the_data(mode):
    pipeline, _ = perfect()
    ends = data_ends()
    frames = generation.interpolate(pipeline, ends, t=0, mode=mode, **OPTIONS)
    assert frames.shape == (5, *SHAPE)
    _, s = pipeline.diffusion.schedule.signal_noise(0)
    for frame, end in ((0, ends[0]), (4, ends[1])):
        assert (encoded(frames[frame]) - encoded(end)).abs().max() < 5 * s


@pytest.mark.parametrize("t", [3, 100, 198])
def test_the_middle_frame_matches_the_closed_form(t):
    """x_t of the middle has the mean of the data and the shared noise; the ideal network predicts
    E[x0 | x_t] in one DDIM step."""
    pipeline, net = perfect(DDIM(steps=1, clip="none"))
    ends = data_ends()
    frames = generation.interpolate(pipeline, ends, t=t, mode="linear", **OPTIONS)
    eps = SampleNoise([mix(1, RandomStream.ENDPOINT, 0)]).draw(SHAPE)
    a, s = pipeline.diffusion.schedule.signal_noise(t)
    for frame, share in enumerate((0, 0.25, 0.5, 0.75, 1)):
        x_t = a * torch.lerp(encoded(ends[0]), encoded(ends[1]), share)[None] + s * eps
        exact, _ = net.oracle.predict(x_t, a, s)
        torch.testing.assert_close(encoded(frames[frame : frame + 1]), exact, rtol=0, atol=1e-4)


def test_slerp_uses_separate_noise_per_endpoint():
    t = 120
    pipeline, net = perfect(DDIM(steps=1, clip="none"))
    ends = data_ends()
    frames = generation.interpolate(pipeline, ends, t=t, mode="slerp", **OPTIONS)
    a, s = pipeline.diffusion.schedule.signal_noise(t)
    for frame, place in ((0, 0), (4, 1)):
        eps = SampleNoise([mix(1, RandomStream.ENDPOINT, place)]).draw(SHAPE)
        exact, _ = net.oracle.predict(a * encoded(ends[place])[None] + s * eps, a, s)
        torch.testing.assert_close(encoded(frames[frame : frame + 1]), exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize("t", [T - 1, 90])
@pytest.mark.parametrize("mode", ["slerp", "linear"])
def test_endpoints_of_seeds_are_their_samples(mode, t):
    pipeline, _ = perfect(DDIM(steps=T, clip="none"))
    frames = generation.interpolate(pipeline, (11, 12), t=t, mode=mode, **OPTIONS)
    for frame, seed in ((0, 11), (4, 12)):
        own, _ = drawn(pipeline, [0], 1, seed=seed)
        torch.testing.assert_close(frames[frame : frame + 1], own, rtol=0, atol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_frames_do_not_depend_on_the_batch(batch_size):
    pipeline, _ = perfect(DDPM(steps=10))
    options = {"t": 150, "mode": "slerp", "num_frames": 7, "seed": 1}
    expected = generation.interpolate(pipeline, data_ends(), batch_size=7, **options)
    actual = generation.interpolate(pipeline, data_ends(), batch_size=batch_size, **options)
    assert torch.equal(actual, expected)


def test_a_frame_has_the_class_of_the_nearer_endpoint():
    pipeline, net = perfect(DDIM(steps=1, clip="none"))
    generation.interpolate(pipeline, data_ends(), t=50, mode="slerp", classes=(2, 7), **OPTIONS)
    assert net.labels == [[2, 2], [2, 7], [7]]
    net.labels.clear()
    generation.interpolate(pipeline, (3, 4), t=T - 1, mode="slerp", classes=(2, 7), **OPTIONS)
    assert net.labels == [[2], [7], [2, 2], [2, 7], [7]]


def test_any_integer_is_a_seed():
    pipeline, _ = perfect(DDPM(steps=2))
    for seed in (-3, 10**30):
        drawn(pipeline, [0], 1, seed=seed)
        frames = generation.interpolate(
            pipeline, (seed, 1), t=9, mode="slerp", **{**OPTIONS, "seed": seed}
        )
        assert frames.isfinite().all()
