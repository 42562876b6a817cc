"""Suite that times sampling with the choices of precision=auto and compile=true."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import torch
from torch import Tensor

from ddpm.arithmetic import Arithmetic
from ddpm.distributed.devices import has_bf16_instructions
from scripts.benchmarks.sampling import (
    BATCH,
    SIZE,
    STEPS,
    Pair,
    diffusers,
    improved,
    package,
    repeat,
)
from scripts.benchmarks.tables import table
from scripts.benchmarks.timing import Candidate, Machine, interleave, peak_line, peaks, ratio

LARGEST = {"no": 2.0, "bf16": 8.0}  # root mean square of differences, in grey levels


def sample_auto(rounds: int) -> str:
    """Return the table of DDIM with each peer's network: the peer in float32, ours compiled."""
    machine, best, rows = Machine(), peaks(), []
    precision = "bf16" if has_bf16_instructions() else "no"
    for each in (improved(), package(), diffusers()):
        expected = each.ours()
        autocast = Arithmetic(each.pipeline.device, precision)
        pair = replace(each, pipeline=replace(each.pipeline, autocast=autocast))
        took = compile_network(pair)
        difference = grey_levels(pair.ours(), expected)
        if not difference <= LARGEST[precision]:
            raise RuntimeError(f"{pair.peer}: compiled samples differ by {difference:.1f} levels")
        rows.append([pair.peer, *_measured(pair, rounds, machine, took), f"{difference:.2f}"])
    header = ["peer", "its ms per step", "ours eager", "ours compiled", "speed-up over the peer"]
    header += ["over ours eager", "compilation, s", "steps that pay it back", "grey levels"]
    facts = (
        f"DDIM in {STEPS} steps as in `sample_eager`, batch {BATCH}, 3x{SIZE}x{SIZE}; the peers in "
        f"float32 without compilation, ours with `precision={precision}`, which `auto` is on this "
        "processor, and `compile=true`, which `auto` is in work that pays back. Compilation "
        "is timed apart. The last column is the root mean square by which our samples differ from "
        "eager ones in float32."
    )
    return "\n\n".join((facts, table(header, rows), f"{peak_line(best)} {machine.verdict()}"))


def compile_network(pair: Pair) -> float:
    """Compile our network and return the seconds of the first batch less those of a second one."""
    pair.network.compile(dynamic=False)
    durations = []
    for _ in range(2):
        began = time.perf_counter()
        pair.ours()
        durations.append(time.perf_counter() - began)
    return durations[0] - durations[1]


def grey_levels(a: Tensor, b: Tensor) -> float:
    """Return the root mean square of the difference of uint8 images."""
    return float((a.double() - b.double()).square().mean().sqrt())


def eager(pair: Pair) -> Tensor:
    """Draw our batch without the compiled network."""
    with torch.compiler.set_stance("force_eager"):
        return pair.ours()


def _measured(pair: Pair, rounds: int, machine: Machine, took: float) -> list[str]:
    """Return the cells of times, ratios, and of the steps after which compilation has paid back."""
    works = {"theirs": pair.theirs, "eager": lambda: eager(pair), "compiled": pair.ours}
    candidates = [
        Candidate(name, lambda count, work=work: repeat(work, count), 1)
        for name, work in works.items()
    ]
    seconds = interleave(candidates, rounds, machine)
    times = {name: statistics.median(each) / STEPS for name, each in seconds.items()}
    gained = times["eager"] - times["compiled"]
    ratios = [ratio(seconds[name], seconds["compiled"]) for name in ("theirs", "eager")]
    return [
        *(f"{1000 * each:.1f}" for each in times.values()),
        *map(str, ratios),
        f"{took:.0f}",
        f"{took / gained:,.0f}" if gained > 0 else "never",
    ]
