"""How likely a model finds clean data: the variational bound, and the loss of training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from ddpm.console import progress
from ddpm.diffusion import DiffusionLoss
from ddpm.distributed.batches import Share
from ddpm.distributed.main_process import to_main
from ddpm.distributed.stopping import NEVER, Stopping
from ddpm.drawing import Model
from ddpm.evaluation.bits_per_dimension import bits_per_dimension
from ddpm.evaluation.partial_results import Parts
from ddpm.evaluation.results import Findings
from ddpm.generation import SampleNoise, SamplingPipeline
from ddpm.metrics.results import BoundCurve
from ddpm.samplers.base import respaced_timesteps
from ddpm.seeding import RandomStream, mix
from ddpm.training.meter import LOGGED, QUARTERS

BOUND = ("bound.png", "bound.npz")
QUARTERS_OF_T = len(QUARTERS)


class Clean(NamedTuple):
    """Clean data, and what to say of them.

    Attributes:
        x0: (N, C, *spatial) in model space.
        labels: (N,), of a class-conditional model.
        prefix: of the numbers' names: ``val_`` where training never saw the data.
        told: what they are.
    """

    x0: Tensor
    labels: Tensor | None
    prefix: str
    told: Mapping[str, Any]

    def some(self, batch: list[int], device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Some of them, on a device."""
        labels = None if self.labels is None else self.labels[batch].to(device)
        return self.x0[batch].to(device), labels


def likelihood(
    pipeline: SamplingPipeline,
    clean: Clean,
    accelerator: Accelerator,
    *,
    seed: int,
    batch_size: int,
    steps: int | None,
    told: Mapping[str, Any],
    findings: Findings,
    stopping: Stopping = NEVER,
    parts: Parts | None = None,
) -> None:
    """Bits per dimension of clean data, and its terms over t; noise by index.

    Raises:
        GivenUpError: it was told to stop.
    """
    total, count = pipeline.diffusion.num_steps, len(clean.x0)
    kept = list(range(total)) if steps is None else respaced_timesteps(total, (steps,))
    share, parts = Share(accelerator, count, batch_size, len(kept), stopping), parts or Parts()
    terms, priors = [torch.zeros(0, len(kept))], [torch.zeros(0)]
    main, done = accelerator.is_main_process, _done(share, parts, "bpd", len(kept))
    with progress(share.calls, "likelihood", "term", initial=done, shown=main) as bar:

        def after() -> None:
            bar.update()
            share.tick()

        for batch in share.batches():
            held = parts.load("bpd", batch)
            if held is None:
                x0, labels = clean.some(batch, pipeline.device)
                with pipeline.autocast():
                    found = bits_per_dimension(
                        pipeline.denoiser,
                        x0,
                        randn_like=_noise(seed, batch).like,
                        steps=kept,
                        y=labels,
                        on_step=after,
                    )
                held = {"terms": found.terms, "prior": found.prior}
                parts.save("bpd", batch, held)
            terms.append(held["terms"])
            priors.append(held["prior"])
        share.finish()
    every, prior = (to_main(accelerator, torch.cat(each)) for each in (terms, priors))
    number: tuple[float, float | None] = 0.0, None
    if every is not None and prior is not None:
        every, prior = every.double(), prior.double()
        number, spread = _mean(every.sum(1) + prior), every.std(0) / count**0.5
        means, spreads = every.mean(0).tolist(), spread.tolist()
        findings.bound = BoundCurve(kept, means, spreads, float(prior.mean()))
    number, findings.bound = broadcast_object_list([(number, findings.bound)])[0]
    depends = {**told, "bound_steps": len(kept), **clean.told}
    few = None if len(kept) == total else f"{len(kept)}steps"  # another, looser number
    findings.add(f"{clean.prefix}bpd", *number, depends, suffix=few)


def losses(
    model: Model,
    clean: Clean,
    *,
    seed: int,
    batch_size: int,
    told: Mapping[str, Any],
    findings: Findings,
    stopping: Stopping = NEVER,
    parts: Parts | None = None,
) -> None:
    """The training loss of clean data, each at one step t of each quarter; t and noise by index.

    Raises:
        GivenUpError: it was told to stop.
    """
    accelerator, total = model.accelerator, model.diffusion.num_steps
    loss = DiffusionLoss(model.diffusion)
    network = model.network.eval()
    parts, main = parts or Parts(), accelerator.is_main_process
    share = Share(accelerator, len(clean.x0), batch_size, QUARTERS_OF_T, stopping)
    found, done = [torch.zeros(0, QUARTERS_OF_T)], _done(share, parts, "loss", QUARTERS_OF_T)
    with progress(share.calls, "loss", "call", initial=done, shown=main) as bar:
        for batch in share.batches():
            held = parts.load("loss", batch)
            if held is not None:
                found.append(held["losses"])
                continue
            x0, labels = clean.some(batch, accelerator.device)
            noise, columns = _noise(seed, batch), []
            cond: dict[str, Any] = {} if labels is None else {"y": labels}
            for quarter in range(QUARTERS_OF_T):
                t = torch.tensor([_step(seed, index, quarter, total) for index in batch])
                t, eps = t.to(x0.device), noise.like(x0)
                with torch.inference_mode(), accelerator.autocast():
                    each = loss(network, x0, t, eps, **cond)
                columns.append(each.float().cpu())
                bar.update()
                share.tick()
            found.append(torch.stack(columns, dim=1))
            parts.save("loss", batch, {"losses": found[-1]})
        share.finish()
    every = to_main(accelerator, torch.cat(found))
    numbers = []
    if every is not None:
        every = every.double()
        numbers = [_mean(each) for each in (every.mean(1), *every.T)]
    (numbers,) = broadcast_object_list([numbers])
    for name, number in zip(LOGGED, numbers, strict=True):
        findings.add(f"{clean.prefix}{name}", *number, {**told, **clean.told})


def _done(share: Share, parts: Parts, name: str, calls: int) -> int:
    """Network calls of the batches that are kept."""
    return calls * sum(parts.has(name, batch) for batch in share.batches())


def _noise(seed: int, batch: list[int]) -> SampleNoise:
    return SampleNoise([mix(seed, RandomStream.VALIDATION, index) for index in batch])


def _step(seed: int, index: int, quarter: int, total: int) -> int:
    """A step t of a quarter of all, for one item."""
    low, high = (total * n // QUARTERS_OF_T for n in (quarter, quarter + 1))
    return min(
        low + mix(seed, RandomStream.VALIDATION, index, quarter) % max(high - low, 1), total - 1
    )


def _mean(values: Tensor) -> tuple[float, float | None]:
    """Mean and standard error; of one value there is none."""
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
    return float(values.mean()), error


def save_bound(folder: Path, curve: BoundCurve) -> None:
    """Write ``bound.png`` and ``bound.npz``: the terms over t."""
    import numpy as np
    from matplotlib.figure import Figure

    steps, terms, errors, prior = curve
    np.savez(folder / BOUND[1], t=steps, bits=terms, error=errors, prior=prior)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, np.maximum(terms, 1e-9), lw=1.2)
    axes.set(xlabel="t", ylabel="bits per dimension", yscale="log", title="terms of the bound")
    axes.grid(alpha=0.3)
    figure.savefig(folder / BOUND[0], dpi=120)
