"""Choice of precision and compilation by a timed trial, in trainings long enough to gain from it.

Nothing is chosen whose gradients have not been compared with those of the alternative. The main
process decides for all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ddpm.distributed.consensus import broadcast
from ddpm.distributed.devices import has_bf16_instructions
from ddpm.distributed.trials import (
    FASTER,
    Failure,
    attempt,
    relative_distance,
    set_calls,
)
from ddpm.training.trainer import Trainer
from ddpm.training.trial import restored, seconds_per_step

MIN_STEPS = 200  # of a run; shorter ones are not even timed
# Seconds of training that have to remain: a trial takes a small part of them.
WORTH_BF16 = 60.0
WORTH_COMPILING = 3600.0  # on a CPU, compiling a network takes minutes
_SECONDS = 1.0  # per measurement
_CLOSE_IN_HALF, _CLOSE = 0.1, 1e-3  # relative distance of gradients, in half precision or not

# Returns the remaining seconds of training, given the seconds per step.
Left = Callable[[float], float]


class Tried(NamedTuple):
    """Result of a trial.

    Attributes:
        use: True if the alternative is better.
        seconds: duration of a step with the choice.
        line: the choice and its reason.
    """

    use: bool
    seconds: float
    line: str


def tries_bf16(trainer: Trainer) -> bool:
    """Return True if only a trial can choose the precision: with ``auto`` on some CPUs."""
    automatic = trainer.options.precision == "auto" and trainer.accelerator.device.type == "cpu"
    return automatic and broadcast(trainer.accelerator, has_bf16_instructions())


def try_bf16(trainer: Trainer, left: Left, seconds: float | None = None) -> Tried | None:
    """Compare bf16 with float32, which a trainer uses; None for a run that is too short.

    Args:
        trainer: a trainer in float32 before its first step; nothing is changed.
        left: see :data:`Left`.
        seconds: duration of a step in float32, if it is known.
    """
    plain = _worthwhile(trainer, left, WORTH_BF16, seconds)
    if plain is None:
        return None
    kind = trainer.accelerator.device.type
    with torch.autocast(kind, torch.bfloat16, cache_enabled=False):
        fast, gradient = seconds_per_step(trainer, seconds=_SECONDS), gradients(trainer)
    difference = relative_distance(gradient, gradients(trainer))
    tried = _compared("bf16", "float32", plain, fast, difference, _CLOSE_IN_HALF)
    return broadcast(trainer.accelerator, tried)


def try_compiling(trainer: Trainer, left: Left, seconds: float | None = None) -> Tried | None:
    """Compile the network of a trainer if that shortens the run; None for one that is too short.

    It is compiled on all processes or on none, see :func:`ddpm.distributed.trials.attempt`.

    Args:
        trainer: a trainer without compilation before its first step.
        left: see :data:`Left`.
        seconds: duration of a step, if it is known.
    """
    plain = _worthwhile(trainer, left, WORTH_COMPILING, seconds)
    if plain is None:
        return None
    expected, parts = gradients(trainer), trainer.batch_parts
    trainer.batch_parts = 1  # a compiled network shares each operation among the threads

    def trial() -> tuple[float, float, float]:
        began = time.perf_counter()
        trainer.network.compile()
        difference = relative_distance(gradients(trainer), expected)
        compiling = time.perf_counter() - began
        return compiling, seconds_per_step(trainer, seconds=_SECONDS), difference

    result = attempt(trainer.accelerator, trial)
    if isinstance(result, Failure):
        tried = Tried(False, plain, f"compile: false ({result.reason})")
    else:
        compiling, fast, difference = result
        gained = left(plain) * (1 - fast / plain)
        limit = _CLOSE if trainer.accelerator.mixed_precision == "no" else _CLOSE_IN_HALF
        times = compiling, gained
        tried = _compared("compile", "false", plain, fast, difference, limit, times)
    tried = broadcast(trainer.accelerator, tried)
    if not tried.use:
        set_calls(trainer.network, None)
        trainer.batch_parts = parts
    trainer.compile = tried.use
    return tried


def _compared(
    choice: Literal["bf16", "compile"],
    other: str,
    plain: float,
    fast: float,
    difference: float,
    limit: float,
    compiling: tuple[float, float] | None = None,
) -> Tried:
    """Return the comparison of a choice with what it would replace.

    Args:
        choice: the faster arithmetic.
        other: what it would replace.
        plain: seconds per step without the choice.
        fast: seconds per step with it.
        difference: relative distance of their gradients.
        limit: largest accepted difference.
        compiling: seconds that compiling takes, and that it saves in the rest of the run.
    """
    is_close, is_faster = difference <= limit, fast <= FASTER * plain
    pays = compiling is None or compiling[1] > compiling[0]
    use = is_close and is_faster and pays
    option, name = ("precision", "bf16") if choice == "bf16" else ("compile", "true")
    value = name if use else {"float32": "no"}.get(other, other)
    times = f"{fast * 1000:.3g} ms per step against {plain * 1000:.3g} ms with {other}"
    shown = times if use else f"{plain * 1000:.3g} ms per step, {fast * 1000:.3g} ms with {name}"
    if compiling is not None:
        shown += f"; compiling takes {compiling[0]:.0f} s and saves {max(compiling[1], 0.0):.0f} s"
    shown += f"; gradients differ by {difference:.2g}"
    return Tried(use, fast if use else plain, f"{option}: {value} ({shown})")


def gradients(trainer: Trainer) -> list[Tensor]:
    """Return the gradient of a micro-batch of the next step, without an effect on the training."""
    with restored(trainer):
        batch = trainer.loader.first(trainer.samples)
        return [each for each in trainer.gradient(batch) if each is not None]


def _worthwhile(trainer: Trainer, left: Left, worth: float, seconds: float | None) -> float | None:
    """Return the seconds per step, or None if less than ``worth`` seconds of training remain."""
    one = seconds_per_step(trainer, seconds=0.0) if seconds is None else seconds
    if not broadcast(trainer.accelerator, left(one) >= worth):
        return None
    return seconds_per_step(trainer, seconds=_SECONDS) if seconds is None else seconds
