"""Trial of a training step: its duration, measured without an effect on the training."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

import torch
from torch import nn

from ddpm.training.buffers import buffers_restored
from ddpm.training.optimizer import AdamW
from ddpm.training.trainer import Trainer

MAX_PASSES = 10  # that are counted
_MAX_COPIED = 4_000_000  # parameters: too many for caches, and little memory


def seconds_per_step(trainer: Trainer, *, seconds: float = 1.0, passes: int = MAX_PASSES) -> float:
    """Return the seconds per optimizer step, the median of a few passes on a real batch.

    The duration includes the forward and backward passes of all micro-batches, reading the data
    unless workers do, and the updates of the optimizer and of the average. It does not include
    communication between processes, logs, previews and checkpoints. Weights, gradients, optimizer,
    average, buffers, random state and the position in the data are not changed.

    Processes do not communicate: each may call it alone.

    Args:
        trainer: a trainer before its first step, or between two steps.
        seconds: approximate duration of the measurement. The first pass is a warm-up that is not
            counted, unless it alone takes longer than this.
        passes: largest number of passes that are counted.
    """
    batch, micros = trainer.loader.first(trainer.samples), [micro_of_most_work(trainer)]
    reads, device = trainer.loader.num_workers == 0, trainer.accelerator.device
    if trainer.diffusion.self_condition:  # in half of the micro-batches, which take longer
        micros.append(_micro(trainer, False))

    def gradients() -> None:
        for micro in micros:
            trainer.gradient(trainer.loader.first(trainer.samples) if reads else batch, micro)

    with restored(trainer):
        one = median_seconds(gradients, device, seconds=seconds, passes=passes) / len(micros)
        return one * trainer.accumulate + _update(trainer, seconds / 4, passes)


def micro_of_most_work(trainer: Trainer) -> int:
    """Return the index of a micro-batch of this step with the most operations and memory."""
    return _micro(trainer, True) if trainer.diffusion.self_condition else 0


def _micro(trainer: Trainer, conditioned: bool) -> int:
    """Return the index of a micro-batch that is, or is not, self-conditioned at this step."""
    return next(each for each in count() if trainer.conditions_itself(each) == conditioned)


@contextmanager
def in_eager_mode(trainer: Trainer) -> Iterator[None]:
    """Context manager that runs the network without torch.compile."""
    if not trainer.compile:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def median_seconds(
    work: Callable[[], object], device: torch.device, *, seconds: float, passes: int = MAX_PASSES
) -> float:
    """Return the median duration of a function in seconds.

    See :func:`seconds_per_step` for the first pass.

    Args:
        work: the function to repeat.
        device: a GPU is synchronized before and after each call.
        seconds: approximate duration of the measurement.
        passes: largest number of calls that are counted.
    """
    durations: list[float] = []
    while len(durations) <= passes and (not durations or sum(durations) < seconds):
        _synchronize(device)
        began = time.perf_counter()
        work()
        _synchronize(device)
        durations.append(time.perf_counter() - began)
    return statistics.median(durations[1:] or durations)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def restored(trainer: Trainer) -> Iterator[None]:
    """Context manager that restores the random state, and buffers and mode of the network."""
    network, device = trainer.network, trainer.accelerator.device
    training, devices = network.training, [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), buffers_restored(network):
        network.train()
        try:
            yield
        finally:
            network.train(training)


def _update(trainer: Trainer, seconds: float, passes: int) -> float:
    """Return the duration of clipping, optimizer and average in seconds, on copies of the weights.

    For a large network only a part is copied, and the duration is scaled to all parameters.
    """
    copies: list[nn.Parameter] = []
    total = sum(parameter.numel() for parameter in trainer.network.parameters())
    for parameter in trainer.network.parameters():
        if sum(each.numel() for each in copies) < _MAX_COPIED:
            copies.append(nn.Parameter(parameter.detach().clone()))
            copies[-1].grad = torch.zeros_like(parameter)
    if not copies:
        return 0.0
    optimizer = AdamW(copies, fused=True)
    average = [each.detach().clone() for each in copies]

    def update() -> None:
        nn.utils.clip_grad_norm_(copies, 1.0)
        optimizer.step()
        for _ in range(1 + len(trainer.posthoc)):
            torch._foreach_lerp_(average, [each.detach() for each in copies], 0.5)

    device, share = trainer.accelerator.device, sum(each.numel() for each in copies) / total
    return median_seconds(update, device, seconds=seconds, passes=passes) / share
