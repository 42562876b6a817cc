"""Variational bound and denoising loss of clean data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm.console import progress
from ddpm.diffusion import DiffusionLoss, class_conditioning
from ddpm.distributed.consensus import broadcast
from ddpm.distributed.main_process import to_main
from ddpm.distributed.processes import Processes
from ddpm.distributed.sharding import Shard
from ddpm.distributed.stopping import NEVER, Stopping
from ddpm.evaluation.bits_per_dimension import bits_per_dimension
from ddpm.evaluation.model import EvaluatedModel
from ddpm.evaluation.partial_results import PartialResults
from ddpm.evaluation.results import EvaluationResult
from ddpm.generation import SamplingPipeline
from ddpm.metrics.results import BoundCurve
from ddpm.noise import SampleNoise
from ddpm.samplers.grids import respaced_timesteps
from ddpm.seeding import RandomStream, mix
from ddpm.training.meter import LOGGED, QUARTERS

BOUND_FILES = ("bound.png", "bound.npz")
NUM_QUARTERS = len(QUARTERS)
"""Timesteps per item at which the loss is computed, one per quarter of all timesteps."""


class CleanData(NamedTuple):
    """Clean data with their provenance.

    Attributes:
        x0: (N, C, *spatial) in model space.
        labels: (N,) class numbers; None for an unconditional model.
        prefix: of the names of the numbers: ``val_`` if the data were not trained on.
        provenance: class, part, number and hash of the data.
    """

    x0: Tensor
    labels: Tensor | None
    prefix: str
    provenance: Mapping[str, Any]

    def batch(self, indices: list[int], device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Return x0 and labels of some items, on a device."""
        labels = None if self.labels is None else self.labels[indices].to(device)
        return self.x0[indices].to(device), labels


@dataclass(frozen=True, kw_only=True)
class LikelihoodRun:
    """Everything that the metrics of clean data have in common.

    Attributes:
        data: clean data.
        processes: share the data.
        seed: of noise and timesteps, which are functions of it and the index of the item.
        batch_size: items per batch.
        provenance: everything but the data that the numbers depend on.
        result: receives the numbers.
        stopping: the stop check after each network call.
        partial_results: finished batches are read from it and saved to it.
    """

    data: CleanData
    processes: Processes
    seed: int
    batch_size: int
    provenance: Mapping[str, Any]
    result: EvaluationResult
    stopping: Stopping = NEVER
    partial_results: PartialResults = field(default_factory=PartialResults)

    def shard(self, calls: int) -> Shard:
        """Return the items of this process, with ``calls`` network calls per batch."""
        count = len(self.data.x0)
        return Shard(self.processes, count, self.batch_size, calls=calls, stopping=self.stopping)

    def progress(self, shard: Shard, name: str, description: str, calls: int, unit: str) -> tqdm:
        """Return a progress bar over network calls, without those of stored batches."""
        stored = sum(self.partial_results.has(name, batch) for batch in shard.batches())
        main = self.processes.is_main_process
        return progress(shard.calls, description, unit, initial=calls * stored, shown=main)

    def noise(self, batch: list[int]) -> SampleNoise:
        """Return the noise of a batch, a function of the seed and each item's index."""
        return SampleNoise([mix(self.seed, RandomStream.VALIDATION, index) for index in batch])


def compute_bits_per_dimension(
    pipeline: SamplingPipeline, run: LikelihoodRun, steps: int | None
) -> None:
    """Add the bits per dimension of clean data, and the terms over t, to the result.

    Args:
        pipeline: its denoiser predicts x0 and noise.
        run: data and options.
        steps: number of terms, on a respaced process; None = all T.

    Raises:
        GivenUpError: the stop check returned True.
    """
    total = pipeline.diffusion.num_steps
    timesteps = list(range(total)) if steps is None else respaced_timesteps(total, (steps,))
    num_terms, shard = len(timesteps), run.shard(len(timesteps))
    terms, priors = [torch.zeros(0, num_terms)], [torch.zeros(0)]
    with run.progress(shard, "bpd", "likelihood", num_terms, "term") as bar:

        def after() -> None:
            bar.update()
            shard.tick()

        def compute(batch: list[int]) -> dict[str, Tensor]:
            x0, labels = run.data.batch(batch, pipeline.device)
            with pipeline.autocast():
                bound = bits_per_dimension(
                    pipeline.denoiser,
                    x0,
                    randn_like=run.noise(batch).like,
                    steps=timesteps,
                    conditioning=class_conditioning(labels),
                    on_step=after,
                )
            return {"terms": bound.terms, "prior": bound.prior}

        for batch in shard.batches():
            tensors = run.partial_results.load_or_compute("bpd", batch, compute)
            terms.append(tensors["terms"])
            priors.append(tensors["prior"])
        shard.finish()
    all_terms, all_priors = (to_main(run.processes, torch.cat(each)) for each in (terms, priors))
    number, curve = broadcast(run.processes, _bound_curve(timesteps, all_terms, all_priors))
    run.result.bound = curve
    provenance = {**run.provenance, "bound_steps": num_terms, **run.data.provenance}
    # A respaced process has another, looser bound.
    suffix = None if num_terms == total else f"{num_terms}steps"
    run.result.add(f"{run.data.prefix}bpd", *number, provenance, suffix=suffix)


def _bound_curve(
    timesteps: list[int], terms: Tensor | None, priors: Tensor | None
) -> tuple[tuple[float, float | None], BoundCurve | None]:
    """Return the bits per dimension with their standard error, and the terms over t.

    Args:
        timesteps: K timesteps.
        terms: (N, K); None on other processes than the main one.
        priors: (N,); None on other processes than the main one.
    """
    if terms is None or priors is None:
        return (0.0, None), None
    terms, priors = terms.double(), priors.double()
    number, errors = _mean_with_error(terms.sum(1) + priors), terms.std(0) / len(terms) ** 0.5
    means = terms.mean(0).tolist()
    return number, BoundCurve(timesteps, means, errors.tolist(), float(priors.mean()))


def compute_losses(model: EvaluatedModel, pipeline: SamplingPipeline, run: LikelihoodRun) -> None:
    """Add the training loss of clean data, and that of each quarter of timesteps, to the result.

    Each item has one timestep t per quarter; t and the noise are functions of seed and index.

    Args:
        model: its network is put into eval mode.
        pipeline: has the device of the network, and the context in which it runs.
        run: data and options.

    Raises:
        GivenUpError: the stop check returned True.
    """
    total, network = model.diffusion.num_steps, model.network.eval()
    diffusion_loss = DiffusionLoss(model.diffusion)
    shard, losses = run.shard(NUM_QUARTERS), [torch.zeros(0, NUM_QUARTERS)]
    with run.progress(shard, "loss", "loss", NUM_QUARTERS, "call") as bar:

        def compute(batch: list[int]) -> dict[str, Tensor]:
            x0, labels = run.data.batch(batch, pipeline.device)
            noise, columns = run.noise(batch), []
            conditioning = class_conditioning(labels)
            for quarter in range(NUM_QUARTERS):
                timesteps = [_timestep(run.seed, index, quarter, total) for index in batch]
                t, eps = torch.tensor(timesteps).to(x0.device), noise.like(x0)
                with torch.inference_mode(), pipeline.autocast():
                    loss = diffusion_loss(network, x0, t, eps, conditioning=conditioning)
                columns.append(loss.float().cpu())
                bar.update()
                shard.tick()
            return {"losses": torch.stack(columns, dim=1)}

        for batch in shard.batches():
            tensors = run.partial_results.load_or_compute("loss", batch, compute)
            losses.append(tensors["losses"])
        shard.finish()
    everything, numbers = to_main(run.processes, torch.cat(losses)), []
    if everything is not None:
        everything = everything.double()
        numbers = [_mean_with_error(each) for each in (everything.mean(1), *everything.T)]
    numbers = broadcast(run.processes, numbers)
    provenance = {**run.provenance, **run.data.provenance}
    for name, number in zip(LOGGED, numbers, strict=True):
        run.result.add(f"{run.data.prefix}{name}", *number, provenance)


def _timestep(seed: int, index: int, quarter: int, total: int) -> int:
    """Return the timestep of an item in a quarter of all ``total`` timesteps."""
    low, high = (total * n // NUM_QUARTERS for n in (quarter, quarter + 1))
    return min(
        low + mix(seed, RandomStream.VALIDATION, index, quarter) % max(high - low, 1), total - 1
    )


def _mean_with_error(values: Tensor) -> tuple[float, float | None]:
    """Return the mean and its standard error; None for a single value."""
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
    return float(values.mean()), error


def save_bound(folder: Path, curve: BoundCurve) -> None:
    """Write the terms of the bound over t as ``bound.png`` and ``bound.npz``.

    Args:
        folder: must exist.
        curve: the terms.
    """
    import numpy as np
    from matplotlib.figure import Figure

    steps, terms, errors, prior = curve
    np.savez(folder / BOUND_FILES[1], t=steps, bits=terms, error=errors, prior=prior)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, np.maximum(terms, 1e-9), lw=1.2)
    axes.set(xlabel="t", ylabel="bits per dimension", yscale="log", title="terms of the bound")
    axes.grid(alpha=0.3)
    figure.savefig(folder / BOUND_FILES[0], dpi=120)
