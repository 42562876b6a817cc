"""Run folders, which contain the results of runs."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from ddpm.console import warn
from ddpm.errors import ConfigError
from ddpm.files import free_space, missing_folders, replacing
from ddpm.outputs import unwritable
from ddpm.streams import plot_text
from ddpm.training.trackers import Trackers

CONFIG = "config.yaml"
_FILES = (
    "metrics.jsonl", "events.jsonl", "loss.png", "samples/step-*", "checkpoints/best",
    "snapshots/step-*",
)  # fmt: skip


class Run:
    """One run folder: its config, ``metrics.jsonl``, ``events.jsonl``, samples and checkpoints.

    Args:
        path: the folder; created on first use.
        trackers: experiment trackers to log to as well.
        warnings: a list that new warnings are appended to; they are moved to ``events.jsonl``.
    """

    def __init__(
        self,
        path: Path,
        trackers: Trackers | None = None,
        warnings: list[str] | None = None,
    ) -> None:
        self.path, self.trackers = path, Trackers([]) if trackers is None else trackers
        self.samples = path / "samples"
        self.config_file = path / CONFIG
        self.metrics_file = path / "metrics.jsonl"
        self.events_file = path / "events.jsonl"
        self.began = False  # True once this process has written an event
        self._warnings = [] if warnings is None else warnings
        self._unwritable: set[str] = set()

    def create(self, config_yaml: str, latest: Path | None = None) -> None:
        """Create the folder with its config, and point the link ``latest`` to it.

        Raises:
            ConfigError: the folder cannot be written.
        """
        try:
            self.samples.mkdir(parents=True, exist_ok=True)
            with replacing(self.config_file, durable=True) as aside:
                aside.write_text(config_yaml, encoding="utf-8")
            if latest is not None:
                point(latest, self.path)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def foreign(self) -> list[str]:
        """Return the files in the folder of a new run that the run would overwrite."""
        files = [path for name in _FILES for path in sorted(self.path.glob(name))]
        samples = self.samples
        files += [samples] if os.path.lexists(samples) and not samples.is_dir() else []
        return [path.relative_to(self.path).as_posix() for path in files]

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``, and log it to the trackers."""
        with self.warn_on_io_error("metrics.jsonl"):
            _append(self.metrics_file, record)
        self._write_warnings(record["step"])
        self.trackers.log(record, record["step"])

    def picture(self, name: str, step: int) -> Path:
        """Return the path of the picture that :meth:`show` saves."""
        return self.path / name / f"step-{step:08d}.png"

    def show(self, name: str, picture: Image.Image, step: int) -> Path:
        """Save and log a picture as ``name/step-00001000.png``; return its path."""
        path = self.picture(name, step)
        with replacing(path) as aside:
            picture.save(aside, format="png")
        self.trackers.picture(name, picture, step)
        return path

    def start_trackers(self, config: Mapping[str, Any], step: int) -> None:
        """Start the trackers, or resume them after ``step``."""
        names = {"project": "ddpm", "run": self.path.name}
        self.trackers.start(
            **names, folder=self.path, config=config, step=step, main=True, warn=warn
        )

    def log_evaluation(
        self, step: int, numbers: Mapping[str, float | None], folder: str | None = None
    ) -> None:
        """Append the numbers of an evaluation to ``metrics.jsonl``.

        Args:
            step: step of the evaluated weights.
            numbers: values by name.
            folder: the folder of the evaluation; None for one during training, which is logged to
                the trackers as well.
        """
        source = {"folder": folder} if folder else {}
        with self.warn_on_io_error("metrics.jsonl"):
            _append(self.metrics_file, {"step": step, "evaluation": dict(numbers), **source})
        if folder is None:
            self.trackers.log({f"eval/{name}": value for name, value in numbers.items()}, step)

    def event(self, name: str, step: int, **details: Any) -> None:
        """Append an event with the current time to ``events.jsonl``."""
        if self.began:
            self._write_warnings(step)
        self.began = True
        self._write_event(name, step, **details)

    def _write_warnings(self, step: int) -> None:
        while self._warnings:
            self._write_event("warning", step, message=self._warnings.pop(0))

    def _write_event(self, name: str, step: int, **details: Any) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        with self.warn_on_io_error("events.jsonl"):
            _append(self.events_file, {"time": now, "event": name, "step": step, **details})

    @contextmanager
    def warn_on_io_error(self, what: str) -> Iterator[None]:
        """Context manager that turns errors of writing a file into a warning, once per file.

        Args:
            what: name of the file, for the warning.
        """
        try:
            yield
        except (OSError, ConfigError) as error:
            if what not in self._unwritable:
                reason = error.strerror if isinstance(error, OSError) else error.message
                space = free_space(self.path)
                warn(f"{self.path}: {what} cannot be written ({space}): {reason}; continuing")
            self._unwritable.add(what)

    def last_loss(self) -> float | None:
        """Return the last logged loss, or None."""
        return next((r["loss"] for r in reversed(self.metrics()) if "loss" in r), None)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the records of ``metrics.jsonl``, oldest first, without incomplete lines."""
        records = []
        if self.metrics_file.exists():
            for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
                try:
                    records.append(json.loads(line))
                except ValueError:
                    continue
        return records

    def has_evaluation(self, step: int) -> bool:
        """Return True if an evaluation during training at this step was logged."""
        return any(
            record["step"] == step and "evaluation" in record and "folder" not in record
            for record in self.metrics()
        )

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Return (step, value) pairs by name: the loss, and numbers evaluated during training."""
        curves: dict[str, list[tuple[int, float]]] = {"loss": []}
        for record in self.metrics():
            numbers = record if "loss" in record else record.get("evaluation", {})
            names = ("loss",) if "loss" in record else numbers
            if "folder" not in record:
                for name in names:
                    if numbers[name] is not None:
                        curves.setdefault(name, []).append((record["step"], numbers[name]))
        return curves

    def rewind(self, step: int) -> None:
        """Remove the records after ``step``, which will be computed and logged again."""
        records = [record for record in self.metrics() if record["step"] <= step]
        with replacing(self.metrics_file, durable=True) as aside:
            aside.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")

    def plot(self) -> Path | None:
        """Draw the loss over the steps; return the path of ``loss.png``, or None without losses."""
        records = [record for record in self.metrics() if "loss" in record]
        if not records:
            return None
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4))  # layout="constrained" would draw twice, 0.2 s each
        axes = figure.subplots(
            gridspec_kw={"left": 0.15, "right": 0.95, "bottom": 0.13, "top": 0.92}
        )
        steps = [record["step"] for record in records]
        marker = "o" if len(records) == 1 else ""
        for quarter in range(4):
            name = f"loss_q{quarter}"
            points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
            label = f"t in quarter {quarter + 1} of 4"
            curve = zip(*points, strict=True) if points else ([], [])
            axes.plot(*curve, lw=0.8, alpha=0.6, marker=marker, label=label)
        losses = [record["loss"] for record in records]
        axes.plot(steps, losses, color="black", lw=1.5, marker=marker, label="loss")
        held_out = self.curves().get("val_loss")
        if held_out:
            axes.plot(*zip(*held_out, strict=True), "o--", ms=3, lw=1, label="of held-out data")
        axes.set(
            xlabel="optimizer step",
            ylabel="training loss",
            yscale="log",
            title=plot_text(self.path.name),
        )
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        target = self.path / "loss.png"
        with warnings.catch_warnings(action="ignore"):  # about characters that the font lacks
            figure.savefig(target, dpi=120)
        return target


def _is_link_to_run(latest: Path) -> bool:
    """Return True for a link that ddpm made: relative, to a run or to a deleted folder."""
    if not latest.is_symlink() or os.path.isabs(os.readlink(latest)):
        return False
    return not latest.exists() or (latest / CONFIG).is_file()


def point(latest: Path, folder: Path) -> None:
    """Point the link ``latest`` to a run, unless the user has something else of that name.

    Raises:
        OSError: the link cannot be written.
    """
    if os.path.lexists(latest) and not _is_link_to_run(latest):
        warn(f"{latest} is not a link to a run and is left unchanged; use {folder} instead")
        return
    new = latest.with_name(f".latest-{os.getpid()}")
    new.unlink(missing_ok=True)
    try:
        new.symlink_to(os.path.relpath(folder, latest.parent))
        new.replace(latest)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def appearing(parent: Path) -> Iterator[Path]:
    """Context manager of a hidden folder in ``parent``, for a run that must appear complete.

    The caller renames the folder at the end. On an error it is removed, with the parents that were
    created for it. Folders that killed processes left are removed first.

    Raises:
        ConfigError: (key ``out``) the folder cannot be written.
    """
    missing = missing_folders(parent)
    mine = f".unfinished-{platform.node()}-"
    aside = parent / f"{mine}{os.getpid()}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for stale in parent.iterdir():
            process = stale.name.removeprefix(mine)
            if process != stale.name and process.isdigit() and not psutil.pid_exists(int(process)):
                shutil.rmtree(stale, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        yield aside
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        for each in missing:
            with suppress(OSError):
                each.rmdir()
        if isinstance(error, OSError):
            raise unwritable(parent, error) from error
        if isinstance(error, ConfigError):  # it names files in the folder that was removed
            raise error.renamed("out", str(parent)) from error
        raise


def _append(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record as a line to a file, completely or not at all."""
    line = (json.dumps(record) + "\n").encode()
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise
