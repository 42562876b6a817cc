"""Experiment trackers beside ``metrics.jsonl``: what is logged, shown by other people's tools."""

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
from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker
from PIL import Image

from ddpm.errors import ConfigError, did_you_mean, render
from ddpm.files import replacing
from ddpm.nested import flat
from ddpm.training.options import Options, option

# Each is the name of its package too.
INSTALL = {
    "tensorboard": "pip install 'ddpm[tensorboard]'",
    "trackio": "pip install trackio",
    "wandb": "pip install wandb",
}


@dataclass(frozen=True, kw_only=True)
class TrackerOptions(Options):
    """Options of experiment trackers.

    Attributes:
        trackers: names of experiment trackers to log to, beside metrics.jsonl: ``tensorboard``,
            ``trackio``, ``wandb``.
    """

    trackers: tuple[str, ...] = option((), free=True)

    def _validate(self) -> None:
        Trackers(self.trackers)


class Trackers:
    """Some trackers as one, which never stop a run: one that fails is switched off with a warning.

    Nothing is logged before :meth:`start`, after :meth:`finish`, or on a process that is not the
    main one.

    Args:
        names: of ``tensorboard``, ``trackio`` and ``wandb``.

    Raises:
        ConfigError: an unknown name, or a package that is not installed; its key is ``trackers``.
    """

    def __init__(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in INSTALL:
                near = did_you_mean(name, INSTALL)
                problem = f"there is no tracker {name}{near}"
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
        """Begin, or go on where a run is resumed.

        Args:
            project: what the run is shown under.
            run: its name.
            folder: of the run, made already.
            config: nested, as plain data.
            step: optimizer steps that were done before.
            main: whether this is the main process.
            warn: is given a line for each tracker that fails, then and later.
        """
        self._warn = warn
        begun = _Begun(project, run, folder, flat(config), step)
        for name in self.names if main else ():
            with self._watched(name), _nothing_asked():
                self._running[name] = _KINDS[name](begun)

    def log(self, record: Mapping[str, float | int | None], step: int) -> None:
        """Log the numbers of a record; what is None, and the step itself, are left out."""
        numbers = {k: v for k, v in record.items() if v is not None and k != "step"}
        for name, tracker in list(self._running.items()):
            with self._watched(name):
                tracker.log(numbers, step)

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        """Log a picture, such as a grid of samples."""
        for tracker_name, tracker in list(self._running.items()):
            with self._watched(tracker_name):
                tracker.picture(name, image.convert("RGB"), step)

    def finish(self) -> None:
        """Close all; they may wait until what is left has been sent."""
        for name, tracker in list(self._running.items()):
            with self._watched(name):
                tracker.finish()
        self._running.clear()

    @contextmanager
    def _watched(self, name: str) -> Iterator[None]:
        """Switch the tracker off if what is done here fails."""
        try:
            yield
        except Exception as error:  # of any kind: it is somebody else's code, and only looks on
            self._running.pop(name, None)
            told = " ".join(f"{type(error).__name__}: {error}".split())
            self._warn(f"the tracker {name} is switched off: {told}")


@dataclass(frozen=True)
class _Begun:
    """The run that a tracker starts with; see :meth:`Trackers.start`."""

    project: str
    run: str
    folder: Path
    config: dict[str, Any]
    step: int


class _Tracker(Protocol):
    """One tracker; starts when it is made, and may raise anything."""

    def __init__(self, begun: _Begun) -> None: ...
    def log(self, numbers: dict[str, float | int], step: int) -> None: ...
    def picture(self, name: str, image: Image.Image, step: int) -> None: ...
    def finish(self) -> None: ...


class _TensorBoard:
    """Event files in ``<run folder>/tensorboard``.

    The options are a text there. (As TensorBoard's hyperparameters, they would become a run of
    their own in a folder further down.)
    """

    def __init__(self, begun: _Begun) -> None:
        first = begun.step + 1  # what an earlier process logged from here on comes once more
        self.tracker = TensorBoardTracker("tensorboard", begun.folder, purge_step=first)
        _let_writers_die_silently()
        self.tracker.start()
        lines = [f"    {key}={render(value)}" for key, value in begun.config.items()]
        self.tracker.log({"config": "\n".join(lines)}, step=first)

    def log(self, numbers: dict[str, float | int], step: int) -> None:
        self.tracker.log(numbers, step=step)

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        self.tracker.log_images({name: np.asarray(image)[None]}, step=step, dataformats="NHWC")
        self.tracker.tracker.flush()

    def finish(self) -> None:
        self.tracker.finish()


class _Wandb:
    """A run of wandb, the same whenever the run of this folder goes on.

    Steps that an earlier process logged there stay as they are; wandb takes no step twice.
    """

    def __init__(self, begun: _Begun) -> None:
        # Without a network it would wait for ever to send the rest; that stays on the disk.
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", "600")
        known, _ = _identity(begun.folder, "wandb")
        options = {"name": begun.run, "id": known, "resume": "allow", "dir": str(begun.folder)}
        self.tracker = WandBTracker(begun.project, **options)
        self.tracker.start()
        self.tracker.store_init_configuration(begun.config)
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
    """A run of trackio under the run's name, the same whenever the run of this folder goes on.

    Steps that an earlier process logged there stay as they are and are not logged again.
    """

    def __init__(self, begun: _Begun) -> None:
        _, went_before = _identity(begun.folder, "trackio")
        # The name may be that of an older run, whose folder was removed: not to be gone on with.
        resume = "allow" if went_before else "never"
        options = {"name": begun.run, "resume": resume, "config": begun.config}
        self.tracker = TrackioTracker(begun.project, **options)
        self.tracker.start()
        # Has no public name. Without it, points would be there twice, and no worse.
        self.first = getattr(self.tracker.tracker, "_next_step", 0) if went_before else 0

    def log(self, numbers: dict[str, Any], step: int) -> None:
        if step >= self.first:
            self.tracker.log(numbers, step=step)

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self.log({name: trackio.Image(image)}, step)

    def finish(self) -> None:
        self.tracker.finish()


_KINDS: dict[str, type[_Tracker]] = {
    "tensorboard": _TensorBoard,
    "trackio": _Trackio,
    "wandb": _Wandb,
}


def _installed(package: str) -> bool:
    """Whether a package can be imported; a mere folder of that name in the path is none."""
    try:
        found = find_spec(package)
    except (ImportError, ValueError):
        return False
    return found is not None and found.origin is not None


def _identity(folder: Path, name: str) -> tuple[str, bool]:
    """What a tracker knows the run of this folder by, and whether it knew it before.

    It is not the run's name, which may be used again, but drawn once and kept in the folder.
    """
    file = folder / f"{name}-id"
    kept = file.read_text(encoding="utf-8").strip() if file.exists() else ""
    if kept:
        return kept, True
    drawn = secrets.token_hex(8)
    with replacing(file) as aside:
        aside.write_text(drawn + "\n", encoding="utf-8")
    return drawn, False


@contextmanager
def _nothing_asked() -> Iterator[None]:
    """Hide the terminal: wandb would ask there for an account, and training would wait."""
    before, sys.stdin = sys.stdin, io.StringIO()
    try:
        yield
    finally:
        sys.stdin = before


def _let_writers_die_silently() -> None:
    """Have TensorBoard's writing thread fail without a traceback.

    The error comes to whoever logs next, and is told there.
    """
    before = threading.excepthook
    if getattr(before, "spares_tensorboard", False):
        return

    def told(error: threading.ExceptHookArgs) -> None:
        if not type(error.thread).__module__.startswith("tensorboard."):
            before(error)

    told.spares_tensorboard = True  # pyright: ignore[reportFunctionMemberAccess]
    threading.excepthook = told
