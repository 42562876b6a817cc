"""Snapshots of the power-function averages of a run, for ``ddpm-average``.

``snapshots/step-00001000.safetensors`` in the folder of a run has all averages of that step: the
tensor ``0/out.weight`` is of the first of them. Tensors without an average, such as buffers, have
the name ``rest/...``. The metadata contain the profiles, and a hash of the tensors.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ddpm.errors import ConfigError
from ddpm.files import MAX_HEADER_BYTES, UNREADABLE, load_tensors, replacing, set_usual_mode
from ddpm.training.due import is_due
from ddpm.training.power_profile import Profile
from ddpm.training.run import Run
from ddpm.training.trainer import Trainer

FOLDER = "snapshots"
_FORMAT = 1
_METADATA, _REST = "ddpm", "rest"
_NAME = re.compile(r"step-(\d{8,})\.safetensors")


@dataclass(frozen=True)
class Snapshot:
    """File with the averages of a step.

    Attributes:
        path: its path.
        step: number of optimizer steps.
        profiles: of the averages, in their order.
        sha256: hash of the tensors.
    """

    path: Path
    step: int
    profiles: tuple[Profile, ...]
    sha256: str

    def tensors(self) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return the parameters by name, per average, and the tensors without an average.

        Raises:
            ConfigError: the file is damaged, or contains values that are not finite.
        """
        try:
            tensors = load_tensors(self.path)
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(self.path, "it cannot be read") from error
        if _digest(tensors) != self.sha256:
            raise _damaged(self.path, "it is not what was written")
        groups: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if not bool(torch.isfinite(value).all()):
                raise _damaged(self.path, f"{key} contains values that are NaN or infinite")
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = value
        averages = [groups.get(str(index), {}) for index in range(len(self.profiles))]
        return averages, groups.get(_REST, {})


def place(run: Path, step: int) -> Path:
    """Return the path of the snapshot of a step."""
    return run / FOLDER / f"step-{step:08d}.safetensors"


def listed(run: Path) -> dict[int, Path]:
    """Return the paths of the snapshots of a run by step, in ascending order."""
    folder = run / FOLDER
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    matches = [match for name in names if (match := _NAME.fullmatch(name))]
    return {int(each[1]): folder / each[0] for each in sorted(matches, key=lambda m: int(m[1]))}


def read(path: Path) -> Snapshot:
    """Return a snapshot without its tensors.

    Raises:
        ConfigError: the file is damaged, or has another format.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, MAX_HEADER_BYTES)))
        content = json.loads(header["__metadata__"][_METADATA])
        if content["format"] != _FORMAT:
            problem = f"has format {content['format']}, but this version of ddpm reads {_FORMAT}"
            raise ConfigError("ckpt", str(path), problem, "use the version of ddpm that wrote it")
        profiles = tuple(
            Profile(float(sigma_rel), int(updates), int(start))
            for sigma_rel, updates, start in content["profiles"]
        )
        return Snapshot(path, int(content["step"]), profiles, str(content["sha256"]))
    except UNREADABLE as error:
        raise _damaged(path, "its metadata cannot be read") from error


def write(
    path: Path,
    step: int,
    profiles: list[Profile],
    averages: list[dict[str, Tensor]],
    rest: Mapping[str, Tensor],
) -> None:
    """Write a snapshot; an existing one is replaced when the new one is complete.

    Args:
        path: see :func:`place`.
        step: number of optimizer steps.
        profiles: of the averages.
        averages: parameters by name, per average, on the CPU.
        rest: tensors without an average.

    Raises:
        ConfigError: (key ``path``) the disk cannot be written; no partial file remains.
    """
    groups = {**{str(index): each for index, each in enumerate(averages)}, _REST: rest}
    tensors = {f"{group}/{name}": v for group, each in groups.items() for name, v in each.items()}
    shapes = [list(profile) for profile in profiles]
    content = {"format": _FORMAT, "step": step, "profiles": shapes, "sha256": _digest(tensors)}
    try:
        with replacing(path, durable=True) as aside:
            safetensors.torch.save_file(tensors, aside, {_METADATA: json.dumps(content)})
            set_usual_mode(aside)
    except SafetensorError as error:
        raise ConfigError("path", str(path), f"cannot be written: {error}") from error


def rewind(run: Path, step: int) -> None:
    """Delete the snapshots after ``step``, which will be computed again, and partial ones."""
    for number, path in listed(run).items():
        if number > step:
            path.unlink(missing_ok=True)
    for leftover in (run / FOLDER).glob(".step-*.safetensors.*.tmp"):
        leftover.unlink(missing_ok=True)


class SnapshotWriter:
    """Writes the snapshots of a training on a thread; only the main process writes.

    A failure to write is a warning: averages can be computed from the other snapshots.

    Args:
        trainer: has the averages.
        run: the run folder.
    """

    def __init__(self, trainer: Trainer, run: Run) -> None:
        self.trainer, self.run = trainer, run
        self._thread: threading.Thread | None = None

    def is_due(self) -> bool:
        """Return True if a snapshot is due at this step, equal on every process."""
        every = self.trainer.options.snapshot_interval(self.trainer.max_steps)
        return is_due(every, self.trainer.step, self.trainer.max_steps)

    def start(self) -> None:
        """Copy the averages, and start to write their snapshot."""
        trainer = self.trainer
        profiles = trainer.posthoc.profiles
        began = all(each.updates for each in profiles)  # not if every step was skipped
        if not trainer.accelerator.is_main_process or not began:
            return
        self.wait()
        averages = [_copied(each) for each in trainer.posthoc.named()]
        network = trainer.ema.model.state_dict()
        rest = _copied({name: v for name, v in network.items() if name not in averages[0]})
        content = trainer.step, profiles, averages, rest
        self._thread = threading.Thread(target=self._write, args=content, name="snapshot")
        self._thread.start()

    def complete(self) -> None:
        """Write the snapshot of this step if it is due and missing, as after a kill."""
        if self.is_due() and not place(self.run.path, self.trainer.step).exists():
            self.start()

    def wait(self) -> None:
        """Wait until the current snapshot is written or has failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, step: int, *content: Any) -> None:
        with self.run.warn_on_io_error(FOLDER):
            write(place(self.run.path, step), step, *content)


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies in memory of the CPU."""
    return {
        name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()
    }


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of tensors and their names."""
    result = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous().reshape(-1)
        result.update(f"{name} {value.dtype} {tuple(tensors[name].shape)}\n".encode())
        result.update(value.view(torch.uint8).numpy().data)
    return result.hexdigest()


def _damaged(path: Path, reason: str) -> ConfigError:
    remedy = "move it away: the other snapshots can be used without it"
    return ConfigError("ckpt", str(path), f"is damaged: {reason}", remedy)
