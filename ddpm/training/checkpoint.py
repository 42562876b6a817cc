"""Checkpoints: folders that are complete or absent, and safe to read.

A checkpoint ``step-00001000/`` contains

- ``config.json``: the resolved config, the data's shape, classes and codec, the step;
- ``model.safetensors``, ``ema.safetensors``: the weights and their average;
- ``state.pt``: what only resuming needs (optimizer, counters), read with ``weights_only=True``;
- ``manifest.json``: the format's version, size and sha256 of each file; written last;
- ``evaluation.json``: the evaluation during training at this step, if any; written afterwards.

A checkpoint is written under a temporary name in the same folder, synced to the disk and renamed.
Weights that are not finite are never written.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ddpm.checkpoint_paths import (
    FOLDER,
    MANIFEST,
    is_checkpoint,
    listed,
    located,
    no_checkpoint,
    place,
)
from ddpm.config.migration import migrate
from ddpm.errors import ConfigError
from ddpm.files import (
    MAX_HEADER_BYTES,
    file_sha256,
    free_space,
    load_tensors,
    set_usual_mode,
    sync,
)
from ddpm.memory import is_out_of_memory

FORMAT = 1
CONFIG, STATE = "config.json", "state.pt"
EVALUATION = "evaluation.json"
WEIGHTS = {"raw": "model.safetensors", "ema": "ema.safetensors"}
_DATA = ("shape", "num_classes", "class_names", "codec", "class_counts")


@dataclass(frozen=True, kw_only=True)
class CheckpointMetadata:
    """Content of ``config.json`` in a checkpoint; fields that are None are left out of the file.

    Attributes:
        config: resolved config of the run, as plain data: nothing in it is evaluated.
        step: number of optimizer steps.
        data: shape, classes and codec of the data, see :class:`ddpm.data.spec.DataSpec`.
        num_samples: number of training samples.
        processes: number of processes.
        threads: CPU threads per process.
        seconds_per_step: duration of a step in the trial at the start of the run.
        metrics: metrics that were logged last.
        ddpm: version of ddpm that wrote the checkpoint.
        came: origin of an imported checkpoint.
        average: provenance of weights that ``ddpm-average`` computed.
    """

    config: dict[str, Any]
    step: int = 0
    data: dict[str, Any] = field(default_factory=dict)
    num_samples: int | None = None
    processes: int | None = None
    threads: int | None = None
    seconds_per_step: float | None = None
    metrics: dict[str, Any] | None = None
    ddpm: str | None = None
    came: dict[str, Any] | None = None
    average: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``config.json``."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        data = values.pop("data")
        return {**{name: v for name, v in values.items() if v is not None}, **data}

    @classmethod
    def from_json(cls, content: Any) -> CheckpointMetadata:
        """Return the metadata of a file, whose config is migrated; unknown keys are ignored.

        Raises:
            KeyError, TypeError, ValueError: the content is not the metadata of a checkpoint.
        """
        names = {each.name for each in fields(cls)} - {"data"}
        values = {name: content[name] for name in names if name in content}
        values["data"] = {name: content[name] for name in _DATA if name in content}
        if not isinstance(content["config"], dict) or not isinstance(content["step"], int):
            raise ValueError("config and step are not a mapping and an integer")
        return cls(**{**values, "config": migrate(content["config"])})


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk whose files match its manifest.

    Attributes:
        folder: its path.
        metadata: content of ``config.json``.
    """

    folder: Path
    metadata: CheckpointMetadata

    @property
    def step(self) -> int:
        """Number of optimizer steps."""
        return self.metadata.step

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config of the run, as plain data: nothing in it is evaluated."""
        return self.metadata.config

    @property
    def run(self) -> Path:
        """The run folder of the checkpoint, or its parent folder if it was moved out of a run."""
        inside = self.folder.parent.name == FOLDER
        return self.folder.parent.parent if inside else self.folder.parent

    def weights(self, which: str) -> dict[str, Tensor]:
        """Return the state dict of the ``raw`` or the ``ema`` weights, on the CPU.

        Raises:
            ConfigError: the file is damaged, or contains values that are not finite.
        """
        try:
            tensors = load_tensors(self.folder / WEIGHTS[which])
        except (safetensors.SafetensorError, ValueError) as error:
            raise damaged(self.folder, f"{WEIGHTS[which]} cannot be read") from error
        for name, value in tensors.items():
            wrong = value.numel() - int(torch.isfinite(value).sum())
            if wrong:
                reason = f"{wrong} of {value.numel()} values of {name} are NaN or infinite"
                raise damaged(self.folder, f"{WEIGHTS[which]}: {reason}")
        return tensors

    def state(self) -> dict[str, Any]:
        """Return the state of optimizer and counters, on the CPU; loaded with ``weights_only``.

        Raises:
            ConfigError: the file is damaged, or contains other objects.
        """
        try:
            with warnings.catch_warnings(action="ignore"):
                state = torch.load(self.folder / STATE, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            if is_out_of_memory(error):
                raise
            reason = f"{STATE} contains objects that weights_only loading rejects"
            raise damaged(self.folder, reason) from error
        if not isinstance(state, dict):
            raise damaged(self.folder, f"{STATE} is not the state of a training")
        return state


def save(
    folder: Path,
    metadata: CheckpointMetadata,
    *,
    raw: dict[str, Tensor],
    ema: dict[str, Tensor],
    state: dict[str, Any],
) -> Path:
    """Write a checkpoint of ``metadata.step`` into ``folder`` and return its path.

    An existing checkpoint of this step is replaced only when the new one is complete.

    Args:
        folder: parent folder of the checkpoints.
        metadata: content of ``config.json``.
        raw: state dict of the weights.
        ema: state dict of the averaged weights.
        state: content of ``state.pt``.

    Raises:
        NotFiniteError: weights that are not finite; nothing is written.
        ConfigError: the disk cannot be written; no partial files remain.
    """
    final = place(folder, metadata.step)
    for which, tensors in (("raw", raw), ("ema", ema)):
        _require_finite(tensors, which, final)
    aside = folder / f".tmp-{final.name}-{os.getpid()}"
    try:
        shutil.rmtree(aside, ignore_errors=True)  # of a crash: in a container, process ids repeat
        aside.mkdir(parents=True)
        text = json.dumps(metadata.to_json(), indent=1)
        (aside / CONFIG).write_text(text, encoding="utf-8")
        for which, tensors in (("raw", raw), ("ema", ema)):
            flat = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
            safetensors.torch.save_file(flat, aside / WEIGHTS[which])
            set_usual_mode(aside / WEIGHTS[which])
        torch.save(state, aside / STATE)
        files = {path.name: _fingerprint(path) for path in sorted(aside.iterdir())}
        manifest = {"format": FORMAT, "files": files}
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in [*aside.iterdir(), aside]:
            sync(path)
        _put_in_place(aside, final)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        problem = f"cannot be written ({free_space(folder)}): {error}"
        raise ConfigError("out", str(final), problem) from error
    return final


def state_without_training(step: int) -> dict[str, Any]:
    """Return the content of ``state.pt`` for weights of a step, with a new optimizer."""
    return {
        "step": step,
        "num_updates": 0,  # the learning rate of a new optimizer warms up
        "optimizer": None,
        "ema": {"step": max(step, 1_000_000), "initted": 1},  # past the warm-up
        "timesteps": None,
        "scaler": None,
    }


class NotFiniteError(ConfigError):
    """Weights that contain infinities or NaN; another attempt to write them cannot help."""


def _require_finite(tensors: dict[str, Tensor], which: str, final: Path) -> None:
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            problem = (
                f"is not written: {name} of the {which} weights is not finite; resume from the "
                "previous checkpoint with a lower trainer.lr or trainer.precision=bf16 or no"
            )
            raise NotFiniteError("out", str(final), problem)


def load(folder: Path, *, whole: bool = True) -> Checkpoint:
    """Read a checkpoint folder, and compare every file with the manifest.

    Args:
        folder: the checkpoint folder.
        whole: False ignores ``state.pt``, which only resuming needs.

    Raises:
        ConfigError: the checkpoint has another format, is incomplete, or is damaged.
    """
    try:
        manifest = read_json(folder / MANIFEST)
        version, files = manifest["format"], dict(manifest["files"])
    except FileNotFoundError as error:
        raise damaged(folder, f"it has no {MANIFEST}") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(folder, f"its {MANIFEST} cannot be read") from error
    if version != FORMAT:
        problem = f"has format {version}, but this version of ddpm reads format {FORMAT}"
        raise ConfigError("ckpt", str(folder), problem, "use the version of ddpm that wrote it")
    for name in (CONFIG, *([STATE] if whole else []), *WEIGHTS.values()):
        if not (folder / name).is_file() or name not in files:
            raise damaged(folder, f"{name} is missing")
        if _fingerprint(folder / name) != files[name]:
            raise damaged(folder, f"{name} is not what was written")
    return Checkpoint(folder, read_metadata(folder))


def read_metadata(folder: Path) -> CheckpointMetadata:
    """Return the metadata of a checkpoint folder, without checking the manifest.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        return CheckpointMetadata.from_json(read_json(folder / CONFIG))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(folder, f"{CONFIG} cannot be read") from error


def newest(run: Path, warn: Callable[[str], None], *, whole: bool = True) -> Checkpoint | None:
    """Return the newest valid checkpoint of a run folder, or None if it has no checkpoints.

    Args:
        run: the run folder.
        warn: called with a message per damaged checkpoint that is skipped.
        whole: see :func:`load`.

    Raises:
        ConfigError: all checkpoints are damaged.
    """
    folders = listed(run)
    for folder in folders:
        try:
            return load(folder, whole=whole)
        except ConfigError as error:
            if folder == folders[-1]:
                raise
            warn(f"{folder}: {error.problem}; using the previous one")
    return None


def find(path: str, warn: Callable[[str], None]) -> Checkpoint:
    """Return the checkpoint at a path; ``state.pt`` is ignored.

    Args:
        path: a run folder, a checkpoint folder, or a link to one, such as ``latest`` or ``best``;
            or ``hf://owner/name``, which is downloaded into ``outputs/owner--name``.
        warn: see :func:`newest`.

    Raises:
        ConfigError: no checkpoint was found, or it is damaged.
    """
    folder = located(path)
    if is_checkpoint(folder):
        return load(folder, whole=False)
    checkpoint = newest(folder, warn, whole=False)
    if checkpoint is None:  # deleted meanwhile
        raise no_checkpoint(path)
    return checkpoint


def read_json(path: Path) -> Any:
    """Return the content of a JSON file of a checkpoint.

    Raises:
        ValueError: the file is larger than any that ddpm writes, or is not JSON.
    """
    if path.stat().st_size > MAX_HEADER_BYTES:
        raise ValueError(f"{path} is too large")
    return json.loads(path.read_text(encoding="utf-8"))


def damaged(folder: Path, reason: str) -> ConfigError:
    """Return the error of a checkpoint that cannot be used."""
    return ConfigError("ckpt", str(folder), f"is damaged: {reason}", "use another checkpoint")


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _put_in_place(aside: Path, final: Path) -> None:
    if final.exists():
        stale = final.with_name(f".tmp-stale-{final.name}-{os.getpid()}")
        shutil.rmtree(stale, ignore_errors=True)
        final.rename(stale)
        try:
            aside.rename(final)
        except OSError:
            stale.rename(final)
            raise
        shutil.rmtree(stale, ignore_errors=True)
    else:
        aside.rename(final)
    sync(final.parent)
