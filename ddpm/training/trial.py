"""The duration of a training step, measured without an effect on the training."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

import torch
from torch import nn

from ddpm.training.buffers import buffers_restored
from ddpm.training.trainer import Trainer

MOST_PASSES = 10  # that are counted
_COPIED = 4_000_000  # numbers: more than caches hold, and little memory


def seconds_per_step(trainer: Trainer, *, seconds: float = 1.0) -> float:
    """Return the duration of an optimizer step, the median of a few on a real batch.

    It consists of the forward and backward passes of all micro-batches, reading the data where no
    other process does, and the arithmetic of the optimizer and of the average. Exchanges between
    processes, logs, previews and checkpoints are not in it. Weights, gradients, optimizer, average,
    buffers, the random state and the position in the data are what they were.

    Every process may call it by itself: nothing is exchanged.

    Args:
        trainer: before its first step, or between two steps.
        seconds: about how long to measure. The first pass is a warm-up that is not counted; if it
            takes longer than this by itself, it is the only one, and counts.
    """
    batch, micros = trainer.loader.first(trainer.samples), [0]
    reads, device = trainer.loader.num_workers == 0, trainer.accelerator.device
    if trainer.diffusion.self_condition:  # which takes longer, in half of the micro-batches
        micros = [_micro(trainer, True), _micro(trainer, False)]

    def gradients() -> None:
        for micro in micros:
            trainer.gradient(trainer.loader.first(trainer.samples) if reads else batch, micro)

    with _restored(trainer):
        one = median_seconds(gradients, device, seconds=seconds) / len(micros)
        return one * trainer.accumulate + _update(trainer, seconds=seconds / 4)


def _micro(trainer: Trainer, conditioned: bool) -> int:
    """Return the number of a micro-batch that is, or is not, self-conditioned at this step."""
    return next(each for each in count() if trainer.conditions_itself(each) == conditioned)


@contextmanager
def in_eager_mode(trainer: Trainer) -> Iterator[None]:
    """Run the network inside without torch.compile, also if the trainer compiles it."""
    if not trainer.options.compile:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def median_seconds(work: Callable[[], object], device: torch.device, *, seconds: float) -> float:
    """Return the median duration of some work, repeated for about so many seconds.

    See :func:`seconds_per_step` for the first time.

    Args:
        work: what to repeat.
        device: a GPU is waited for before and after.
        seconds: about how long to measure.
    """
    taken: list[float] = []
    while len(taken) <= MOST_PASSES and (not taken or sum(taken) < seconds):
        _synchronize(device)
        began = time.perf_counter()
        work()
        _synchronize(device)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:] or taken)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _restored(trainer: Trainer) -> Iterator[None]:
    """Undo what passes inside do to the random state, the buffers and the mode of the network."""
    network, device = trainer.network, trainer.accelerator.device
    training, devices = network.training, [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), buffers_restored(network):
        network.train()
        try:
            yield
        finally:
            network.train(training)


def _update(trainer: Trainer, *, seconds: float) -> float:
    """Return the duration of clipping, the optimizer and the average, on copies of weights.

    Of a large network a part is copied, and the rest is assumed to take as long per number.
    """
    copies: list[nn.Parameter] = []
    total = sum(parameter.numel() for parameter in trainer.network.parameters())
    for parameter in trainer.network.parameters():
        if sum(each.numel() for each in copies) < _COPIED:
            copies.append(nn.Parameter(parameter.detach().clone()))
            copies[-1].grad = torch.zeros_like(parameter)
    if not copies:
        return 0.0
    optimizer = torch.optim.AdamW(copies, fused=True)
    average = [each.detach().clone() for each in copies]

    def update() -> None:
        nn.utils.clip_grad_norm_(copies, 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, [each.detach() for each in copies], 0.5)

    device, share = trainer.accelerator.device, sum(each.numel() for each in copies) / total
    return median_seconds(update, device, seconds=seconds) / share
