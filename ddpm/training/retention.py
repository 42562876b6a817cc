"""Which checkpoints of a run are kept."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddpm.config.migration import migrate
from ddpm.training.checkpoint import (
    CONFIG,
    EVALUATION,
    FOLDER,
    CheckpointMetadata,
    listed,
    read_json,
    step_of,
)

# What a file that is not as it was written may raise.
_DAMAGED = (
    OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration, OverflowError,
    RecursionError,
)  # fmt: skip
BEST = "best"  # beside the checkpoints, a link to the best of them


def prune(
    run: Path,
    keep_last: int,
    *,
    keep_every: int | None = None,
    best: str | None = None,
    step: int | None = None,
) -> None:
    """Delete the checkpoints of a run that need not be kept, see also :func:`remove_partial`.

    Args:
        run: the run folder.
        keep_last: how many of the newest are kept.
        keep_every: those of steps that are multiples of it are kept too.
        best: the checkpoint that is best in this metric is kept too, and linked to.
        step: of the one just written. Newer ones are damaged, or the run would have gone on from
            them: they do not count, and lie there until others take their place.
    """
    folders = [each for each in listed(run) if step is None or step_of(each) <= step]
    kept = set(folders[:keep_last])
    if keep_every is not None:
        kept |= {folder for folder in folders if step_of(folder) % keep_every == 0}
    first = None if best is None else best_of(folders, best)
    if first is not None:
        kept.add(first.folder)
        _link(run / FOLDER / BEST, first.folder.name)
    for folder in folders:
        if folder not in kept:
            _delete(folder)
    remove_partial(run)


def _delete(folder: Path) -> None:
    """Delete a checkpoint, which is gone at once: a kill leaves no half of it under its name."""
    aside = folder.with_name(f".tmp-old-{folder.name}")
    with contextlib.suppress(OSError):
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def remove_partial(run: Path) -> None:
    """Delete what a run that was killed has left half written."""
    for leftover in (run / FOLDER).glob(".tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


class CheckpointScore(NamedTuple):
    """What a checkpoint has reached in a metric.

    Attributes:
        folder: of the checkpoint.
        value: of the metric.
        loss: the same, or its negative: less is better.
        how: it was measured; only equals can be compared.
    """

    folder: Path
    value: float
    loss: float
    how: Any = None


def best_of(folders: Sequence[Path], metric: str) -> CheckpointScore | None:
    """The best of some checkpoints, newest first, in a metric; of equals the first of the run.

    Where it was measured in several ways, those that were measured like the newest count.
    """
    found = [one for folder in folders if (one := _score(folder, metric)) is not None]
    alike = [one for one in found if one.how == found[0].how]
    return min(alike, key=lambda one: (one.loss, step_of(one.folder)), default=None)


def _score(folder: Path, metric: str) -> CheckpointScore | None:
    """What a checkpoint says it has reached, or None: not known, or not a number."""
    try:
        value, sign, how = _logged(folder, metric) or _evaluated(folder, metric)
    except _DAMAGED:
        return None
    return CheckpointScore(folder, value, sign * value, how) if math.isfinite(value) else None


def _logged(folder: Path, metric: str) -> tuple[float, int, Any] | None:
    """A metric of the training itself."""
    metrics = CheckpointMetadata.from_json(read_json(folder / CONFIG)).metrics or {}
    return (float(metrics[metric]), 1, None) if metric in metrics else None


def _evaluated(folder: Path, metric: str) -> tuple[float, int, Any]:
    """A metric of the evaluation beside the weights, by its name or that without the count."""
    content = read_json(folder / EVALUATION)
    rows = content["metrics"]
    row = next(row for row in rows if metric in (row["metric"], row["name"]))
    return (
        float(row["value"]),
        -1 if row["higher_is_better"] else 1,
        migrate(content.get("measure")),
    )


def _link(path: Path, target: str) -> None:
    """Point a symbolic link to ``target``, at once; where there are none, leave it."""
    aside = path.with_name(f".tmp-{path.name}")
    with contextlib.suppress(OSError):
        aside.unlink(missing_ok=True)
        aside.symlink_to(target)
        aside.replace(path)
