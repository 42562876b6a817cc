"""What ``ddpm-evaluate`` measures: fidelity of samples, likelihood of data, losses."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ddpm import fidelity
from ddpm.cli import app
from ddpm.cli.drawing import on_step
from ddpm.evaluation import bits_per_dimension
from ddpm.fidelity.report import BoundCurve, Metric
from ddpm.generation import SampleNoise, Source, generate
from ddpm.progress import progress
from ddpm.samplers.base import respaced
from ddpm.seeding import For, mix

FIDELITY = ("fid", "kid", "isc", "prc")
LIKELIHOOD = ("bpd", "loss")
_UPWARDS = ("isc", "precision", "recall", "f_score")  # more is better


@dataclass
class Findings:
    """What was measured so far.

    Attributes:
        metrics: name, value, error and what they depend on.
        warnings: a line each.
        bound: of bpd.
    """

    metrics: list[Metric] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    bound: BoundCurve | None = None

    def add(self, name: str, value: float, error: float | None, told: dict[str, Any]) -> None:
        """Take one number."""
        upwards = name.startswith(_UPWARDS)
        self.metrics.append(Metric(name, value, error, told, higher_is_better=upwards))


def drawn(
    source: Source,
    extractor: fidelity.Extractor,
    accelerator: Accelerator,
    *,
    count: int,
    batch_size: int,
    seed: int,
    classes: Sequence[int] | None,
) -> tuple[fidelity.Features, Tensor]:
    """Features of samples of a model, of all processes, and the first raw samples of all."""
    rank, world = accelerator.process_index, accelerator.num_processes
    mine = fidelity.share(count, batch_size, rank, world)
    calls = -(-len(mine) // batch_size) * source.calls()
    _estimate(accelerator, source, calls, batch_size, count)
    parts, first = [], []
    with progress(calls, "sampling", "call", shown=accelerator.is_main_process) as bar:
        start = 0
        batches = generate(
            source, mine, seed=seed, batch_size=batch_size, classes=classes,
            on_step=on_step(bar),
        )  # fmt: skip
        for raw, _ in batches:
            indices = list(mine[start : start + len(raw)])
            parts.append(fidelity.of_batch(extractor, raw.to(accelerator.device), indices))
            if indices[0] < 64:
                first.append(raw)
            start += len(raw)
    everyone = gather_object([(fidelity.joined(parts), first)])
    raw = torch.cat([each for _, found in everyone for each in found])
    return fidelity.joined([features for features, _ in everyone], count), raw[:64]


def _estimate(
    accelerator: Accelerator, source: Source, calls: int, batch_size: int, count: int
) -> None:
    """Say how long it will take, after one call of the network that counts for nothing."""
    noise = SampleNoise(range(batch_size)).draw(source.codec.shape).to(source.device)
    last = source.diffusion.num_steps - 1
    y = None
    took = []
    if calls < 200:
        return
    for _ in range(2):
        began = time.perf_counter()
        with torch.inference_mode(), source.autocast():
            float(source.denoiser(noise, last, y=y).x0.sum())
        took.append(time.perf_counter() - began)
    seconds = min(took) * calls
    each = source.calls()
    app.say(
        accelerator,
        f"{count:,} samples of {each} steps: about {_duration(seconds)} on this machine; "
        f"num_samples={max(count // 10, 2)} takes {_duration(seconds / 10)}",
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def of_images(
    extractor: fidelity.Extractor,
    images: fidelity.Images,
    accelerator: Accelerator,
    count: int,
    batch_size: int,
    what: str,
) -> fidelity.Features:
    """Features of the first ``count`` images, of all processes."""
    rank, world = accelerator.process_index, accelerator.num_processes
    mine = fidelity.share(count, batch_size, rank, world)
    with progress(len(mine), what, "img", shown=accelerator.is_main_process) as bar:
        found = fidelity.extract(
            extractor, images, mine, batch_size=batch_size, device=accelerator.device,
            on_batch=bar.update,
        )  # fmt: skip
    return fidelity.joined(gather_object([found]), count)


def scores(
    metrics: Sequence[str],
    samples: fidelity.Features,
    reference: fidelity.Reference | None,
    told: dict[str, Any],
    findings: Findings,
) -> None:
    """Take the fidelity metrics that are asked for."""
    for metric in metrics:
        if metric == "isc":
            score = fidelity.isc(samples.logits)
        else:
            assert reference is not None
            theirs = reference.features
            if metric == "fid":
                score = fidelity.fid(samples.features, reference.statistics)
            else:
                assert theirs is not None
                score = {"kid": fidelity.kid, "prc": fidelity.prc}[metric](samples.features, theirs)
        findings.warnings.extend(score.warnings)
        depends = {**told, **({"settings": score.settings} if score.settings else {})}
        if reference is not None and metric != "isc":
            depends |= reference.provenance
        for name, value in score.values.items():
            if not name.endswith("_std"):
                error = score.values.get(f"{name}_std")
                findings.add(fidelity.name_of(name, len(samples)), value, error, depends)


def likelihood(
    source: Source,
    x0: Tensor,
    labels: Tensor | None,
    accelerator: Accelerator,
    *,
    seed: int,
    batch_size: int,
    steps: int | None,
    told: dict[str, Any],
    findings: Findings,
) -> BoundCurve:
    """Bits per dimension of clean data (N, ...), and its terms over t."""
    total = source.diffusion.num_steps
    kept = None if steps is None else respaced(total, (steps,))
    mine = _indices(accelerator, len(x0))
    terms, priors = [], []
    calls = -(-len(mine) // batch_size) * (total if kept is None else len(kept))
    with progress(calls, "likelihood", "term", shown=accelerator.is_main_process) as bar:
        for batch in _batches(mine, batch_size):
            noise = SampleNoise([mix(seed, For.SAMPLE, index) for index in batch])
            with source.autocast():
                found = bits_per_dimension(
                    source.denoiser,
                    x0[batch].to(source.device),
                    randn_like=noise.like,
                    steps=kept,
                    y=None if labels is None else labels[batch].to(source.device),
                    on_step=bar.update,
                )
            terms.append(found.terms)
            priors.append(found.prior)
    every = _gathered(accelerator, mine, torch.cat(terms), len(x0)).double()
    prior = _gathered(accelerator, mine, torch.cat(priors), len(x0)).double()
    bits, root = every.sum(1) + prior, len(x0) ** 0.5
    findings.add("bpd", float(bits.mean()), float(bits.std() / root), told)
    visited = list(range(total)) if kept is None else kept
    spread = (every.std(0) / root).tolist()
    curve = BoundCurve(visited, every.mean(0).tolist(), spread, float(prior.mean()))
    findings.bound = curve
    return curve


def losses(
    loss: Callable[..., Tensor],
    num_steps: int,
    x0: Tensor,
    labels: Tensor | None,
    accelerator: Accelerator,
    *,
    seed: int,
    batch_size: int,
    told: dict[str, Any],
    findings: Findings,
) -> None:
    """The training loss of clean data, each at one step t of each quarter, noise by index."""
    mine, found = _indices(accelerator, len(x0)), []
    calls = -(-len(mine) // batch_size) * 4
    with progress(calls, "loss", "call", shown=accelerator.is_main_process) as bar:
        for batch in _batches(mine, batch_size):
            noise = SampleNoise([mix(seed, For.SAMPLE, index) for index in batch])
            columns = []
            for quarter in range(4):
                low, high = num_steps * quarter // 4, max(num_steps * (quarter + 1) // 4, 1)
                span = max(high - low, 1)
                t = torch.tensor([low + mix(seed, For.STEP, i, quarter) % span for i in batch])
                clean = x0[batch].to(accelerator.device)
                given = {} if labels is None else {"y": labels[batch].to(accelerator.device)}
                with torch.inference_mode(), accelerator.autocast():
                    each = loss(clean, t.to(clean.device), noise.like(clean), **given)
                columns.append(each.float().cpu())
                bar.update()
            found.append(torch.stack(columns, dim=1))
    every = _gathered(accelerator, mine, torch.cat(found), len(x0)).double()
    root = len(x0) ** 0.5
    named = {"loss": every.mean(1), **{f"loss_q{q}": every[:, q] for q in range(4)}}
    for name, values in named.items():
        findings.add(name, float(values.mean()), float(values.std() / root), told)


def _indices(accelerator: Accelerator, count: int) -> range:
    rank, world = accelerator.process_index, accelerator.num_processes
    return range(count * rank // world, count * (rank + 1) // world)


def _batches(mine: range, batch_size: int) -> list[list[int]]:
    return [list(mine[at : at + batch_size]) for at in range(0, len(mine), batch_size)]


def _gathered(accelerator: Accelerator, mine: range, values: Tensor, count: int) -> Tensor:
    """Rows of all processes, in the order of the data."""
    parts = gather_object([(mine.start, values)])
    whole = torch.cat([each for _, each in sorted(parts, key=lambda part: part[0])])
    assert len(whole) == count
    return whole


def save_bound(folder: Path, curve: BoundCurve) -> None:
    """``bound.npz`` and ``bound.png``: the terms over t."""
    import numpy as np
    from matplotlib.figure import Figure

    np.savez(
        folder / "bound.npz", t=curve.steps, bits=curve.terms, error=curve.errors, prior=curve.prior
    )
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve.steps, np.maximum(curve.terms, 1e-9), lw=1.2)
    axes.set(xlabel="t", ylabel="bits per dimension", yscale="log", title="terms of the bound")
    axes.grid(alpha=0.3)
    figure.savefig(folder / "bound.png", dpi=120)
