"""Sampling from a trained network, and interpolation between two endpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ddpm.data import Codec
from ddpm.diffusion import (
    ClassifierFreeGuidance,
    Clipping,
    Conditioning,
    Denoiser,
    DenoiserProtocol,
    GaussianDiffusion,
    class_conditioning,
)
from ddpm.errors import ConfigError, require
from ddpm.samplers import DDIM, Sampler
from ddpm.samplers.base import OnStep
from ddpm.seeding import RandomStream, mix

Autocast = Callable[[], AbstractContextManager[Any]]
Mode = Literal["slerp", "linear", "ddim"]
REFINE = 3  # network calls per inverted step beyond the first


class SampleNoise:
    """Standard normal noise with one random generator per sample.

    The noise of a sample depends on its seed only, not on the batch; it is drawn on the CPU, so
    that it is the same on every device.

    Args:
        seeds: (B,), one per sample of the batch.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """Return the next noise (B, *shape) of each sample, float32 on the CPU."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators])

    def like(self, x: Tensor) -> Tensor:
        """Return the next noise in the shape of ``x`` (B, ...), float32 on its device."""
        return self.draw(tuple(x.shape[1:])).to(x.device)


@dataclass(frozen=True)
class SamplingPipeline:
    """A denoiser and a sampler, with the codec of the data.

    Attributes:
        denoiser: predicts x0 and the noise.
        sampler: the update rule and its timesteps.
        codec: converts from model space to raw data.
        device: of the network.
        autocast: returns the context in which the network runs.
        null_label: the class number that means "no class"; None for a network without.
    """

    denoiser: DenoiserProtocol
    sampler: Sampler
    codec: Codec
    device: torch.device
    autocast: Autocast = nullcontext
    null_label: int | None = None

    @property
    def diffusion(self) -> GaussianDiffusion:
        """The process."""
        return self.denoiser.diffusion

    def num_calls(self, start: int | None = None) -> int:
        """Return the number of network calls from ``start`` (default T-1) to clean data."""
        times = self.sampler.timesteps(self.diffusion.schedule, start=start)
        return self.sampler.num_calls(len(times) - 1)

    def benchmark_call(self, size: int, classes: Sequence[int] | None) -> Callable[[], None]:
        """Return a function that calls the network once on noise, to be timed.

        Args:
            size: samples in the batch.
            classes: class numbers, of which the first is used; None without classes.
        """
        noise = SampleNoise(range(size)).draw(self.codec.shape).to(self.device)
        labels = None if classes is None else torch.full((size,), classes[0], device=self.device)
        conditioning = self.conditioning(labels)

        def call() -> None:
            mode = torch.no_grad if self.denoiser.needs_gradients else torch.inference_mode
            with mode(), self.autocast():
                self.denoiser(noise, self.diffusion.num_steps - 1, conditioning=conditioning)

        return call

    def conditioning(self, labels: Tensor | None) -> Conditioning:
        """Return the conditioning by class numbers (B,), on the device."""
        return class_conditioning(labels, self.null_label).to(self.device)

    def sample(
        self,
        x: Tensor,
        noise: SampleNoise,
        *,
        start: int | None = None,
        stop: int = -1,
        labels: Tensor | None = None,
        condition: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Sample x at ``stop`` from x at ``start``, in model space; see :meth:`Sampler.sample`.

        ``labels`` are class numbers (B,), None for an unconditional network.
        """
        with self.autocast():
            return self.sampler.sample(
                self.denoiser,
                x.to(self.device),
                randn_like=noise.like,
                start=start,
                stop=stop,
                conditioning=self.conditioning(labels),
                condition=None if condition is None else condition.to(self.device),
                on_step=on_step,
            )


def build_pipeline(
    network: nn.Module,
    diffusion: GaussianDiffusion,
    sampler: Sampler,
    codec: Codec,
    *,
    device: torch.device,
    guidance: float = 1.0,
    guidance_rescale: float = 0.0,
    num_classes: int | None = None,
    autocast: Autocast = nullcontext,
) -> SamplingPipeline:
    """Set a network to eval mode and return the pipeline that samples with it.

    Args:
        network: on ``device``.
        diffusion: the process the network was trained for.
        sampler: with steps that fit the process, see :func:`check_steps`.
        codec: of the data.
        device: of the network.
        guidance: scale of classifier-free guidance; 1 = off.
        guidance_rescale: see :class:`ClassifierFreeGuidance`; 0 = off.
        num_classes: of a class-conditional network.
        autocast: returns the context for half precision.

    Raises:
        ConfigError: steps that the process lacks, or guidance of a network that was not trained
            for it.
    """
    check_steps(sampler, diffusion)
    denoiser: DenoiserProtocol = Denoiser(network.eval(), diffusion)
    rescale = guidance_rescale
    require(0 <= rescale <= 1, "guidance_rescale", rescale, "must be between 0 (off) and 1")
    problem = "requires a guidance other than 1; set it to 0"
    require(guidance != 1 or rescale == 0, "guidance_rescale", rescale, problem)
    if guidance != 1:
        if num_classes is None or diffusion.label_dropout == 0:
            problem = (
                "the model was not trained for guidance; train with data.class_cond=true "
                "diffusion.label_dropout=0.1, or set guidance to 1"
            )
            raise ConfigError("guidance", guidance, problem)
        denoiser = ClassifierFreeGuidance(denoiser, scale=guidance, rescale=rescale)
    clip, quantile = sampler.clip, sampler.dynamic_quantile
    denoiser = Clipping(denoiser, clip, bounds=codec.bounds, dynamic_quantile=quantile)
    null = num_classes if diffusion.label_dropout > 0 else None
    return SamplingPipeline(denoiser, sampler, codec, device, autocast, null)


def check_steps(sampler: Sampler, diffusion: GaussianDiffusion) -> None:
    """Raise ConfigError (key ``sampler.steps``) for sampling steps that the process lacks."""
    key, steps, most = "sampler.steps", sampler.steps, diffusion.num_steps
    problem = f"the process has {most} steps; use 1 to {most}"
    require(not isinstance(steps, int) or steps <= most, key, steps, problem)
    try:
        first = sampler.timesteps(diffusion.schedule)[0]
    except ConfigError as error:
        raise error.renamed(key, steps) from error
    problem = (
        f"starts at step {first}, but sampling must start at step {most - 1}, where the schedule "
        "leaves no signal (zero_terminal_snr); use a plain number of steps"
    )
    good = first == most - 1 or not diffusion.schedule.zero_terminal_snr
    require(good, key, steps, problem)


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
        on_step: see :meth:`Sampler.sample`; for ``ddim`` also :meth:`DDIM.invert`.

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
        return x0, SampleNoise([seed]).like(x0)
    x_t, labels = _latent_at_step(pipeline, end, t, label)
    mode = torch.no_grad if pipeline.denoiser.needs_gradients else torch.inference_mode
    with mode(), pipeline.autocast():
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
        x_t = pipeline.sampler.invert(
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
