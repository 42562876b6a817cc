"""Starting the processes of a command from the command itself: ``launch.processes=8``.

Hydra composes once, here; the workers get the composed config. They are started and watched by
torch's elastic launcher. A signal to this process is handed on to them, and they decide; if this
process is killed, torch has the system send them a SIGINT.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, Literal

from ddpm import streams
from ddpm.cli import invocation
from ddpm.console import note
from ddpm.errors import ConfigError, Stopped, require
from ddpm.lifetime import (
    HELD,
    OWN_WORKERS,
    THREADS_SHARED,
    end_with_parent,
    leaving,
    one_of_several,
)
from ddpm.signals import ECHO_SECONDS, SIGNALS, StopSignal, raise_pending

Work = Callable[..., float | None]
# For a worker whose launcher is gone: it hears a signal, finishes its step and saves.
_GRACE_SECONDS = 8.0
_OBEYING_SECONDS = 3.0  # from a second signal until a worker is killed
_NOTHING_OF_KILLED_WORKERS = "ignore::UserWarning:multiprocessing.resource_tracker"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How many processes a command runs in.

    Attributes:
        processes: on this machine; ``auto`` is one for each GPU, and one where there is none.
    """

    processes: int | Literal["auto"] = 1


def count(launch: Launch, device: str) -> int:
    """How many processes to start; 1 for none beside this one, also where others were started.

    Raises:
        ConfigError: fewer than one, more than there are GPUs (which device=cuda lets them share),
            or a launcher has started us already.
    """
    key, wanted = "launch.processes", launch.processes
    if one_of_several():
        problem = "the launcher has started the processes; leave it out"
        require(wanted == 1 or OWN_WORKERS in os.environ, key, wanted, problem)
        return 1
    if wanted == 1:
        return 1
    import torch

    gpus = 0 if device == "cpu" else torch.cuda.device_count()
    if wanted == "auto":
        return max(gpus, 1)
    require(wanted >= 1, key, wanted, "must be at least 1, or auto for one a GPU")
    problem = f"this machine has {gpus} GPUs; take fewer, or device=cpu; device=cuda shares them"
    require(gpus == 0 or wanted <= gpus or device == "cuda", key, wanted, problem)
    return wanted


def refuse_sweeps(arguments: Sequence[str]) -> None:
    """Refuse a sweep inside a launcher: each of its processes would run all jobs.

    Raises:
        ConfigError: that is what was asked for.
    """
    if one_of_several() and invocation.starts_sweep(arguments):
        problem = (
            "a sweep inside a launcher would run every job in every process; start the sweep "
            "without the launcher and add launch.processes=N"
        )
        raise ConfigError("-m", None, problem)


def start(processes: int, work: Work, *arguments: Any) -> float | None:
    """Run ``work(*arguments)`` in so many processes; returns what the first of them does.

    Args:
        processes: on this machine.
        work: a function of a module, called in each process as one of that many.
        arguments: its own; they can be pickled.

    Raises:
        ConfigError: of a worker, or telling which one died, and of what.
        Stopped: the workers were told to stop, and have.
    """
    from hydra.core.hydra_config import HydraConfig
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # we tell what happened in one line
    setup = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"ddpm-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",  # no look-up of names: machines may have no network
        max_restarts=0,
        signals_to_handle="SIGQUIT",  # the others are handed on, see below
        start_method="spawn",
    )
    with _environment(processes), _handing_on() as heard, _holding():
        try:
            composed = HydraConfig.instance().cfg
            results = elastic_launch(setup, _worker)(composed, work, arguments)
        except ChildFailedError as error:
            _, failure = error.get_first_failure()
            if len(heard) > 1 and not 0 < failure.exitcode < 128:
                raise SystemExit(128 + heard[-1]) from None
            if heard and -failure.exitcode in SIGNALS:  # before it could listen
                raise Stopped(f"stopped by {heard[0].name}") from None
            raise _explained(error, processes) from None
    return results[0]


def _worker(composed: Any, work: Work, arguments: Sequence[Any]) -> float | None:
    """Run the work in one process."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import setup_globals

    from ddpm.training.saving import in_progress

    streams.protect()
    launcher = int(os.environ[OWN_WORKERS])
    end_with_parent(launcher, _GRACE_SECONDS, in_progress)
    os.setsid()  # Ctrl-C reaches the parent alone, which hands it on
    setup_globals()  # ${hydra:...} in the config
    HydraConfig.instance().set_config(composed)
    with leaving(), _heard_at_last():
        try:
            with StopSignal(last=True):
                return work(*arguments)
        except ConfigError as error:
            raise WorkerError(str(error)) from None
        except Stopped as stopped:
            raise WorkerStopped(str(stopped)) from None
        finally:
            end_with_parent(launcher)  # nothing is left to save


@contextmanager
def _heard_at_last() -> Iterator[None]:
    """Afterwards a signal is ignored for a while only: torch waits for the launcher without limit.

    A scheduler's signal to all processes, when all is done, must not make a failure of it.
    """
    listened = [each for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN]
    try:
        yield
    finally:
        done = time.monotonic()

        def end(number: int, _: object) -> None:
            if time.monotonic() - done > _GRACE_SECONDS:
                os._exit(128 + number)

        for each in listened:
            signal.signal(each, end)


@contextmanager
def _environment(processes: int) -> Iterator[None]:
    """What the workers shall find: their threads, and that they are wanted without a GPU too."""
    before = dict(os.environ)
    os.environ[OWN_WORKERS] = str(os.getpid())
    os.environ["PYTHONWARNINGS"] = ",".join(
        filter(None, [os.environ.get("PYTHONWARNINGS"), _NOTHING_OF_KILLED_WORKERS])
    )
    if not os.environ.get("OMP_NUM_THREADS"):
        os.environ["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // processes, 1))
        os.environ[THREADS_SHARED] = "1"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _handing_on() -> Iterator[list[signal.Signals]]:
    """Inside, signals go to the workers, and this process waits for what they do.

    Gives those that came, without echoes. After a second one the workers have some seconds.

    Raises:
        Stopped: on a signal while there are no workers, or one that came before.
    """
    heard: list[signal.Signals] = []
    last = 0.0
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return

    def hand_on(number: int, _: object) -> None:
        nonlocal last
        now = time.monotonic()
        if not heard or now - last >= ECHO_SECONDS:
            heard.append(signal.Signals(number))
            last = now
        workers = multiprocessing.active_children()
        if not workers:
            raise Stopped(f"stopped by {heard[0].name}")
        if len(heard) > 1:
            _kill_later(workers)
        for worker in workers:
            if worker.pid is not None:
                os.kill(worker.pid, number)

    raise_pending()
    listened = [each for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN]  # nohup
    before = {each: signal.signal(each, hand_on) for each in listened}
    try:
        yield heard
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _holding() -> Iterator[None]:
    """Block Ctrl-C in processes that start inside, until they have changed what it does.

    A terminal sends it to them as well, and Python would end them with a traceback. They inherit
    the mask of the thread that starts them. Another thread takes the signals of this process.
    """
    done = threading.Event()
    threading.Thread(target=done.wait, daemon=True).start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        done.set()


def _kill_later(workers: Sequence[BaseProcess]) -> None:
    """Kill the workers that a second signal has not ended, such as those in a hanging exchange."""

    def kill() -> None:
        for worker in workers:
            with suppress(ValueError, OSError):  # it has ended
                worker.kill()

    timer = threading.Timer(_OBEYING_SECONDS, kill)
    timer.daemon = True
    timer.start()


def _explained(error: Any, processes: int) -> BaseException:
    """The failure of the worker that failed first."""
    rank, failure = error.get_first_failure()
    told = failure.message
    if isinstance(told, dict):
        kind, _, line = str(told["message"]).partition(": ")
        if kind == WorkerError.__name__:
            return WorkerError(line)
        if kind == WorkerStopped.__name__:
            return Stopped(line)
        trace = str(told.get("extraInfo", {}).get("py_callstack", ""))
        note(f"process {rank}:\n{trace}")
        what = f"process {rank} failed, see above: {told['message']}"
    elif failure.exitcode < 0:
        what = f"process {rank} was ended by {signal.Signals(-failure.exitcode).name}"
    else:
        what = f"process {rank} ended with status {failure.exitcode}"
    problem = f"{what}; the others were ended too, the same command goes on"
    return ConfigError("launch.processes", processes, problem)


class WorkerStopped(Exception):  # noqa: N818, as Stopped itself
    """A worker has stopped; the launcher says so, unless it ended the worker itself."""


class WorkerError(ConfigError):
    """The mistake that a worker found, in its own words."""

    def __init__(self, line: str) -> None:
        super().__init__("", None, line)

    def __str__(self) -> str:
        return self.message
