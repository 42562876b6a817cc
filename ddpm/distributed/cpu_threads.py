"""The number of threads of a command: typed, of OMP_NUM_THREADS, of a checkpoint, or of a trial."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple, Protocol

import psutil
import torch

from ddpm.console import info_once
from ddpm.distributed.consensus import broadcast
from ddpm.distributed.processes import Processes
from ddpm.errors import require
from ddpm.lifetime import THREADS_SHARED

Threads = int | Literal["auto"]
VARIABLE = "OMP_NUM_THREADS"
WORTH_A_TRIAL = 100  # units of work, below which a trial is too large a part of it
TRIAL_SECONDS = 1.0  # per number of threads, at most
_UNITS = 3, 10  # that are measured per number of threads: at least, and at most
_SHARE = 0.004  # of the work that is measured between these
_FASTER = 0.9  # more threads have to be: they wait for one another once other processes are busy
_MOST = 1024  # a system has a limit, at which OpenMP ends the process
_GLANCE_SECONDS = 0.2


class Choice(NamedTuple):
    """A number of threads.

    Attributes:
        threads: per process.
        seconds: duration of a unit of work with them; None without a trial.
    """

    threads: int
    seconds: float | None = None


class StoredThreads(Protocol):
    """Threads of a training, in the metadata of its checkpoints."""

    @property
    def threads(self) -> int | None:
        """Threads per process."""
        ...

    @property
    def seconds_per_step(self) -> float | None:
        """Duration of a step with them."""
        ...


@dataclass(frozen=True)
class Trial:
    """Work to be tried with several numbers of threads.

    Attributes:
        measure: returns the duration of a unit, measured for about so many seconds, and at most so
            many units.
        count: units that the command is going to do; infinity for work that fills a given time.
        unit: their name.
        independent: each thread of all cores computes a part of its own; then they are not compared
            with fewer unless other processes are busy.
    """

    measure: Callable[[float, int], float]
    count: float
    unit: str
    independent: bool = False

    @property
    def units(self) -> int:
        """Number of units to measure per number of threads, a small part of the work."""
        least, most = _UNITS
        return int(min(max(_SHARE * self.count, least), most))


def use(
    threads: Threads,
    accelerator: Processes,
    *,
    trial: Callable[[], Trial],
    stored: StoredThreads | None = None,
) -> Choice:
    """Set the number of threads of this process, the same in all, and return it.

    The first of these decides: a typed number; ``OMP_NUM_THREADS``; the number in the metadata of a
    checkpoint, if the machine has so many, since other sums would be rounded otherwise; a trial.
    With a GPU, one core, or little work, torch's number is used without a trial.

    Args:
        threads: the option.
        accelerator: of the command; called on every process.
        trial: makes the trial if it is needed.
        stored: metadata of the checkpoint that the command reads.

    Raises:
        ConfigError: a number that is out of range.
    """
    most = machine()  # before any change
    if threads != "auto":
        require(1 <= threads <= _MOST, "threads", threads, f"use auto, or 1 to {_MOST}")
        choice = Choice(threads)
    elif accelerator.device.type != "cpu" or is_given():
        choice = Choice(most)
    else:
        choice = _automatic(accelerator, most, trial, stored)
    torch.set_num_threads(choice.threads)
    return choice


@cache
def machine() -> int:
    """Return torch's own number of threads: the cores, or what ``OMP_NUM_THREADS`` says."""
    return torch.get_num_threads()


def is_given() -> bool:
    """Return whether the user, or torchrun, has set ``OMP_NUM_THREADS``."""
    return bool(os.environ.get(VARIABLE)) and THREADS_SHARED not in os.environ


def _automatic(
    accelerator: Processes,
    most: int,
    trial: Callable[[], Trial],
    metadata: StoredThreads | None,
) -> Choice:
    """Return the stored number, or that of a trial; the same on every process."""
    most = broadcast(accelerator, most)
    stored = None if metadata is None else metadata.threads
    if metadata is not None and isinstance(stored, int) and 1 <= stored <= most:
        alone = stored == 1 or not _others_are_busy(accelerator)
        slow = "" if alone else "; other processes are busy: threads=1 may be faster"
        if stored < most or not alone:
            info_once(accelerator, f"threads: {stored} of {most}, as in training{slow}")
        return Choice(stored, metadata.seconds_per_step)
    if most == 1:
        return Choice(1)
    tried = trial()
    return _tried(tried, most, accelerator) if tried.count >= WORTH_A_TRIAL else Choice(most)


def _tried(trial: Trial, most: int, accelerator: Processes) -> Choice:
    """Try several numbers of threads, and say what came of it.

    More threads than before are not tried where other processes leave no core to them: each of
    their steps could take as long as a hundred.
    """
    measured: dict[int, float] = {}
    load = Load(0.0, 0.0, 0.0)
    numbers = candidates(most)
    for threads in sorted(numbers, reverse=True) if trial.independent else numbers:
        if threads > max(measured, default=threads) and load.is_full:
            continue
        torch.set_num_threads(threads)
        measured[threads], load = _measured(trial, accelerator)
        if trial.independent and threads == most and not load.is_busy:
            break
    best = fastest(measured)
    busy = load.is_busy and accelerator.num_processes == 1  # else they are our own
    info_once(accelerator, described(measured, most, trial.unit, busy=busy))
    return Choice(best, measured[best])


def _measured(trial: Trial, processes: Processes) -> tuple[float, Load]:
    """Return the duration of a unit, and the load; one process decides for all."""
    with watching() as load:
        seconds = trial.measure(TRIAL_SECONDS, trial.units)
    return broadcast(processes, (seconds, load()))


def candidates(most: int) -> list[int]:
    """Return the numbers of threads to try: half of them first, which is never very slow."""
    return list(dict.fromkeys([max(most // 2, 1), most, 1]))


def fastest(measured: Mapping[int, float]) -> int:
    """Return the best number of threads, by the seconds that a unit takes with each.

    More threads have to be clearly faster. They wait for one another many times in a step, so that
    one of them that another process keeps from its core delays all.
    """
    best, *more = sorted(measured)
    for threads in more:
        if measured[threads] < _FASTER * measured[best]:
            best = threads
    return best


def described(measured: Mapping[int, float], most: int, unit: str, *, busy: bool) -> str:
    """Return the choice and its reason in one line."""
    best = fastest(measured)
    others = [f"{short(measured[n])} with {n}" for n in sorted(measured) if n != best]
    against = f" against {', '.join(others)}" if others else ""
    reason = "; other processes are busy" if busy and best < most else ""
    return f"threads: {best} of {most} ({short(measured[best])} per {unit}{against}{reason})"


def short(seconds: float) -> str:
    """Return a duration of two or three digits, such as ``31 ms``."""
    if seconds < 0.01:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


class Load(NamedTuple):
    """Use of the machine during some time.

    Attributes:
        others: cores that other processes have used.
        idle: cores that nothing has used.
        seconds: the time.
    """

    others: float
    idle: float
    seconds: float

    @property
    def is_busy(self) -> bool:
        """True if other processes use time that more threads would need."""
        return self.others > 0.5

    @property
    def is_full(self) -> bool:
        """True if no core was idle during a sufficiently long time."""
        return self.idle < 0.25 and self.others > 0.5 and self.seconds > _GLANCE_SECONDS


@contextmanager
def watching() -> Iterator[Callable[[], Load]]:
    """Watch the machine; the function that is given returns its load since the start."""
    began, before, own = time.perf_counter(), psutil.cpu_times(), time.process_time()

    def load() -> Load:
        seconds, now = time.perf_counter() - began, psutil.cpu_times()
        passed = {name: getattr(now, name) - getattr(before, name) for name in now._fields}
        idle = passed["idle"] + passed.get("iowait", 0.0)
        guests = passed.get("guest", 0.0) + passed.get("guest_nice", 0.0)  # counted twice
        others = sum(passed.values()) - guests - idle - (time.process_time() - own)
        return Load(others / seconds, idle / seconds, seconds)

    yield load


def _others_are_busy(accelerator: Processes) -> bool:
    """Return whether other processes than those of this command are busy."""
    with watching() as load:
        time.sleep(_GLANCE_SECONDS)
    return accelerator.num_processes == 1 and load().is_busy
