"""Retention of checkpoints: deletion of old ones, and the link to the best one."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddpm.checkpoint_paths import FOLDER, listed, step_of
from ddpm.config.migration import migrate
from ddpm.training.checkpoint import CONFIG, EVALUATION, CheckpointMetadata, read_json

# Exceptions of reading a damaged file.
_DAMAGED = (
    OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration, OverflowError,
    RecursionError,
)  # fmt: skip
BEST = "best"  # link to the best checkpoint, in the folder of the checkpoints


def prune(
    run: Path,
    keep_last: int,
    *,
    keep_every: int | None = None,
    best: str | None = None,
    step: int | None = None,
) -> None:
    """Delete the checkpoints of a run that are not retained, and partial ones.

    Args:
        run: the run folder.
        keep_last: number of newest checkpoints to retain.
        keep_every: checkpoints of steps that are multiples of it are retained too.
        best: the checkpoint with the best value of this metric is retained too, and linked to.
        step: step of the checkpoint just written. Newer ones are damaged, else the run would have
            resumed from them: they are ignored, and replaced when the run reaches their step.
    """
    folders = [each for each in listed(run) if step is None or step_of(each) <= step]
    retained = set(folders[:keep_last])
    if keep_every is not None:
        retained |= {folder for folder in folders if step_of(folder) % keep_every == 0}
    first = None if best is None else best_of(folders, best)
    if first is not None:
        retained.add(first.folder)
        _link(run / FOLDER / BEST, first.folder.name)
    for folder in folders:
        if folder not in retained:
            _delete(folder)
    remove_partial(run)


def _delete(folder: Path) -> None:
    """Delete a checkpoint atomically: a kill leaves no partial checkpoint under its name."""
    aside = folder.with_name(f".tmp-old-{folder.name}")
    with contextlib.suppress(OSError):
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def remove_partial(run: Path) -> None:
    """Delete the partially written checkpoints of a run that was killed."""
    for leftover in (run / FOLDER).glob(".tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


class CheckpointScore(NamedTuple):
    """Value of a metric of a checkpoint.

    Attributes:
        folder: folder of the checkpoint.
        value: value of the metric.
        loss: the value, or its negative if higher is better.
        options: evaluation options; only scores with equal options are comparable.
    """

    folder: Path
    value: float
    loss: float
    options: Any = None


def best_of(folders: Sequence[Path], metric: str) -> CheckpointScore | None:
    """Return the best score of some checkpoints in a metric; of equal ones that of the lowest step.

    Only scores with the evaluation options of the newest one are compared.

    Args:
        folders: checkpoint folders, newest first.
        metric: name of the metric.
    """
    scores = [score for folder in folders if (score := _score(folder, metric)) is not None]
    comparable = [score for score in scores if score.options == scores[0].options]
    return min(comparable, key=lambda score: (score.loss, step_of(score.folder)), default=None)


def _score(folder: Path, metric: str) -> CheckpointScore | None:
    """Return the stored score of a checkpoint; None if it is missing, damaged or not finite."""
    try:
        value, sign, options = _logged(folder, metric) or _evaluated(folder, metric)
    except _DAMAGED:
        return None
    return CheckpointScore(folder, value, sign * value, options) if math.isfinite(value) else None


def _logged(folder: Path, metric: str) -> tuple[float, int, Any] | None:
    """Return value, sign and options of a metric that training logs, or None."""
    metrics = CheckpointMetadata.from_json(read_json(folder / CONFIG)).metrics or {}
    return (float(metrics[metric]), 1, None) if metric in metrics else None


def _evaluated(folder: Path, metric: str) -> tuple[float, int, Any]:
    """Return value, sign and options of a metric of the evaluation, with or without its count."""
    content = read_json(folder / EVALUATION)
    rows = content["metrics"]
    row = next(row for row in rows if metric in (row["metric"], row["name"]))
    return (
        float(row["value"]),
        -1 if row["higher_is_better"] else 1,
        migrate(content.get("measure")),
    )


def _link(path: Path, target: str) -> None:
    """Set a symbolic link atomically; do nothing on file systems without links."""
    aside = path.with_name(f".tmp-{path.name}")
    with contextlib.suppress(OSError):
        aside.unlink(missing_ok=True)
        aside.symlink_to(target)
        aside.replace(path)
