"""Suites that time training steps."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch

from ddpm import models
from ddpm.data import Digits, Folder
from ddpm.diffusion import GaussianDiffusion, PredNoise, linear
from ddpm.training.trainer import TrainerOptions
from scripts.benchmarks import networks, peers
from scripts.benchmarks.images import Memory, write_images
from scripts.benchmarks.tables import table
from scripts.benchmarks.timing import (
    Candidate,
    Machine,
    Ratio,
    has_fast_bf16,
    interleave,
    peak_line,
    peaks,
    ratio,
)
from scripts.gpu.speed import process as iddpm_process

OURS = "ours"
PRECISIONS = {"fp32": "no", "bf16": "bf16"}  # bf16 last: the peers read the latest accelerator


@dataclass(frozen=True)
class Loop:
    """A training loop to be timed.

    Attributes:
        who: a peer, or :data:`OURS`.
        precision: ``fp32`` or ``bf16``.
        take: runs a number of steps.
        note: difference from the other loops; one without is compared with ours.
    """

    who: str
    precision: str
    take: peers.Take
    note: str = ""

    @property
    def name(self) -> str:
        """Name in the tables."""
        return f"{self.who}, {self.precision}" + (f", {self.note}" if self.note else "")


@dataclass(frozen=True)
class Work:
    """Description of the steps.

    Attributes:
        flops: per image.
        batch: images per step.
        steps: per visit.
        facts: sentences about both sides.
    """

    flops: float
    batch: int
    steps: int
    facts: str


def shipped_precision(seconds: dict[str, list[float]]) -> str:
    """Return our precision without options; of an automatic choice, the faster one.

    Args:
        seconds: per step, by the name of the loop.
    """
    default = str(TrainerOptions().precision)
    if default == "auto":
        timed = [p for p in PRECISIONS if f"{OURS}, {p}" in seconds]
        return min(timed, key=lambda p: statistics.median(seconds[f"{OURS}, {p}"]))
    return next(name for name, value in PRECISIONS.items() if value == default)


def ratios(
    peer: str, seconds: dict[str, list[float]], shipped: str = "fp32"
) -> list[tuple[str, Ratio]]:
    """Return the comparisons of a peer's loops with ours.

    Args:
        peer: its name.
        seconds: per step, by the name of the loop.
        shipped: the peer's loop at its defaults, the rest of its name.
    """
    ours, rows = shipped_precision(seconds), []
    timed = [name for name in PRECISIONS if f"{OURS}, {name}" in seconds]
    for precision in timed:
        pair = seconds[f"{peer}, {precision}"], seconds[f"{OURS}, {precision}"]
        rows.append((f"same precision, {precision}", ratio(*pair)))
    pair = seconds[f"{peer}, {shipped}"], seconds[f"{OURS}, {ours}"]
    rows.append((f"as shipped: {shipped} against our {ours}", ratio(*pair)))
    if "bf16" in timed:
        pair = seconds[f"{peer}, fp32"], seconds[f"{OURS}, bf16"]
        rows.append(("its fp32 against our bf16", ratio(*pair)))
    return rows


def measure(loops: Sequence[Loop], work: Work, rounds: int, shipped: str = "fp32") -> str:
    """Time the loops and return the tables; the peer is that of the first loop."""
    machine, best = Machine(), peaks()
    loops = [each for each in loops if each.precision == "fp32" or has_fast_bf16(best)]
    candidates = [Candidate(each.name, each.take, work.steps) for each in loops]
    seconds = interleave(candidates, rounds, machine)
    rows = []
    for each in loops:
        times = seconds[each.name]
        middle = statistics.median(times)
        reached = work.flops * work.batch / middle / 1e9 / best[f"convolution {each.precision}"]
        span = f"{1000 * middle:.0f} [{1000 * min(times):.0f}..{1000 * max(times):.0f}]"
        rows.append([each.name, span, f"{work.batch / middle:.1f}", f"{reached:.0%}"])
    header = ["loop", "ms per step", "images/s", "of the convolution peak"]
    compared = [[name, str(value)] for name, value in ratios(loops[0].who, seconds, shipped)]
    return "\n\n".join(
        (
            work.facts,
            table(header, rows),
            table([f"speed-up over {loops[0].who}", "median [min..max]"], compared),
            f"{_omission(best)}{peak_line(best)} {machine.verdict()}",
        )
    )


def _omission(best: dict[str, float]) -> str:
    share = best["convolution bf16"] / best["convolution fp32"]
    line = f"bf16 is left out: this processor convolves at {share:.0%} of the speed of fp32. "
    return "" if has_fast_bf16(best) else line


def train_iddpm(rounds: int) -> str:
    """Return the tables of training at 32x32, batch 16, in improved-diffusion's style."""
    return _improved(32, 16, 2, rounds)


def train_small(rounds: int) -> str:
    """Return the tables of training at 16x16, batch 4, in improved-diffusion's style."""
    return _improved(16, 4, 8, rounds)


def _improved(size: int, batch: int, steps: int, rounds: int) -> str:
    pair, process = networks.improved(size), iddpm_process()
    data, loops = Memory(1024, size), []
    for name in PRECISIONS:
        copy = deepcopy(pair.theirs)
        take = peers.improved_loop(copy, process, data, batch, name == "bf16")
        loops.append(Loop("improved-diffusion style", name, take))
    for name, precision in PRECISIONS.items():
        take = peers.our_loop(deepcopy(pair.ours), process, data, precision, batch_size=batch)
        loops.append(Loop(OURS, name, take))
    facts = (
        f"IDDPM U-Net, 32 channels at levels (1, 2, 2), {size}x{size}, batch {batch}, hybrid loss: "
        f"{pair.facts} The peer is a stand-in for the package, with its batches in memory. "
        + networks.kernels(pair.ours, size, batch)
    )
    return measure(loops, Work(pair.operations, batch, steps, facts), rounds)


def train_unet(rounds: int) -> str:
    """Return the tables of training beside denoising-diffusion-pytorch's Trainer."""
    size, batch = 32, 16
    pair = networks.package(size)
    facts = (
        f"U-Net of that package, dim 32 at levels (1, 2, 4), {size}x{size}, batch {batch}, from a "
        f"folder of PNG files: {pair.facts} The peer is the package's own Trainer, with its data "
        "workers; it averages the weights every 10 steps, ours in each. "
        + networks.kernels(pair.ours, size, batch)
    )
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder) / "images", 2048, size, "png")
        data, loops = Folder(path=str(images), flip=True), []
        for name in PRECISIONS:
            take = peers.package_loop(deepcopy(pair.theirs), images, size, batch, name == "bf16")
            loops.append(Loop("denoising-diffusion-pytorch", name, take))
        for name, precision in PRECISIONS.items():
            process, net = peers.unet_process(), deepcopy(pair.ours)
            take = peers.our_loop(net, process, data, precision, batch_size=batch)
            loops.append(Loop(OURS, name, take))
        return measure(loops, Work(pair.operations, batch, 2, facts), rounds)


def train_diffusers(rounds: int) -> str:
    """Return the tables of training beside diffusers' U-Net and its example's loop."""
    size, batch = 32, 16
    pair = networks.diffusers(size)
    facts = (
        "`UNet2DModel` of 32, 64 and 64 channels with attention at the lower two levels, its other "
        "options at their defaults, and our `iddpm_unet` imported from it, predicting the noise, "
        f"{size}x{size}, batch {batch}, from a folder of PNG files: {pair.facts} The loop of the "
        "peer is written after its example for unconditional training; averaging is off there by "
        "default. " + networks.kernels(pair.ours, size, batch)
    )
    variants = [("fp32", True, ""), ("fp32", False, "without average"), ("bf16", True, "")]
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder) / "images", 2048, size, "png")
        data, loops = Folder(path=str(images), flip=True), []
        for name, ema, note in variants:
            loop = peers.DiffusersLoop(deepcopy(pair.theirs), images, batch, name == "bf16", ema)
            loops.append(Loop("diffusers", name, loop.take, note))
        for name, precision in PRECISIONS.items():
            process = GaussianDiffusion(linear(num_steps=1000), PredNoise())
            take = peers.our_loop(deepcopy(pair.ours), process, data, precision, batch_size=batch)
            loops.append(Loop(OURS, name, take))
        work = Work(pair.operations, batch, 2, facts)
        return measure(loops, work, rounds, "fp32, without average")


def compiled(rounds: int) -> str:
    """Return the tables of ``trainer.compile``, with the steps after which it pays."""
    size, batch, machine, rows = 32, 16, Machine(), []
    data, process, network = Memory(1024, size), iddpm_process(), networks.iddpm_unet(size)
    best, seconds = peaks(), {}
    for name, precision in PRECISIONS.items():
        if name == "bf16" and not has_fast_bf16(best):
            continue
        takes, options = {}, {"batch_size": batch}
        for compile in (False, True):
            net = deepcopy(network)
            takes[compile] = peers.our_loop(
                net, process, data, precision, compile=compile, **options
            )
        began = time.perf_counter()
        takes[True](1)
        first = time.perf_counter() - began
        candidates = [
            Candidate(f"{name}, eager", takes[False], 2),
            Candidate(f"{name}, compiled", takes[True], 2),
        ]
        seconds.update(interleave(candidates, rounds, machine))
        eager, fast = (seconds[each.name] for each in candidates)
        gained = statistics.median(eager) - statistics.median(fast)
        pays = f"{first / gained:,.0f}" if gained > 0 else "never"
        milliseconds = [f"{1000 * statistics.median(each):.0f}" for each in (eager, fast)]
        rows.append([name, *milliseconds, str(ratio(eager, fast)), f"{first:.0f}", pays])
    header = ["precision", "eager, ms per step", "compiled", "speed-up", "first step, s"]
    facts = (
        f"Our loop of suite `train_iddpm` ({size}x{size}, batch {batch}), `trainer.compile=true`."
    )
    return "\n\n".join(
        (facts, table([*header, "pays after steps"], rows), f"{_omission(best)}{machine.verdict()}")
    )


def batch_parts(rounds: int) -> str:
    """Return the table of ``trainer.batch_parts``: whole micro-batches, and a part per thread."""
    size, count, machine, rows = 32, torch.get_num_threads(), Machine(), []
    digits, images = Digits(), Memory(1024, size)
    small = models.UNet(1, 1, (8, 8), dim=32, dim_mults=(1, 2))
    works = {
        "`train_iddpm`": (networks.improved(size).ours, iddpm_process(), images, 16, 2),
        "`train_unet`": (networks.package(size).ours, peers.unet_process(), images, 16, 2),
        "`train_diffusers`": (networks.diffusers(size).ours, peers.unet_process(), images, 16, 2),
        "U-Net of the digits, batch 64": (small, peers.unet_process(), digits, 64, 6),
    }
    for name, (network, process, data, batch, steps) in works.items():
        candidates = []
        for parts in (1, count):
            take = peers.our_loop(
                deepcopy(network), process, data, "no", batch_size=batch, batch_parts=parts
            )
            candidates.append(Candidate(str(parts), take, steps))
        whole, divided = interleave(candidates, rounds, machine).values()
        milliseconds = [f"{1000 * statistics.median(each):.0f}" for each in (whole, divided)]
        rows.append([name, *milliseconds, str(ratio(whole, divided))])
    facts = (
        "Our loop with the networks of the named suites, batch 16, from memory: "
        f"`trainer.batch_parts=1` beside `{count}`, which `auto` is with {count} threads."
    )
    header = ["network", "whole, ms per step", f"{count} parts", "speed-up"]
    return "\n\n".join((facts, table(header, rows), machine.verdict()))
