"""Sweeps of trainings: a folder and a record per job, and a table of all jobs.

Launchers may run the jobs in other processes, so that results are read from the folders of the
jobs. The folder of the sweep is fixed on the command line before Hydra composes a config, so that
all processes use the same one.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from hydra.experimental.callback import Callback
from omegaconf import read_write

from ddpm.cli import invocation, sweep_options
from ddpm.console import info, note, warn
from ddpm.errors import ConfigError, Stopped, require
from ddpm.files import expand, replacing
from ddpm.outputs import JOB_RECORD
from ddpm.runs import sweep_table as table
from ddpm.signals import SIGNALS, STOPPED_STATUS, pending


@dataclass
class _SweepState:
    """The sweep that this process started.

    Attributes:
        folder: of the sweep; None without one.
        handlers: signal handlers from before the sweep.
        stopping: True after a signal was forwarded to the jobs.
    """

    folder: Path | None = None
    handlers: dict[signal.Signals, Any] = field(default_factory=dict)
    stopping: bool = False


_state = _SweepState()  # global, because Hydra creates SweepStart itself


def with_sweep_dir(config_name: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments, followed by the folder of the sweep if they start one.

    The folder is ``<out>/multirun/<name>``; a missing name is replaced by the time and four random
    digits.

    Raises:
        ConfigError: several values of ``out`` or ``name``, or other names for the jobs.
    """
    unchanged = list(arguments)
    if not has_table(config_name) or not invocation.starts_sweep(unchanged):
        return unchanged
    typed = invocation.parse(unchanged)
    for key, problem in (
        ("out", "is the parent folder of the whole sweep; set one value"),
        ("name", "names the whole sweep, whose jobs are numbered below it; set one value"),
    ):
        if key in typed and typed[key].is_sweep_override():
            raise ConfigError(key, str(typed[key].input_line).partition("=")[2], problem)
    problem = "the folder of a job is its number; leave it out, or set hydra.sweep.dir="
    require("hydra.sweep.subdir" not in typed, "hydra.sweep.subdir", None, problem)
    if "hydra.sweep.dir" in typed:
        return unchanged
    name = typed["name"].value() if "name" in typed else None
    # Each job rejects a name that is not a plain folder; the sweep must not create that folder.
    plain = name is not None and str(name) not in ("", "..") and Path(str(name)).name == str(name)
    folder = "${name}" if plain else f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    return [*unchanged, f"hydra.sweep.dir=${{out}}/multirun/{folder}"]


def prepare(config_name: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments, changed for a sweep over a config group if they start one."""
    if not invocation.starts_sweep(arguments):
        return list(arguments)
    parsed = list(invocation.parse(arguments).values())
    return sweep_options.prepare(config_name, arguments, parsed)


def has_table(config_name: str) -> bool:
    """Return True if a sweep of this command has a table of results."""
    return config_name == "train"


class SweepStart(Callback):
    """Callback of Hydra at the start of a sweep: deletes the job records of an earlier one."""

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Store the folder of the sweep for :func:`finish`, and install signal handlers."""
        folder = expand("hydra.sweep.dir", config.hydra.sweep.dir)
        with read_write(config):
            config.hydra.sweep.dir = folder
        _state.folder = Path(folder)
        for record in table.records(_state.folder):
            if table.is_record(record):
                record.unlink()
        in_process = str(config.hydra.launcher.get("_target_")).endswith(".BasicLauncher")
        if not in_process and threading.current_thread() is threading.main_thread():
            handled = [each for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN]
            _state.handlers = {each: signal.signal(each, _forward) for each in handled}


def _forward(number: int, frame: FrameType | None) -> None:
    """Forward a signal to the jobs in other processes of this machine, which stop by themselves."""
    jobs = psutil.Process().children()
    for job in jobs:
        with suppress(psutil.NoSuchProcess):
            job.send_signal(signal.SIGTERM)  # the one that launchers forward
    _state.stopping = _state.stopping or bool(jobs)
    handler = _state.handlers[signal.Signals(number)]
    if not jobs and callable(handler):  # the scheduler signals jobs on other machines
        handler(number, frame)


def is_stopping() -> bool:
    """Return True if the jobs were signalled to stop, so that a launcher may miss results."""
    return _state.stopping


def record_job(
    config_name: str, config: Any, starter: int, work: Callable[[], float | None]
) -> float | None:
    """Run a job; in a sweep of trainings, record its result in ``job.json`` in its folder.

    In such a sweep unexpected errors are printed and not raised, so that the other jobs run. After
    a job was stopped, no other job starts.

    Args:
        config_name: name of the command.
        config: config of the job.
        starter: id of the process that started the sweep. Others do not raise Stopped, since the
            launcher would kill jobs that are saving.
        work: function that runs the job.

    Raises:
        ConfigError: of the job.
        Stopped: in the process that started the sweep.
    """
    place = invocation.job_folder() if has_table(config_name) else None
    if place is None:
        return work()
    received = pending()  # at the end of the previous job
    if received is not None and os.getpid() == starter:
        raise Stopped(f"stopped by {received}")
    try:
        with _job_record(place, config):
            return work()
    except ConfigError:
        raise
    except Exception:
        traceback.print_exc()
    except Stopped as stopped:
        if os.getpid() == starter:
            raise
        note(f"job {place.name}: {str(stopped) or 'stopped'}")
    return None


@contextmanager
def _job_record(place: Path, config: Any) -> Iterator[None]:
    """Write ``job.json`` at the start and at the end of a job."""
    if os.environ.get("RANK", "0") != "0":  # the main process of a job writes
        yield
        return
    record = {
        "job": int(place.name),
        "overrides": invocation.overrides(),
        "folder": str(config.resume or place),
        "status": "running",
        "error": None,
    }
    begun = False
    try:
        others = [table.read(path) for path in table.records(place.parent)]
        if any(other.get("status") == "stopped" for other in others):
            raise Stopped("another job of the sweep was stopped: this one is not started")
        path = place / JOB_RECORD
        problem = "is not the record of a job; choose another folder, or move it away"
        mine = not os.path.lexists(path) or table.is_record(path)
        require(mine, "out", str(path), problem)
        _write(path, record)
        begun = True
        yield
        record["status"] = "done"
    except BaseException as error:
        stopped = isinstance(error, Stopped | KeyboardInterrupt)
        record |= {"status": "stopped" if stopped else "failed", "error": _line(error)}
        raise
    finally:
        if begun or not os.path.lexists(place / JOB_RECORD):
            _write(place / JOB_RECORD, record)


def _line(error: BaseException) -> str:
    """Return an error in one line, with the name of its class unless it is one of ours."""
    line = " ".join(str(error).split())
    explains = isinstance(error, ConfigError | Stopped)
    return line if explains else f"{type(error).__name__}: {line}".removesuffix(": ")


def _write(path: Path, record: dict[str, Any]) -> None:
    try:
        with replacing(path) as aside:
            aside.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
    except ConfigError as error:  # such as a full disk, which the job reports as well
        warn(str(error))


def finish() -> int:
    """Write and print the table of the sweep that this process started, if any.

    Returns:
        The exit status: 75 if a job was stopped, else 1 if one failed, else 0.
    """
    global _state
    state, _state = _state, _SweepState()
    for each, handler in state.handlers.items():
        signal.signal(each, handler)
    rows = [] if state.folder is None else table.jobs(state.folder)
    if state.folder is None or not rows:
        return 0
    written = table.write(rows, state.folder)
    info("\n".join([table.summary(rows), *written]))
    results = {job.status for job in rows}
    # A job that is killed while it stops leaves no record of that.
    stopped = "stopped" in results or (state.stopping and "failed" in results)
    return STOPPED_STATUS if stopped else int("failed" in results)
