"""Averages of the weights of another length, computed after the training: ``ddpm-average``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpm.arguments import checked
from ddpm.config.text import to_yaml
from ddpm.console import info, warn
from ddpm.errors import ConfigError, render, require, shortened
from ddpm.files import expand
from ddpm.training import checkpoint, snapshots
from ddpm.training.checkpoint import Checkpoint
from ddpm.training.power_average import check_sigma_rel
from ddpm.training.power_profile import Profile, fit
from ddpm.training.run import Run, appearing
from ddpm.training.snapshots import Snapshot
from ddpm.version import __version__

FOLDER = "averages"  # of the run


class _Average(NamedTuple):
    """An average to compute.

    Attributes:
        folder: of the run to write.
        used: snapshots, in ascending order.
        coefficients: of their averages.
        provenance: profile, step, snapshots with their hashes, and error of the combination.
    """

    folder: Path
    used: list[Snapshot]
    coefficients: list[float]
    provenance: dict[str, Any]


@checked
def average_runs(
    path: str | Path,
    sigma_rels: Sequence[float],
    *,
    step: int | None = None,
    max_error: float = 0.1,
    out: str | Path | None = None,
) -> list[Path]:
    """Write runs with averages of the weights of a training, and return their folders.

    A folder that an earlier call wrote from the same snapshots is returned as it is. Nothing is
    written if one of the averages is invalid.

    Args:
        path: a run that was trained with ``trainer.posthoc_ema``, or a checkpoint of it.
        sigma_rels: relative standard deviations of the profiles, below 0.289.
        step: the optimizer step of a snapshot; None = that of the last one, up to the checkpoint.
        max_error: largest difference between a profile and its approximation, relative.
        out: parent folder; None = ``averages`` of the run.

    Raises:
        ConfigError: no snapshots, a damaged one, none of this step, a profile that they do not
            approximate, or a folder that something else has.
    """
    for each in sigma_rels:
        check_sigma_rel("sigma_rel", each, each)
    source = checkpoint.find(expand("ckpt", str(path)), warn)
    used = _until(source, str(path), step)
    parent = source.run / FOLDER if out is None else Path(expand("out", str(out)))
    averages = [_fitted(used, each, max_error, source, parent) for each in sigma_rels]
    remaining = [each for each in averages if not _is_written(each)]
    for each in averages:
        info(
            f"sigma_rel={each.provenance['sigma_rel']:g} at step {used[-1].step:,}: error of the "
            f"profile {each.provenance['error']:.2g}, from {len(used)} snapshots"
        )
        if each in remaining:
            _write(each, source)
    return [each.folder for each in averages]


def _until(source: Checkpoint, path: str, step: int | None) -> list[Snapshot]:
    """Return the snapshots up to a step, or without one up to a checkpoint, in ascending order.

    Raises:
        ConfigError: no snapshots, or none of this step.
    """
    paths = snapshots.listed(source.run)
    remedy = "train with trainer.posthoc_ema=[0.05,0.1]; a run can also be resumed with it"
    require(bool(paths), "ckpt", path, "has no snapshots of averages", remedy)
    if step is not None and step not in paths:
        problem = f"has no snapshot; use one of {shortened(paths)}"
        raise ConfigError("step", step, problem)
    last = source.step if step is None else step
    used = [snapshots.read(each) for number, each in paths.items() if number <= last]
    first = next(iter(paths))
    problem = f"is before the first snapshot, of step {first}; use step={first} or the run"
    require(bool(used), "ckpt", path, problem)
    return used


def _fitted(
    used: list[Snapshot], sigma_rel: float, max_error: float, source: Checkpoint, parent: Path
) -> _Average:
    """Return the average with a profile at the last snapshot.

    Raises:
        ConfigError: no combination is close to the profile.
    """
    profiles = [profile for each in used for profile in each.profiles]
    updates, start = max(each.updates for each in profiles), min(each.start for each in profiles)
    result = fit(Profile(sigma_rel, updates, start), profiles)
    stored = sorted({each.sigma_rel for each in profiles})
    problem = (
        f"differs by {result.error:.1%} from all combinations of {len(profiles)} averages with "
        f"sigma_rel={render(stored)}; use a value closer to these, max_error="
        f"{result.error * 1.01:.2g}, or in training a smaller trainer.posthoc_every"
    )
    require(result.error <= max_error, "sigma_rel", sigma_rel, problem)
    step = used[-1].step
    provenance = {
        "sigma_rel": sigma_rel,
        "step": step,
        "run": source.run.resolve().name,
        "error": result.error,
        "snapshots": [[each.path.name, each.sha256] for each in used],
    }
    folder = parent / f"sigma-{sigma_rel:g}-step-{step:08d}"
    return _Average(folder, used, result.coefficients, provenance)


@torch.no_grad()
def combine(used: Iterable[Snapshot], coefficients: Sequence[float]) -> dict[str, Tensor]:
    """Return the sum of averages, computed in float64; other tensors are those of the last one.

    Args:
        used: snapshots, in ascending order.
        coefficients: one per average, in their order.

    Raises:
        ConfigError: a damaged snapshot.
    """
    sums: dict[str, Tensor] = {}
    dtypes, rest = {}, {}
    remaining = iter(coefficients)
    for snapshot in used:
        averages, rest = snapshot.tensors()
        for weights in averages:
            coefficient = next(remaining)
            for name, value in weights.items():
                dtypes[name] = value.dtype
                wide = value.to(torch.promote_types(value.dtype, torch.float64))
                if name not in sums:
                    sums[name] = torch.zeros_like(wide)
                sums[name].add_(wide, alpha=coefficient)
    return {**{name: total.to(dtypes[name]) for name, total in sums.items()}, **rest}


def _check_fit(weights: dict[str, Tensor], source: Checkpoint) -> None:
    """Raise ConfigError unless weights have the names and shapes of those of a checkpoint."""
    here, there = (
        {name: tuple(value.shape) for name, value in each.items()}
        for each in (weights, source.weights("ema"))
    )
    problem = "has snapshots of another network; move them away, or use the run of the snapshots"
    require(here == there, "ckpt", str(source.folder), problem)


def _is_written(average: _Average) -> bool:
    """Return True if the folder of an average has it already.

    Raises:
        ConfigError: (key ``out``) it contains something else.
    """
    folder = average.folder
    if not folder.exists() and not folder.is_symlink():
        return False
    problem = "exists and is not the average of these snapshots"
    error = ConfigError("out", str(folder), problem, "move it away, or choose another out=")
    if not checkpoint.listed(folder):
        raise error
    if checkpoint.find(str(folder), warn).metadata.average != average.provenance:
        raise error
    return True


def _write(average: _Average, source: Checkpoint) -> None:
    """Compute an average, and write a run with it, which appears complete."""
    weights = combine(average.used, average.coefficients)
    _check_fit(weights, source)
    step, folder = average.provenance["step"], average.folder
    metadata = replace(
        source.metadata, ddpm=__version__, step=step, metrics=None, average=average.provenance
    )
    with appearing(folder.parent) as temporary:
        Run(temporary).create(to_yaml(source.config))
        state = checkpoint.state_without_training(step)
        where = temporary / checkpoint.FOLDER
        checkpoint.save(where, metadata, raw=weights, ema=weights, state=state)
        temporary.rename(folder)
