"""Sampling from a trained network, and interpolation between two endpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ddpm.diffusion import without_gradients
from ddpm.errors import require
from ddpm.inversion import invert
from ddpm.noise import SampleNoise
from ddpm.pipeline import SamplingPipeline
from ddpm.samplers import DDIM
from ddpm.samplers.base import OnStep
from ddpm.seeding import RandomStream, mix

Mode = Literal["slerp", "linear", "ddim"]
REFINE = 3  # network calls per inverted step beyond the first


class Samples(NamedTuple):
    """A batch of samples, on the CPU.

    Attributes:
        data: raw data (B, C, *spatial): uint8 images (0 to 255) and videos, float32 sequences.
        labels: (B,) int64, the names of the classes where all are whole numbers, else their
            numbers from 0; None for an unconditional model.
    """

    data: Tensor
    labels: Tensor | None


def generate(
    pipeline: SamplingPipeline,
    indices: Sequence[int],
    *,
    seed: int,
    batch_size: int,
    classes: Sequence[int] | None = None,
    condition: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Draw samples batch by batch; sample i depends on (seed, i) and its class only.

    Args:
        pipeline: to sample with.
        indices: of the samples.
        seed: of all samples.
        batch_size: samples per batch.
        classes: sample i gets ``classes[i % len(classes)]``; None for an unconditional model.
        condition: raw data (N, C, *spatial); the conditioning entries of sample i are those of
            ``condition[i % N]``.
        on_step: see :meth:`Sampler.sample`.

    Yields:
        Raw data (B, C, *spatial) on the CPU, and labels (B,) or None.
    """
    for first in range(0, len(indices), batch_size):
        batch = indices[first : first + batch_size]
        noise = SampleNoise([mix(seed, RandomStream.SAMPLE, index) for index in batch])
        labels = (
            None if classes is None else torch.tensor([classes[i % len(classes)] for i in batch])
        )
        clean = None
        if condition is not None:
            clean = pipeline.codec.encode(condition[[i % len(condition) for i in batch]])
        x = pipeline.sample(
            noise.draw(pipeline.codec.shape), noise, labels=labels, condition=clean, on_step=on_step
        )
        yield pipeline.codec.decode(x).cpu(), labels


def interpolate(
    pipeline: SamplingPipeline,
    ends: tuple[Tensor | int, Tensor | int],
    *,
    t: int,
    num_frames: int,
    mode: Mode,
    seed: int,
    batch_size: int,
    classes: tuple[int, int] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Return the frames from one endpoint to the other, raw data (num_frames, C, *spatial), CPU.

    Each endpoint is split into clean data x0 and noise eps at timestep t. For data the noise is
    random: with ``linear`` the same for both endpoints, with ``slerp`` one per endpoint. For a seed
    x0 and eps are predicted from the x_t of its sample. Between the endpoints x0 is interpolated
    linearly, and eps along the sphere (``slerp``) or along the chord with its norm restored
    (``linear``), so that each frame has the noise level of t; then each frame is denoised from t.
    (Ho et al. 2020, section 4.3, with shared noise.) Conditioning entries change linearly.

    With ``ddim`` an endpoint is the x_t from which deterministic sampling yields it, and frames lie
    on the sphere between the two x_t (Song et al. 2020, section 5.3): the endpoints are reproduced.

    Args:
        pipeline: to sample with.
        ends: endpoints, each raw data (C, *spatial), or the seed of a sample.
        t: timestep to which both are noised, 0 to T-1.
        num_frames: at least 2, with the endpoints.
        mode: ``slerp``, ``linear`` or ``ddim``.
        seed: of the noise of data, and of that of a stochastic sampler, the same for all frames.
        batch_size: frames per batch.
        classes: of the endpoints of a conditional model; a frame has that of the nearer one.
        on_step: see :meth:`Sampler.sample`; for ``ddim`` also :func:`~ddpm.inversion.invert`.

    Raises:
        ConfigError: ``ddim`` with a stochastic sampler; a seed with conditioning entries.
    """
    check_mode(pipeline, ends, mode)
    pair = classes or (None, None)
    (x0_a, noise_a), (x0_b, noise_b) = (
        _invert_endpoint(pipeline, end, t, label, on_step)
        if mode == "ddim"
        else _encode_endpoint(
            pipeline, end, t, mix(seed, RandomStream.ENDPOINT, i if mode == "slerp" else 0), label
        )
        for i, (end, label) in enumerate(zip(ends, pair, strict=True))
    )
    diffusion, frames = pipeline.diffusion, []
    a, s = (0.0, 1.0) if mode == "ddim" else diffusion.schedule.signal_noise(t)
    for weight in torch.linspace(0, 1, num_frames).split(batch_size):
        w = weight.reshape(-1, *[1] * (x0_a.ndim - 1)).to(pipeline.device)
        x0 = torch.lerp(x0_a, x0_b, w)
        x_t = a * x0 + s * interpolate_noise(noise_a, noise_b, w, mode)
        labels = None if classes is None else torch.tensor(classes)[(weight > 0.5).long()]
        noise = SampleNoise([mix(seed, RandomStream.INTERPOLATION)] * len(weight))
        clean = x0 if diffusion.conditioning_mask else None
        x = pipeline.sample(x_t, noise, start=t, labels=labels, condition=clean, on_step=on_step)
        frames.append(pipeline.codec.decode(x).cpu())
    return torch.cat(frames)


def check_mode(pipeline: SamplingPipeline, ends: Sequence[Tensor | int], mode: Mode) -> None:
    """Raise ConfigError for endpoints that cannot be interpolated; see :func:`interpolate`."""
    sampler = pipeline.sampler
    if mode == "ddim":
        good = isinstance(sampler, DDIM) and sampler.eta == 0
        problem = "requires deterministic sampling; use sampler=ddim sampler.eta=0"
        require(good, "mode", mode, problem)
    if pipeline.diffusion.conditioning_mask:
        problem = "a seed lacks the conditioning entries of this model; use files for a and b"
        for key, end in zip("ab", ends, strict=True):
            require(isinstance(end, Tensor), key, end, problem)


def _encode_endpoint(
    pipeline: SamplingPipeline, end: Tensor | int, t: int, seed: int, label: int | None
) -> tuple[Tensor, Tensor]:
    """Return x0 and the noise of an endpoint, both (1, C, *spatial) on the device."""
    if isinstance(end, Tensor):
        x0 = pipeline.codec.encode(end.unsqueeze(0).to(pipeline.device))
        return x0, SampleNoise([seed]).draw(tuple(x0.shape[1:])).to(x0.device)
    x_t, labels = _latent_at_step(pipeline, end, t, label)
    with without_gradients(pipeline.denoiser), pipeline.autocast():
        prediction = pipeline.denoiser(x_t, t, conditioning=pipeline.conditioning(labels))
    return prediction.x0, prediction.eps


def _invert_endpoint(
    pipeline: SamplingPipeline,
    end: Tensor | int,
    t: int,
    label: int | None,
    on_step: OnStep | None,
) -> tuple[Tensor, Tensor]:
    """Return x0 and x_t of an endpoint, both (1, C, *spatial) on the device; x0 of a seed is 0."""
    if not isinstance(end, Tensor):
        x_t = _latent_at_step(pipeline, end, t, label)[0].to(pipeline.device)
        return torch.zeros_like(x_t), x_t
    assert isinstance(pipeline.sampler, DDIM)
    x0 = pipeline.codec.encode(end.unsqueeze(0).to(pipeline.device))
    labels = None if label is None else torch.tensor([label])
    conditioning = pipeline.conditioning(labels)
    with pipeline.autocast():
        x_t = invert(
            pipeline.sampler,
            pipeline.denoiser,
            x0,
            start=t,
            conditioning=conditioning,
            refine=REFINE,
            on_step=on_step,
        )
    return x0, x_t


def _latent_at_step(
    pipeline: SamplingPipeline, seed: int, t: int, label: int | None
) -> tuple[Tensor, Tensor | None]:
    """Return the x_t of the first sample of a seed, and its label, both with a batch of one."""
    noise = SampleNoise([mix(seed, RandomStream.SAMPLE, 0)])
    labels = None if label is None else torch.tensor([label])
    x_t = pipeline.sample(noise.draw(pipeline.codec.shape), noise, stop=t, labels=labels)
    return x_t, labels


def interpolate_noise(a: Tensor, b: Tensor, weight: Tensor, mode: Mode) -> Tensor:
    """Interpolate two noises along the sphere, or along the chord with the norm restored.

    Restoring the norm of the chord (``linear``), to the interpolated norm, keeps the noise level.

    Args:
        a: (1, ...) noise at weight 0.
        b: (1, ...) noise at weight 1.
        weight: (N, 1, ...) in 0..1.
        mode: ``linear`` for the chord, else the sphere.

    Returns:
        The noises, (N, ...).
    """
    size_a, size_b = a.norm(), b.norm()
    if mode == "linear":
        mixed = torch.lerp(a, b, weight)
        lengths = mixed.flatten(1).norm(dim=1).reshape(weight.shape)
        return mixed * torch.lerp(size_a, size_b, weight) / lengths.clamp(min=1e-12)
    angle = torch.acos(((a * b).sum() / (size_a * size_b)).clamp(-1, 1))
    if angle.sin() < 1e-4:
        return torch.lerp(a, b, weight)
    return (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / angle.sin()
