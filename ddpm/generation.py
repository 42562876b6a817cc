"""From a trained network to samples, and from two ends to the frames between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ddpm.data import Codec
from ddpm.diffusion import Denoiser, Denoises, GaussianDiffusion, Guided
from ddpm.errors import ConfigError, require
from ddpm.samplers import DDIM, Sampler
from ddpm.samplers.base import OnStep
from ddpm.seeding import For, mix

Autocast = Callable[[], AbstractContextManager[Any]]
Mode = Literal["slerp", "linear", "ddim"]
REFINE = 3  # network calls of an inverted step beyond its first


class SampleNoise:
    """Standard normal noise of which each sample's part is a function of that sample's seed.

    It is drawn on the CPU, so that it is the same on every device; a batch of other samples
    beside it changes nothing.

    Args:
        seeds: one for each sample of the batch.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """(B, *shape) float32 on the CPU, the next numbers of each sample's own stream."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators])

    def like(self, x: Tensor) -> Tensor:
        """The same, in the shape of x (B, ...) and on its device."""
        return self.draw(tuple(x.shape[1:])).to(x.device)


@dataclass(frozen=True)
class Source:
    """All that sampling needs: what is believed of x_t, how to walk, how to read the end.

    Attributes:
        denoiser: what is believed of x_t.
        sampler: the walk from noise to data.
        codec: from model space to data.
        device: where the network lies.
        autocast: makes the context that the network runs in.
    """

    denoiser: Denoises
    sampler: Sampler
    codec: Codec
    device: torch.device
    autocast: Autocast = nullcontext

    @property
    def diffusion(self) -> GaussianDiffusion:
        """The process."""
        return self.denoiser.diffusion

    def calls(self, start: int | None = None) -> int:
        """Steps of one walk from ``start`` (default T-1) to clean data."""
        total = self.diffusion.num_steps
        at = total - 1 if start is None else start
        return len(self.sampler.timesteps(at, num_steps=total))

    def one_call(self, size: int, classes: Sequence[int] | None) -> Callable[[], None]:
        """Return a network call on noise, which can be timed and changes nothing.

        Args:
            size: samples at once.
            classes: numbers of classes, of which the first is used; None without classes.
        """
        noise = SampleNoise(range(size)).draw(self.codec.shape).to(self.device)
        y = None if classes is None else torch.full((size,), classes[0], device=self.device)

        def call() -> None:
            with torch.inference_mode(), self.autocast():
                self.denoiser(noise, self.diffusion.num_steps - 1, y=y)

        return call

    def walk(
        self,
        x: Tensor,
        noise: SampleNoise,
        *,
        start: int | None = None,
        stop: int = -1,
        y: Tensor | None = None,
        known: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """x_stop from x at ``start``, see :meth:`Sampler.sample`."""
        with self.autocast():
            return self.sampler.sample(
                self.denoiser,
                x.to(self.device),
                randn_like=noise.like,
                start=start,
                stop=stop,
                y=None if y is None else y.to(self.device),
                known=None if known is None else known.to(self.device),
                on_step=on_step,
            )


def source(
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
) -> Source:
    """Put a network in eval mode and make a :class:`Source` of it.

    Args:
        network: on ``device``.
        diffusion: its process.
        sampler: with steps that fit the process, see :func:`check_steps`.
        codec: of its data.
        device: where to sample.
        guidance: scale of classifier-free guidance; 1 = off.
        guidance_rescale: see :class:`Guided`; 0 = off.
        num_classes: of a class-conditional network.
        autocast: makes the context of half precision.

    Raises:
        ConfigError: guidance of a network that was not trained for it.
    """
    check_steps(sampler, diffusion, "steps")
    denoiser: Denoises = Denoiser(
        network.eval(),
        diffusion,
        bounds=codec.bounds,
        clip=sampler.clip,
        dynamic_quantile=sampler.dynamic_quantile,
    )
    rescale = guidance_rescale
    require(0 <= rescale <= 1, "guidance_rescale", rescale, "must be between 0 (off) and 1")
    problem = "is for a guidance other than 1; leave it at 0"
    require(guidance != 1 or rescale == 0, "guidance_rescale", rescale, problem)
    if guidance != 1:
        if num_classes is None or diffusion.label_dropout == 0:
            problem = (
                "the model was not trained to be guided; train with data.class_cond=true "
                "diffusion.label_dropout=0.1, or leave guidance at 1"
            )
            raise ConfigError("guidance", guidance, problem)
        assert isinstance(denoiser, Denoiser)
        denoiser = Guided(denoiser, null_label=num_classes, scale=guidance, rescale=rescale)
    return Source(denoiser, sampler, codec, device, autocast)


def check_steps(sampler: Sampler, diffusion: GaussianDiffusion, key: str) -> None:
    """Refuse sampling steps that the process does not have; ``key`` is the option to blame."""
    steps, most = sampler.steps, diffusion.num_steps
    problem = f"the process has {most} steps; take 1 to {most}"
    require(not isinstance(steps, int) or steps <= most, key, steps, problem)
    try:
        first = sampler.timesteps(most - 1)[0][0]
    except ConfigError as error:
        raise error.renamed(key, steps) from error
    problem = (
        f"begins at step {first}, but the schedule leaves no signal at step {most - 1} "
        "(zero_terminal_snr), which is where to begin; take a plain number of steps"
    )
    require(first == most - 1 or not diffusion.schedule.ends_in_noise, key, steps, problem)


def generate(
    source: Source,
    indices: Sequence[int],
    *,
    seed: int,
    batch_size: int,
    classes: Sequence[int] | None = None,
    known: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Draw samples batch by batch; sample i is a function of (seed, i) and its class alone.

    Args:
        source: what to draw from.
        indices: which samples.
        seed: of all of them.
        batch_size: how many at once.
        classes: sample i gets ``classes[i % len(classes)]``; None for an unconditional model.
        known: raw data (N, C, *spatial); sample i is given the given entries of ``known[i % N]``.
        on_step: see :meth:`Sampler.sample`.

    Yields:
        Raw data (B, C, *spatial) on the CPU, and labels (B,) or None.
    """
    for first in range(0, len(indices), batch_size):
        batch = indices[first : first + batch_size]
        noise = SampleNoise([mix(seed, For.SAMPLE, index) for index in batch])
        labels = (
            None if classes is None else torch.tensor([classes[i % len(classes)] for i in batch])
        )
        clean = None
        if known is not None:
            clean = source.codec.encode(known[[i % len(known) for i in batch]])
        x = source.walk(
            noise.draw(source.codec.shape), noise, y=labels, known=clean, on_step=on_step
        )
        yield source.codec.decode(x).cpu(), labels


def interpolate(
    source: Source,
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
    """Frames from one end to the other, (num_frames, C, *spatial) raw data on the CPU.

    Each end is split at step t into clean data x0 and noise eps. Data are given their noise: with
    ``linear`` the same for both, with ``slerp`` one each. A seed gets the x_t that its own sample
    passes, and what the network believes of it. Between the ends x0 goes linearly and eps along
    the sphere (``slerp``) or along the chord, its length restored (``linear``), so that every
    frame has as much noise as step t has; then each is denoised from t. (Ho et al. 2020,
    section 4.3, for shared noise.) Entries that are given go linearly too.

    With ``ddim`` an end is the x_t from which the deterministic walk leads to it, and frames go
    along the sphere between the two x_t (Song et al. 2020, section 5.3): the ends are kept.

    Args:
        source: what to draw from.
        ends: each raw data (C, *spatial), or the seed of a sample.
        t: the step that both are noised to, 0..T-1.
        num_frames: at least 2, the ends among them.
        mode: how the noise is chosen and goes.
        seed: of the noise of data, and of a stochastic sampler's, the same for all frames.
        batch_size: frames at once.
        classes: of the two ends, of a conditional model; a frame has its nearer end's.
        on_step: see :meth:`Sampler.sample`; for ``ddim`` also :meth:`DDIM.invert`.

    Raises:
        ConfigError: ``ddim`` with another sampler, or with noise in its steps; a seed as an end
            of a model that is given part of the data.
    """
    check_mode(source, ends, mode)
    labels = classes or (None, None)
    (x0_a, noise_a), (x0_b, noise_b) = (
        _invert(source, end, t, label, on_step)
        if mode == "ddim"
        else _split(source, end, t, mix(seed, For.END, place if mode == "slerp" else 0), label)
        for place, (end, label) in enumerate(zip(ends, labels, strict=True))
    )
    a, s = (0.0, 1.0) if mode == "ddim" else source.diffusion.schedule.signal_noise(t)
    frames: list[Tensor] = []
    for first in range(0, num_frames, batch_size):
        share = torch.linspace(0, 1, num_frames)[first : first + batch_size]
        share = share.reshape(-1, *[1] * (x0_a.ndim - 1)).to(source.device)
        clean = torch.lerp(x0_a, x0_b, share)
        x_t = a * clean + s * between(noise_a, noise_b, share, mode)
        nearer = (share.flatten() > 0.5).long().cpu()
        y = None if classes is None else torch.tensor(classes)[nearer]
        noise = SampleNoise([mix(seed, For.FRAMES)] * len(share))
        known = clean if source.diffusion.given else None
        x = source.walk(x_t, noise, start=t, y=y, known=known, on_step=on_step)
        frames.append(source.codec.decode(x).cpu())
    return torch.cat(frames)


def check_mode(source: Source, ends: Sequence[Tensor | int], mode: Mode) -> None:
    """Refuse ends that cannot be interpolated in a mode; see :func:`interpolate`."""
    sampler = source.sampler
    if mode == "ddim":
        good = isinstance(sampler, DDIM) and sampler.eta == 0
        problem = "walks back along the deterministic way; take sampler=ddim sampler.eta=0"
        require(good, "mode", mode, problem)
    if source.diffusion.given:
        problem = "a seed has no entries to give, which this model needs; take files for a and b"
        for key, end in zip("ab", ends, strict=True):
            require(isinstance(end, Tensor), key, end, problem)


def _split(
    source: Source, end: Tensor | int, t: int, seed: int, label: int | None
) -> tuple[Tensor, Tensor]:
    """Clean data and noise of one end at step t, both (1, C, *spatial) on the device."""
    if isinstance(end, Tensor):
        x0 = source.codec.encode(end.unsqueeze(0).to(source.device))
        return x0, SampleNoise([seed]).like(x0)
    x_t, y = _passed(source, end, t, label)
    with torch.inference_mode(), source.autocast():
        believed = source.denoiser(x_t, t, y=None if y is None else y.to(source.device))
    return believed.x0, believed.eps


def _invert(
    source: Source, end: Tensor | int, t: int, label: int | None, on_step: OnStep | None
) -> tuple[Tensor, Tensor]:
    """Clean data and x_t of one end, both (1, C, *spatial) on the device; a seed has only x_t."""
    if not isinstance(end, Tensor):
        x_t = _passed(source, end, t, label)[0].to(source.device)
        return torch.zeros_like(x_t), x_t
    assert isinstance(source.sampler, DDIM)
    x0 = source.codec.encode(end.unsqueeze(0).to(source.device))
    y = None if label is None else torch.tensor([label], device=source.device)
    with source.autocast():
        x_t = source.sampler.invert(
            source.denoiser, x0, start=t, y=y, refine=REFINE, on_step=on_step
        )
    return x0, x_t


def _passed(source: Source, seed: int, t: int, label: int | None) -> tuple[Tensor, Tensor | None]:
    """The x_t that the first sample of a seed passes, and its label, both of a batch of one."""
    noise = SampleNoise([mix(seed, For.SAMPLE, 0)])
    y = None if label is None else torch.tensor([label])
    return source.walk(noise.draw(source.codec.shape), noise, stop=t, y=y), y


def between(a: Tensor, b: Tensor, share: Tensor, mode: Mode) -> Tensor:
    """Between two noises (1, ...) at shares (N, 1, ...): along the sphere, or along the chord.

    The chord (``linear``) has its points brought to the length that lies between the two lengths,
    so that both ways give noise of the right size.
    """
    size_a, size_b = a.norm(), b.norm()
    if mode == "linear":
        mixed = torch.lerp(a, b, share)
        lengths = mixed.flatten(1).norm(dim=1).reshape(share.shape)
        return mixed * torch.lerp(size_a, size_b, share) / lengths.clamp(min=1e-12)
    angle = torch.acos(((a * b).sum() / (size_a * size_b)).clamp(-1, 1))
    if angle.sin() < 1e-4:
        return torch.lerp(a, b, share)
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / angle.sin()
