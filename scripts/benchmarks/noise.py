"""Suite that times the noise of stochastic sampler steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ddpm.noise import SampleNoise, counter_normal
from ddpm.seeding import mix_array
from scripts.benchmarks.sampling import repeat
from scripts.benchmarks.tables import table
from scripts.benchmarks.timing import Candidate, Machine, interleave, ratio

SHAPES = ((64, 3, 256, 256), (256, 3, 32, 32), (16, 3, 32, 32))
NUMBERS = 4_000_000  # per visit


def noise(rounds: int) -> str:
    """Return the table of noise per sample beside a call of ``torch.randn``."""
    machine, rows = Machine(), []
    for shape in SHAPES:
        x, keys = torch.empty(shape), mix_array(np.arange(shape[0]), 0)
        per_sample, units = SampleNoise(range(shape[0])), max(NUMBERS // math.prod(shape), 1)
        draws: dict[str, Callable[[], Tensor]] = {
            "randn": lambda shape=shape: torch.randn(shape),
            "ours": lambda x=x, per_sample=per_sample: per_sample.like(x),
            "counters": lambda x=x, keys=keys: counter_normal(keys, tuple(x.shape[1:]), "cpu"),
        }
        candidates = [
            Candidate(name, lambda count, draw=draw: repeat(draw, count), units)
            for name, draw in draws.items()
        ]
        seconds = interleave(candidates, rounds, machine)
        once = seconds["randn"]
        rows.append(
            [
                "x".join(map(str, shape)),
                *(f"{1000 * statistics.median(seconds[name]):.2f}" for name in draws),
                *(str(ratio(seconds[name], once)) for name in ("ours", "counters")),
            ]
        )
    header = ["batch", "torch.randn, ms", "ours", "by counters", "ratio", "ratio by counters"]
    facts = (
        "Noise of a step, a function of seed, sample and step, relative to one call of "
        "`torch.randn`, which draws the batch in one thread. On a CPU ours has one generator per "
        "sample, and threads share large samples; the one by counters is that of GPUs, here on the "
        "CPU."
    )
    return "\n\n".join((facts, table(header, rows), machine.verdict()))
