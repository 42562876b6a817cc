"""Paths of checkpoints: names, lists and searches, without reading a checkpoint or importing torch.

A run folder contains ``checkpoints/step-00001000/``; see :mod:`ddpm.training.checkpoint`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm import hub
from ddpm.errors import ConfigError
from ddpm.lifetime import one_of_several

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})")


def located(path: str) -> Path:
    """Return the folder of a run or of a checkpoint that a path names; links are followed.

    ``hf://owner/name`` is downloaded into ``outputs/owner--name``.

    Raises:
        ConfigError: it does not exist, is a file, or contains no checkpoint.
    """
    place = hub.run_folder(path, FOLDER) if path.startswith(hub.PREFIX) else Path(path)
    if not place.exists():  # also where latest points to a run that was deleted
        run = nearest_run(place)
        remedy = "train one first" if run is None else f"use ckpt={run}"
        raise ConfigError("ckpt", path, f"run or checkpoint not found; {remedy}")
    if place.is_file():
        problem = "is a file; use the folder of a run or of a checkpoint (step-00001000)"
        raise ConfigError("ckpt", path, problem)
    place = readable(place.resolve())
    if not is_checkpoint(place) and not listed(place):
        raise no_checkpoint(path)
    return place


def check_checkpoint(options: Mapping[str, Any]) -> None:
    """Raise ConfigError if the path ``ckpt`` among the options of a command leads nowhere.

    Processes of a launcher look later and together, as do commands with another subject as well,
    which they reject. Of a repository only the name is checked: it is downloaded when it is read.
    """
    path = options.get("ckpt")
    alone = options.get("samples") is None and options.get("runs") is None
    if path is None or not alone or one_of_several():
        return
    if path.startswith(hub.PREFIX):
        hub.repository_of("ckpt", path)
    else:
        located(path)


def no_checkpoint(path: str) -> ConfigError:
    """Return the error of a folder without checkpoints."""
    return ConfigError("ckpt", path, "contains no checkpoint; use a run folder of ddpm-train")


def is_checkpoint(folder: Path) -> bool:
    """Return True for the folder of a checkpoint, also a damaged or a renamed one."""
    return _NAME.fullmatch(folder.name) is not None or (folder / MANIFEST).exists()


def nearest_run(missing: Path) -> Path | None:
    """Return the newest run in the parent folder of a missing path, or else in ``outputs``."""
    for parent in dict.fromkeys((missing.parent, Path("outputs"))):
        try:
            folders = [path for path in parent.iterdir() if not path.is_symlink() and listed(path)]
            if folders:
                return max(folders, key=lambda path: path.stat().st_mtime)
        except OSError:  # it does not exist, or is not ours to read
            continue
    return None


def listed(run: Path) -> list[Path]:
    """Return the checkpoint folders of a run, newest first, including damaged ones."""
    parent = run / FOLDER
    names = (
        [path for path in parent.iterdir() if _NAME.fullmatch(path.name)] if parent.is_dir() else []
    )
    return sorted(names, key=step_of, reverse=True)


def place(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of a step in ``folder``."""
    return folder / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """Return the step in the name of a checkpoint folder."""
    return int(folder.name.removeprefix("step-"))


def readable(place: Path) -> Path:
    """Return a resolved path relative to the working directory, if it is inside of it."""
    return place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place
