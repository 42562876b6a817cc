"""The sampling pipeline: a denoiser with its guidance, a sampler, and the codec of the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ddpm.data import Codec
from ddpm.diffusion import (
    Clipping,
    Conditioning,
    Denoiser,
    DenoiserProtocol,
    DenoiserWrapper,
    GaussianDiffusion,
    Prediction,
    class_conditioning,
    without_gradients,
)
from ddpm.distributed.devices import default_precision
from ddpm.errors import ConfigError, require
from ddpm.guidance import Guidance, as_guidance
from ddpm.models.labels import null_label
from ddpm.noise import SampleNoise
from ddpm.samplers import Sampler
from ddpm.samplers.base import OnStep

Autocast = Callable[[], AbstractContextManager[Any]]


class CheckedDenoiser(DenoiserWrapper):
    """Wraps a denoiser with a check of the time, for calls from outside of a sampler.

    Args:
        denoiser: the denoiser.
    """

    def __call__(
        self,
        x_t: Tensor,
        t: float,
        previous_x0: Tensor | None = None,
        conditioning: Conditioning | None = None,
    ) -> Prediction:
        """Predict x0 and the noise; see :class:`~ddpm.diffusion.DenoiserProtocol`.

        Raises:
            ConfigError: (key ``t``) a time outside of 0 to T-1.
        """
        last = self.diffusion.num_steps - 1
        shown = t if isinstance(t, Real) else type(t).__name__
        good = isinstance(t, Real) and 0 <= t <= last
        require(good, "t", shown, f"must be a number from 0 to {last}, the time of the batch")
        return self.denoiser(x_t, t, previous_x0, conditioning)


@dataclass(frozen=True)
class SamplingPipeline:
    """A denoiser and a sampler, with the codec of the data.

    Attributes:
        denoiser: predicts x0 and the noise.
        sampler: the update rule and its timesteps.
        codec: converts from model space to raw data.
        device: of the network.
        autocast: returns the context in which the network runs.
        null_label: the network's label for "no class"; None without label dropout.
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
            with without_gradients(self.denoiser), self.autocast():
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
    guidance: Guidance | float = 1.0,
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
        guidance: scale of classifier-free guidance, 1 = off, or all options of guidance.
        num_classes: number of classes of the data, for a class-conditional network.
        autocast: returns the context for half precision.

    Raises:
        ConfigError: steps that the process lacks, or guidance of a network that was not trained
            for it, or that does not have a ``null_label``.
    """
    check_steps(sampler, diffusion)
    guidance, null = as_guidance(guidance), None
    if num_classes is not None and diffusion.loss_options.drops_labels:
        null = null_label(network, num_classes, required=guidance.scale != 1)
    clipping = {
        "clip": sampler.clip,
        "bounds": codec.bounds,
        "dynamic_quantile": sampler.dynamic_quantile,
    }
    guided = guidance.wrap(
        Denoiser(network.eval(), diffusion),
        has_classes=num_classes is not None,
        has_null=null is not None,
        clip=lambda denoiser: Clipping(denoiser, **clipping),
    )
    return SamplingPipeline(guided, sampler, codec, device, autocast, null)


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


def placed(network: nn.Module, device: torch.device, rank: int) -> nn.Module:
    """Move a network to the device, with the memory layout that is faster in sampling.

    Args:
        network: the network.
        device: the device.
        rank: number of spatial axes of the data.
    """
    network = network.to(device)
    # On a CPU see scripts/sampling_speed.py; tensor cores convolve with channels last.
    if rank == 2 and (device.type == "cpu" or default_precision(device) == "bf16"):
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore
    return network
