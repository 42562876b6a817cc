"""Experiment trackers, which show what is logged to ``metrics.jsonl``."""

from __future__ import annotations

import io
import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from accelerate.tracking import (
    LOGGER_TYPE_TO_CLASS,
    TensorBoardTracker,
    TrackioTracker,
    WandBTracker,
)
from PIL import Image

from ddpm.errors import ConfigError, did_you_mean, render
from ddpm.files import replacing
from ddpm.nested import flat
from ddpm.training.options import Options, option

INSTALL = {
    name: "pip install 'ddpm[tensorboard]'" if name == "tensorboard" else f"pip install {name}"
    for name in sorted(LOGGER_TYPE_TO_CLASS)
}
"""How to install each tracker, by its name, which is also the name of its package."""


@dataclass(frozen=True, kw_only=True)
class TrackerOptions(Options):
    """Options of experiment trackers.

    Attributes:
        trackers: names of experiment trackers to log to as well: ``tensorboard``,
            ``trackio``, ``wandb``, and the others of Accelerate.
    """

    trackers: tuple[str, ...] = option((), free=True)

    def _validate(self) -> None:
        Trackers(self.trackers)


class Trackers:
    """Several trackers; one that fails is switched off with a warning, and the run continues.

    Nothing is logged before :meth:`start`, after :meth:`finish`, or outside the main process.

    Args:
        names: keys of :data:`INSTALL`.

    Raises:
        ConfigError: (key ``trackers``) an unknown name, or a package that is not installed.
    """

    def __init__(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in INSTALL:
                near = did_you_mean(name, INSTALL)
                problem = f"unknown tracker {name}{near}"
                if "did you mean" in near:
                    problem += f" (there are: {', '.join(INSTALL)})"
                raise ConfigError("trackers", names, problem)
            if not _installed(name):
                problem = f"the package {name} is not installed; {INSTALL[name]}"
                raise ConfigError("trackers", names, problem)
        self.names = tuple(dict.fromkeys(names))
        self._running: dict[str, _Tracker] = {}
        self._warn: Callable[[str], None] = print

    def start(
        self,
        *,
        project: str,
        run: str,
        folder: Path,
        config: Mapping[str, Any],
        step: int,
        main: bool,
        warn: Callable[[str], None],
    ) -> None:
        """Start all trackers, or continue their runs when a run is resumed.

        Args:
            project: name of the project.
            run: name of the run.
            folder: the run folder, which exists.
            config: nested config, as plain data.
            step: optimizer steps before this start.
            main: True on the main process.
            warn: called with a message per tracker that fails, also later.
        """
        self._warn = warn
        start = _Start(project, run, folder, flat(config), step)
        for name in self.names if main else ():
            with self._guarded(name), _no_stdin():
                kind = _KINDS.get(name)
                self._running[name] = _Generic(name, start) if kind is None else kind(start)

    def log(self, record: Mapping[str, float | int | None], step: int) -> None:
        """Log the numbers of a record, except the step and those that are None."""
        numbers = {k: v for k, v in record.items() if v is not None and k != "step"}
        for name, tracker in list(self._running.items()):
            with self._guarded(name):
                tracker.log(numbers, step)

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        """Log a picture, such as a grid of samples."""
        for tracker_name, tracker in list(self._running.items()):
            with self._guarded(tracker_name):
                tracker.picture(name, image.convert("RGB"), step)

    def finish(self) -> None:
        """Close all trackers; they may wait until the remaining data are sent."""
        for name, tracker in list(self._running.items()):
            with self._guarded(name):
                tracker.finish()
        self._running.clear()

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Context manager that switches the tracker off, with a warning, on any exception."""
        try:
            yield
        except Exception as error:  # of any type: training does not depend on trackers
            self._running.pop(name, None)
            message = " ".join(f"{type(error).__name__}: {error}".split())
            self._warn(f"the tracker {name} is switched off: {message}")


@dataclass(frozen=True)
class _Start:
    """Arguments of the start of a tracker; see :meth:`Trackers.start`."""

    project: str
    run: str
    folder: Path
    config: dict[str, Any]
    step: int


class _Tracker(Protocol):
    """A tracker; the constructor starts it, and any method may raise any exception."""

    def log(self, numbers: dict[str, float | int], step: int) -> None: ...
    def picture(self, name: str, image: Image.Image, step: int) -> None: ...
    def finish(self) -> None: ...


class _TensorBoard:
    """Event files in ``<run folder>/tensorboard``.

    The options are logged as text: as hyperparameters TensorBoard would show them as a separate
    run.
    """

    def __init__(self, start: _Start) -> None:
        first = start.step + 1  # later steps of an earlier process are logged again
        self.tracker = TensorBoardTracker("tensorboard", start.folder, purge_step=first)
        _silence_writer_thread()
        self.tracker.start()
        lines = [f"    {key}={render(value)}" for key, value in start.config.items()]
        self.tracker.log({"config": "\n".join(lines)}, step=first)

    def log(self, numbers: dict[str, float | int], step: int) -> None:
        self.tracker.log(numbers, step=step)

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        self.tracker.log_images({name: np.asarray(image)[None]}, step=step, dataformats="NHWC")
        self.tracker.tracker.flush()

    def finish(self) -> None:
        self.tracker.finish()


class _Wandb:
    """A run of wandb, which is continued when the run is resumed.

    Steps that an earlier process logged are not changed, since wandb rejects repeated steps.
    """

    def __init__(self, start: _Start) -> None:
        # Without a network wandb would wait forever to send the rest, which stays on the disk.
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", "600")
        run_id, _ = _run_id(start.folder, "wandb")
        options = {"name": start.run, "id": run_id, "resume": "allow", "dir": str(start.folder)}
        self.tracker = WandBTracker(start.project, **options)
        self.tracker.start()
        self.tracker.store_init_configuration(start.config)
        self.first = getattr(self.tracker.tracker, "starting_step", 0)

    def log(self, numbers: dict[str, float | int], step: int) -> None:
        if step >= self.first:
            self.tracker.log(numbers, step=step)

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        if step >= self.first:
            self.tracker.log_images({name: [image]}, step=step)

    def finish(self) -> None:
        self.tracker.finish()


class _Trackio:
    """A run of trackio with the name of the run, which is continued when the run is resumed.

    Steps that an earlier process logged are not changed, and not logged again.
    """

    def __init__(self, start: _Start) -> None:
        _, is_resumed = _run_id(start.folder, "trackio")
        # The name may be that of a deleted run, which must not be continued.
        resume = "allow" if is_resumed else "never"
        options = {"name": start.run, "resume": resume, "config": start.config}
        self.tracker = TrackioTracker(start.project, **options)
        self.tracker.start()
        # A private attribute. Without it points would be logged twice, which is harmless.
        self.first = getattr(self.tracker.tracker, "_next_step", 0) if is_resumed else 0

    def log(self, numbers: dict[str, Any], step: int) -> None:
        if step >= self.first:
            self.tracker.log(numbers, step=step)

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self.log({name: trackio.Image(image)}, step)

    def finish(self) -> None:
        self.tracker.finish()


class _Generic:
    """A tracker of Accelerate without support of its own: options and numbers, no pictures.

    A resumed run is a new run of the tracker.
    """

    def __init__(self, name: str, start: _Start) -> None:
        tracker = LOGGER_TYPE_TO_CLASS[name]
        place = [start.folder] if tracker.requires_logging_directory else []
        self.tracker = tracker(start.project, *place)
        self.tracker.start()
        self.tracker.store_init_configuration({**start.config, "run": start.run})

    def log(self, numbers: dict[str, float | int], step: int) -> None:
        self.tracker.log(numbers, step=step)

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        pass

    def finish(self) -> None:
        self.tracker.finish()


_KINDS: dict[str, Callable[[_Start], _Tracker]] = {
    "tensorboard": _TensorBoard,
    "trackio": _Trackio,
    "wandb": _Wandb,
}


def _installed(package: str) -> bool:
    """Return True if a package can be imported; a mere folder of that name does not count."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


def _run_id(folder: Path, name: str) -> tuple[str, bool]:
    """Return the id of a run in a tracker, and True if the tracker has logged this run before.

    The id is random and stored in the run folder, since the name of a run may be used again.
    """
    file = folder / f"{name}-id"
    stored = file.read_text(encoding="utf-8").strip() if file.exists() else ""
    if stored:
        return stored, True
    run_id = secrets.token_hex(8)
    with replacing(file) as aside:
        aside.write_text(run_id + "\n", encoding="utf-8")
    return run_id, False


@contextmanager
def _no_stdin() -> Iterator[None]:
    """Context manager that hides stdin, where wandb would ask for an account and wait."""
    before, sys.stdin = sys.stdin, io.StringIO()
    try:
        yield
    finally:
        sys.stdin = before


def _silence_writer_thread() -> None:
    """Suppress tracebacks of the writer thread of TensorBoard.

    The next call that logs raises its error.
    """
    before = threading.excepthook
    if getattr(before, "spares_tensorboard", False):
        return

    def hook(error: threading.ExceptHookArgs) -> None:
        if not type(error.thread).__module__.startswith("tensorboard."):
            before(error)

    hook.spares_tensorboard = True  # pyright: ignore[reportFunctionMemberAccess]
    threading.excepthook = hook
