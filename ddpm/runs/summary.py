"""First lines of a training."""

from __future__ import annotations

from typing import Any

from ddpm.data.spec import DataSpec
from ddpm.errors import render, shortened
from ddpm.files import free_space
from ddpm.training import Trainer, snapshots
from ddpm.training.run import Run


def summary(trainer: Trainer, spec: DataSpec, run: Run, chosen: dict[str, Any]) -> str:
    """Return a summary of the training, several lines."""
    weights = sum(parameter.numel() for parameter in trainer.network.parameters())
    classes, names = "", ""
    if spec.num_classes is not None:
        classes = f", {spec.num_classes} classes"
        names = f"classes: {shortened(spec.class_names or range(spec.num_classes))}\n"
    start = f" from step {trainer.step}" if trainer.step else ""
    few = len(trainer.data) < trainer.batch_size
    note = " (fewer than a batch: each batch contains some of them more than once)" if few else ""
    fit = getattr(trainer.network, "fit", None)
    adapted = f"model.{fit.note}\n" if fit is not None and fit.note else ""
    device, world = trainer.accelerator.device.type, trainer.accelerator.num_processes
    values = ", ".join(f"{key}={render(value)}" for key, value in chosen.items())
    defaults = f"by default on {device}: {values}\n" if values else ""
    where = f"{world} processes, each on {device}" if world > 1 else str(device)
    return (
        f"training{start} to step {trainer.max_steps} on {where}: "
        f"{weights:,} parameters, {spec.codec.describe_count(len(trainer.data))}{classes}{note}\n"
        f"{names}{adapted}{defaults}{_snapshots(trainer, run)}results go to {run.path}"
    )


def _snapshots(trainer: Trainer, run: Run) -> str:
    """Return a line about the snapshots for ``ddpm-average``; empty without any."""
    averages, last = trainer.posthoc, trainer.max_steps
    every = trainer.options.snapshot_interval(last)
    if not every:
        return ""
    count = -(-last // every) - -(-trainer.step // every)
    size = count * averages.num_bytes / 1e6
    shown = f"{size:,.1f} MB" if size < 1000 else f"{size / 1000:,.1f} GB"
    steps = "every step" if every == 1 else f"every {every:,} steps"
    values = ", ".join(f"{each.sigma_rel:g}" for each in averages.profiles)
    return (
        f"post-hoc EMA: {count} snapshots, {steps}, of averages with sigma_rel {values}: {shown} "
        f"in {run.path / snapshots.FOLDER} ({free_space(run.path)})\n"
    )
