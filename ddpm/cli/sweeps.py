"""Sweeps: a folder for every job, a word in it of how the job ended, and the table of them all.

Launchers may run the jobs in other processes, so what a job did is read from its folder. The
sweep's own folder is fixed on the command line before Hydra composes anything: no clock is asked
twice, and every process sees the same one.
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


class _Own:
    """The sweep that this process started: Hydra calls Begin, and hands nothing back."""

    place: Path | None = None
    before: dict[signal.Signals, Any] = {}
    told = False


_own = _Own()


def placed(config_name: str, arguments: Sequence[str]) -> list[str]:
    """The arguments, with the folder of the sweep behind them if they start one.

    ``<out>/multirun/<name>``, or without a name the time and four random digits in its place.

    Raises:
        ConfigError: ``out`` or ``name`` with several values, or other names for the jobs.
    """
    given = list(arguments)
    if not keeps_table(config_name) or not invocation.starts_sweep(given):
        return given
    known = invocation.parse(given)
    for key, problem in (
        ("out", "is the parent folder of the whole sweep; give one"),
        ("name", "names the whole sweep, whose jobs are numbered below it; give one"),
    ):
        if key in known and known[key].is_sweep_override():
            raise ConfigError(key, str(known[key].input_line).partition("=")[2], problem)
    problem = "the folder of a job is its number; leave it out, or take hydra.sweep.dir="
    require("hydra.sweep.subdir" not in known, "hydra.sweep.subdir", None, problem)
    if "hydra.sweep.dir" in known:
        return given
    name = known["name"].value() if "name" in known else None
    # A name that is no plain folder is refused by each job: the sweep must not follow it.
    plain = name is not None and str(name) not in ("", "..") and Path(str(name)).name == str(name)
    own = "${name}" if plain else f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    return [*given, f"hydra.sweep.dir=${{out}}/multirun/{own}"]


def prepared(config_name: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments, ready for a sweep over a config group if they start one."""
    if not invocation.starts_sweep(arguments):
        return list(arguments)
    parsed = list(invocation.parse(arguments).values())
    return sweep_options.prepared(config_name, arguments, parsed)


def keeps_table(config_name: str) -> bool:
    """Whether a sweep of this command has a table; the others measure nothing."""
    return config_name == "train"


class Begin(Callback):
    """Hydra calls it where a sweep starts: forget how the jobs of an earlier one ended."""

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Note the sweep's folder for :func:`conclude`, and who is to hear signals."""
        where = expand("hydra.sweep.dir", config.hydra.sweep.dir)
        with read_write(config):
            config.hydra.sweep.dir = where
        _own.place = Path(where)
        for record in table.records(_own.place):
            if table.is_record(record):
                record.unlink()
        here = str(config.hydra.launcher.get("_target_")).endswith(".BasicLauncher")
        if not here and threading.current_thread() is threading.main_thread():
            listened = [each for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN]
            _own.before = {each: signal.signal(each, _hand_on) for each in listened}


def _hand_on(number: int, frame: FrameType | None) -> None:
    """Let jobs in other processes of this machine stop by themselves, and wait on for them."""
    jobs = psutil.Process().children()
    for job in jobs:
        with suppress(psutil.NoSuchProcess):
            job.send_signal(signal.SIGTERM)  # the one that a launcher's own process hands on
    _own.told = _own.told or bool(jobs)
    handler = _own.before[signal.Signals(number)]
    if not jobs and callable(handler):  # on other machines they are their scheduler's
        handler(number, frame)


def is_stopping() -> bool:
    """Whether the jobs were told to stop, so that a launcher may miss some."""
    return _own.told


def recorded(
    config_name: str, config: Any, starter: int, work: Callable[[], float | None]
) -> float | None:
    """Do the work of a job; in a sweep of trainings ``job.json`` in its folder says how it ended.

    There unforeseen errors are printed and get no further, so that the other jobs run; after a job
    that was stopped no other one starts.

    Args:
        config_name: the command.
        config: of the job.
        starter: the process that started the sweep; in others being stopped gets no further,
            which would have the launcher kill jobs that are saving.
        work: of the job.

    Raises:
        ConfigError: of the job.
        Stopped: in the process that started the sweep.
    """
    place = invocation.job_folder() if keeps_table(config_name) else None
    if place is None:
        return work()
    heard = pending()  # when the job before was about to end anyway
    if heard is not None and os.getpid() == starter:
        raise Stopped(f"stopped by {heard}")
    try:
        with _told(place, config):
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
def _told(place: Path, config: Any) -> Iterator[None]:
    if os.environ.get("RANK", "0") != "0":  # of the processes of a job, the first one writes
        yield
        return
    told = {
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
            raise Stopped("another job of the sweep was stopped: this one does not start")
        record = place / JOB_RECORD
        problem = "is not the record of a job; choose another folder, or move it away"
        mine = not os.path.lexists(record) or table.is_record(record)
        require(mine, "out", str(record), problem)
        _write(record, told)
        begun = True
        yield
        told["status"] = "done"
    except BaseException as error:
        stopped = isinstance(error, Stopped | KeyboardInterrupt)
        told |= {"status": "stopped" if stopped else "failed", "error": _line(error)}
        raise
    finally:
        if begun or not os.path.lexists(place / JOB_RECORD):
            _write(place / JOB_RECORD, told)


def _line(error: BaseException) -> str:
    """An error in one line, with its kind unless its message explains itself."""
    line = " ".join(str(error).split())
    explains = isinstance(error, ConfigError | Stopped)
    return line if explains else f"{type(error).__name__}: {line}".removesuffix(": ")


def _write(path: Path, told: dict[str, Any]) -> None:
    try:
        with replacing(path) as aside:
            aside.write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")
    except ConfigError as error:  # a full disk: the job itself will say so, or has
        warn(str(error))


def conclude() -> int:
    """Write and print the table of the sweep that this process started, if it did.

    Returns:
        The exit status: 75 where a job was stopped, else 1 where one failed, else 0.
    """
    global _own
    own, _own = _own, _Own()
    for each, handler in own.before.items():
        signal.signal(each, handler)
    rows = [] if own.place is None else table.jobs(own.place)
    if own.place is None or not rows:
        return 0
    written = table.write(rows, own.place)
    info("\n".join([table.summary(rows), *written]))
    ends = {job.status for job in rows}
    stopped = "stopped" in ends or (own.told and "failed" in ends)  # maybe before they could say so
    return STOPPED_STATUS if stopped else int("failed" in ends)
