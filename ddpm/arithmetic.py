"""Precision of sampling, and a check of the predictions that depend on it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from ddpm.diffusion import without_gradients
from ddpm.distributed import devices
from ddpm.distributed.devices import Precision
from ddpm.distributed.trials import relative_distance
from ddpm.evaluation.options import LIKELIHOOD
from ddpm.noise import SampleNoise
from ddpm.pipeline import Autocast, SamplingPipeline

PrecisionOption = Precision | Literal["auto"]
CLOSE: dict[Precision, float] = {"no": 1e-3, "bf16": 0.05, "fp16": 0.05}
"""Largest accepted relative distance of predictions."""
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Arithmetic:
    """Precision of the calls of a network; an instance returns the context that they run in.

    Attributes:
        device: of the network.
        option: the requested precision.
        precision: the one that is used. For ``auto`` it is :func:`default_precision`, unless
            :meth:`check` or a trial changes it.

    Args:
        device: of the network.
        option: ``auto`` or a precision.
        default: for ``auto``; None = :func:`default_precision`.
    """

    def __init__(
        self, device: torch.device, option: PrecisionOption, default: Precision | None = None
    ) -> None:
        self.device = device
        self.option: PrecisionOption = option
        default = devices.default_precision(device) if default is None else default
        self.precision: Precision = default if option == "auto" else option
        self._is_checked = option != "auto"

    def __call__(self) -> AbstractContextManager[Any]:
        """Return the context of automatic casts, or one without effect for float32."""
        dtype = _DTYPES.get(self.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def check(self, pipeline: SamplingPipeline, classes: Sequence[int] | None) -> None:
        """Replace an automatic half precision by float32 unless predictions are close.

        Args:
            pipeline: of a network that runs in this context.
            classes: class numbers, of which the first is used; None without classes.
        """
        if self._is_checked or self.precision == "no":
            return
        self._is_checked, chosen = True, self.precision
        half = predictions(pipeline, 2, classes)
        self.precision = "no"
        if relative_distance(half, predictions(pipeline, 2, classes)) <= CLOSE[chosen]:
            self.precision = chosen


def evaluation_precision(option: PrecisionOption, metrics: Collection[str]) -> PrecisionOption:
    """Return the precision of an evaluation: float32 instead of ``auto`` for likelihoods."""
    return "no" if option == "auto" and set(metrics) & set(LIKELIHOOD) else option


def of_evaluation(autocast: Autocast, metrics: Collection[str]) -> Autocast:
    """Return the context of an evaluation, see :func:`evaluation_precision`."""
    if not isinstance(autocast, Arithmetic):
        return autocast
    return Arithmetic(autocast.device, evaluation_precision(autocast.option, metrics))


def predictions(
    pipeline: SamplingPipeline, size: int, classes: Sequence[int] | None
) -> list[Tensor]:
    """Return alpha * x0 as predicted at the first, a middle and the last time of a path.

    An error of the network changes this about as much for every objective. x is noise.

    Args:
        pipeline: its denoiser is called, as its sampler does.
        size: samples in the batch.
        classes: class numbers, of which the first is used; None without classes.

    Returns:
        Tensors (B, C, *spatial), on the device.
    """
    schedule, previous, result = pipeline.diffusion.schedule, None, []
    times = [t for t in pipeline.sampler.timesteps(schedule) if t >= 0]
    x = SampleNoise(range(size)).draw(pipeline.codec.shape).to(pipeline.device)
    labels = None if classes is None else torch.full((size,), classes[0], device=pipeline.device)
    conditioning = pipeline.conditioning(labels)
    with without_gradients(pipeline.denoiser), pipeline.autocast():
        for t in dict.fromkeys((times[0], times[len(times) // 2], times[-1])):
            previous = pipeline.denoiser(x, t, previous, conditioning).x0
            result.append(schedule.signal_noise(t)[0] * previous)
    return result
