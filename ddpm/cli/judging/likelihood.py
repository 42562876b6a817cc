"""How likely a model finds clean data: the variational bound, and the loss of training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from ddpm.cli.drawing import Model
from ddpm.cli.judging.batches import Share, Stopping, never
from ddpm.cli.judging.findings import Findings
from ddpm.evaluation import bits_per_dimension
from ddpm.fidelity.report import BoundCurve
from ddpm.generation import SampleNoise, Source
from ddpm.progress import progress
from ddpm.samplers.base import respaced
from ddpm.seeding import For, mix
from ddpm.training.meter import QUARTERS

_QUARTERS = len(QUARTERS)


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
    source: Source,
    clean: Clean,
    accelerator: Accelerator,
    *,
    seed: int,
    batch_size: int,
    steps: int | None,
    told: Mapping[str, Any],
    findings: Findings,
    stopping: Stopping = never,
) -> None:
    """Bits per dimension of clean data, and its terms over t; noise by index.

    Raises:
        GivenUpError: it was told to stop.
    """
    total, count = source.diffusion.num_steps, len(clean.x0)
    kept = list(range(total)) if steps is None else respaced(total, (steps,))
    share = Share(accelerator, count, batch_size, len(kept), stopping)
    terms, priors = [torch.zeros(0, len(kept))], [torch.zeros(0)]
    with progress(share.calls, "likelihood", "term", shown=accelerator.is_main_process) as bar:

        def after() -> None:
            bar.update()
            share.tick()

        for batch in share.batches():
            x0, labels = clean.some(batch, source.device)
            with source.autocast():
                found = bits_per_dimension(
                    source.denoiser,
                    x0,
                    randn_like=_noise(seed, batch).like,
                    steps=kept,
                    y=labels,
                    on_step=after,
                )
            terms.append(found.terms)
            priors.append(found.prior)
        share.finish()
    every = share.together(torch.cat(terms)).double()
    prior = share.together(torch.cat(priors)).double()
    depends = {**told, "bound_steps": len(kept), **clean.told}
    few = None if len(kept) == total else f"{len(kept)}steps"  # another, looser number
    findings.add(f"{clean.prefix}bpd", *_mean(every.sum(1) + prior), depends, suffix=few)
    spread = every.std(0) / count**0.5
    findings.bound = BoundCurve(kept, every.mean(0).tolist(), spread.tolist(), float(prior.mean()))


def losses(
    model: Model,
    clean: Clean,
    *,
    seed: int,
    batch_size: int,
    told: Mapping[str, Any],
    findings: Findings,
    stopping: Stopping = never,
) -> None:
    """The training loss of clean data, each at one step t of each quarter; t and noise by index.

    Raises:
        GivenUpError: it was told to stop.
    """
    accelerator, total = model.accelerator, model.diffusion.num_steps
    network = model.network.eval()
    share = Share(accelerator, len(clean.x0), batch_size, _QUARTERS, stopping)
    found = [torch.zeros(0, _QUARTERS)]
    with progress(share.calls, "loss", "call", shown=accelerator.is_main_process) as bar:
        for batch in share.batches():
            x0, labels = clean.some(batch, accelerator.device)
            noise, columns = _noise(seed, batch), []
            cond: dict[str, Any] = {} if labels is None else {"y": labels}
            for quarter in range(_QUARTERS):
                t = torch.tensor([_step(seed, index, quarter, total) for index in batch])
                t, eps = t.to(x0.device), noise.like(x0)
                with torch.inference_mode(), accelerator.autocast():
                    each = model.diffusion.loss(network, x0, t, eps, **cond)
                columns.append(each.float().cpu())
                bar.update()
                share.tick()
            found.append(torch.stack(columns, dim=1))
        share.finish()
    every = share.together(torch.cat(found)).double()
    depends = {**told, **clean.told}
    findings.add(f"{clean.prefix}loss", *_mean(every.mean(1)), depends)
    for name, column in zip(QUARTERS, every.T, strict=True):
        findings.add(f"{clean.prefix}{name}", *_mean(column), depends)


def _noise(seed: int, batch: list[int]) -> SampleNoise:
    return SampleNoise([mix(seed, For.HELD_OUT, index) for index in batch])


def _step(seed: int, index: int, quarter: int, total: int) -> int:
    """A step t of a quarter of all, for one item."""
    low, high = (total * n // _QUARTERS for n in (quarter, quarter + 1))
    return min(low + mix(seed, For.HELD_OUT, index, quarter) % max(high - low, 1), total - 1)


def _mean(values: Tensor) -> tuple[float, float | None]:
    """Mean and standard error; of one value there is none."""
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
    return float(values.mean()), error


def save_bound(folder: Path, curve: BoundCurve) -> None:
    """Write ``bound.npz`` and ``bound.png``: the terms over t."""
    import numpy as np
    from matplotlib.figure import Figure

    steps, terms, errors, prior = curve
    np.savez(folder / "bound.npz", t=steps, bits=terms, error=errors, prior=prior)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, np.maximum(terms, 1e-9), lw=1.2)
    axes.set(xlabel="t", ylabel="bits per dimension", yscale="log", title="terms of the bound")
    axes.grid(alpha=0.3)
    figure.savefig(folder / "bound.png", dpi=120)
