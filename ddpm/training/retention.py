"""Which checkpoints of a run are kept."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from pathlib import Path

from ddpm.training.checkpoint import CONFIG, FOLDER, listed, step_of

BEST = "best"  # beside the checkpoints, a link to the best of them


def prune(
    run: Path,
    keep_last: int,
    *,
    keep_every: int | None = None,
    best: str | None = None,
    step: int | None = None,
) -> None:
    """Delete the checkpoints of a run that need not be kept, see also :func:`sweep_up`.

    Args:
        run: the run folder.
        keep_last: how many of the newest are kept.
        keep_every: those of steps that are multiples of it are kept too.
        best: the checkpoint with the lowest value of this metric is kept too, and linked to.
        step: of the one just written. Newer ones are damaged, or the run would have gone on from
            them: they do not count, and lie there until others take their place.
    """
    folders = [each for each in listed(run) if step is None or step_of(each) <= step]
    kept = set(folders[:keep_last])
    if keep_every is not None:
        kept |= {folder for folder in folders if step_of(folder) % keep_every == 0}
    values = {} if best is None else {f: v for f in folders if (v := _metric(f, best)) is not None}
    if values:
        first = min(values, key=lambda folder: (values[folder], step_of(folder)))
        kept.add(first)
        _link(run / FOLDER / BEST, first.name)
    for folder in folders:
        if folder not in kept:
            _take_away(folder)
    sweep_up(run)


def _take_away(folder: Path) -> None:
    """Delete a checkpoint, which is gone at once: a kill leaves no half of it under its name."""
    aside = folder.with_name(f".tmp-old-{folder.name}")
    with contextlib.suppress(OSError):
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def sweep_up(run: Path) -> None:
    """Delete what a run that was killed has left half written."""
    for leftover in (run / FOLDER).glob(".tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _metric(folder: Path, name: str) -> float | None:
    """What a checkpoint says it had reached, or None: not known, or not a number."""
    try:
        header = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        value = float(header["metrics"][name])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value if math.isfinite(value) else None


def _link(path: Path, target: str) -> None:
    """Point a symbolic link to ``target``, at once; where there are none, leave it."""
    aside = path.with_name(f".tmp-{path.name}")
    with contextlib.suppress(OSError):
        aside.unlink(missing_ok=True)
        aside.symlink_to(target)
        aside.replace(path)
