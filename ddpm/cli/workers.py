"""Worker processes that a command starts itself: ``launch.processes=8``.

Hydra composes the config once, in the launcher, and the workers receive it. torch's elastic
launcher starts and monitors them. Signals are forwarded to the workers, which decide when to stop;
if the launcher is killed, the system sends them a SIGINT.
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
# Time in which a worker whose launcher is gone finishes its step and saves.
_GRACE_SECONDS = 8.0
_EXIT_SECONDS = 3.0  # from a second signal until a worker is killed
_PEER_SECONDS = 2.0  # the launcher, which polls 10 times per second, sees the dead worker first
_NO_WARNING_OF_KILLED_WORKERS = "ignore::UserWarning:multiprocessing.resource_tracker"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Options of the launcher.

    Attributes:
        processes: number of processes on this machine; ``auto`` is one per GPU, and one without
            GPUs.
    """

    processes: int | Literal["auto"] = 1


def count(launch: Launch, device: str) -> int:
    """Return the number of processes to start; 1 = none beside this one.

    Raises:
        ConfigError: fewer than one, more than the GPUs (unless device=cuda lets them share), or
            this process was started by a launcher.
    """
    key, requested = "launch.processes", launch.processes
    if one_of_several():
        problem = "the launcher has started the processes; leave it out"
        require(requested == 1 or OWN_WORKERS in os.environ, key, requested, problem)
        return 1
    if requested == 1:
        return 1
    import torch

    gpus = 0 if device == "cpu" else torch.cuda.device_count()
    if requested == "auto":
        return max(gpus, 1)
    require(requested >= 1, key, requested, "must be at least 1, or auto for one per GPU")
    problem = f"this machine has {gpus} GPUs; use fewer, or device=cpu; device=cuda shares them"
    require(gpus == 0 or requested <= gpus or device == "cuda", key, requested, problem)
    return requested


def reject_sweep(arguments: Sequence[str]) -> None:
    """Raise ConfigError for a sweep inside a launcher, where each process would run all jobs."""
    if one_of_several() and invocation.starts_sweep(arguments):
        problem = (
            "a sweep inside a launcher would run every job in every process; start the sweep "
            "without the launcher and add launch.processes=N"
        )
        raise ConfigError("-m", None, problem)


def start(processes: int, work: Work, *arguments: Any) -> float | None:
    """Run ``work(*arguments)`` in several processes; return the result of the first.

    Args:
        processes: number of processes on this machine.
        work: function of a module, called in each process.
        arguments: of the function; can be pickled.

    Raises:
        ConfigError: of a worker, or which worker died, and the reason.
        Stopped: the workers were signalled to stop, and have stopped.
    """
    from hydra.core.hydra_config import HydraConfig
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # errors are reported in one line below
    setup = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"ddpm-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",  # without name resolution: machines may be offline
        max_restarts=0,
        signals_to_handle="SIGQUIT",  # the others are forwarded, see below
        start_method="spawn",
    )
    with _environment(processes), _forwarding() as received, _holding():
        try:
            composed = HydraConfig.instance().cfg
            results = elastic_launch(setup, _worker)(composed, work, arguments)
        except ChildFailedError as error:
            _, failure = error.get_first_failure()
            if len(received) > 1 and not 0 < failure.exitcode < 128:
                raise SystemExit(128 + received[-1]) from None
            if received and -failure.exitcode in SIGNALS:  # before it installed handlers
                raise Stopped(f"stopped by {received[0].name}") from None
            raise _explained(error, processes) from None
    return results[0]


def _worker(composed: Any, work: Work, arguments: Sequence[Any]) -> float | None:
    """Run the work in one process."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import setup_globals

    from ddpm.distributed.consensus import has_lost_peer
    from ddpm.training.saving import in_progress

    streams.protect()
    launcher = int(os.environ[OWN_WORKERS])
    end_with_parent(launcher, _GRACE_SECONDS, in_progress)
    os.setsid()  # Ctrl-C reaches the parent only, which forwards it
    setup_globals()  # ${hydra:...} in the config
    HydraConfig.instance().set_config(composed)
    with leaving(), _ignoring_at_the_end():
        try:
            with StopSignal(last=True):
                return work(*arguments)
        except ConfigError as error:
            raise WorkerError(str(error)) from None
        except Stopped as stopped:
            raise WorkerStopped(str(stopped)) from None
        except RuntimeError as error:
            if has_lost_peer(error):
                time.sleep(_PEER_SECONDS)
            raise
        finally:
            end_with_parent(launcher)  # everything is saved


@contextmanager
def _ignoring_at_the_end() -> Iterator[None]:
    """After the block, ignore signals for some seconds.

    A scheduler's signal to all processes after the end of the work must not turn it into a failure.
    Later signals end the process, since torch waits for the launcher without a limit.
    """
    handled = [each for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN]
    try:
        yield
    finally:
        done = time.monotonic()

        def end(number: int, _: object) -> None:
            if time.monotonic() - done > _GRACE_SECONDS:
                os._exit(128 + number)

        for each in handled:
            signal.signal(each, end)


@contextmanager
def _environment(processes: int) -> Iterator[None]:
    """Set the environment variables of the workers, such as their number of threads."""
    before = dict(os.environ)
    os.environ[OWN_WORKERS] = str(os.getpid())
    os.environ["PYTHONWARNINGS"] = ",".join(
        filter(None, [os.environ.get("PYTHONWARNINGS"), _NO_WARNING_OF_KILLED_WORKERS])
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
def _forwarding() -> Iterator[list[signal.Signals]]:
    """Forward signals to the workers inside the block; yield the list of received signals.

    Repetitions of a signal by launchers are left out. After a second signal the workers have some
    seconds to exit.

    Raises:
        Stopped: a signal arrived before, or while no worker runs.
    """
    received: list[signal.Signals] = []
    last = 0.0
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def forward(number: int, _: object) -> None:
        nonlocal last
        now = time.monotonic()
        if not received or now - last >= ECHO_SECONDS:
            received.append(signal.Signals(number))
            last = now
        workers = multiprocessing.active_children()
        if not workers:
            raise Stopped(f"stopped by {received[0].name}")
        if len(received) > 1:
            _kill_later(workers)
        for worker in workers:
            if worker.pid is not None:
                os.kill(worker.pid, number)

    raise_pending()
    handled = [each for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN]  # nohup
    before = {each: signal.signal(each, forward) for each in handled}
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _holding() -> Iterator[None]:
    """Block Ctrl-C in processes that start inside, until they have installed their handlers.

    A terminal sends it to them as well, and Python would end them with a traceback. They inherit
    the signal mask of the thread that starts them; another thread receives the signals of this
    process.
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
    """Kill workers that a second signal has not ended, such as those in a hanging collective."""

    def kill() -> None:
        for worker in workers:
            with suppress(ValueError, OSError):  # it has ended
                worker.kill()

    timer = threading.Timer(_EXIT_SECONDS, kill)
    timer.daemon = True
    timer.start()


def _explained(error: Any, processes: int) -> BaseException:
    """Return the error of the worker that failed first."""
    rank, failure = error.get_first_failure()
    report = failure.message
    if isinstance(report, dict):
        kind, _, line = str(report["message"]).partition(": ")
        if kind == WorkerError.__name__:
            return WorkerError(line)
        if kind == WorkerStopped.__name__:
            return Stopped(line)
        trace = str(report.get("extraInfo", {}).get("py_callstack", ""))
        note(f"process {rank}:\n{trace}")
        problem = f"process {rank} failed, see above: {report['message']}"
    elif failure.exitcode < 0:
        problem = f"process {rank} was ended by {signal.Signals(-failure.exitcode).name}"
    else:
        problem = f"process {rank} ended with status {failure.exitcode}"
    remedy = "the others were ended too; run the same command to continue"
    return ConfigError("launch.processes", processes, problem, remedy)


class WorkerStopped(Exception):  # noqa: N818, as Stopped itself
    """Stopped, in a worker: the launcher raises it again unless it ended the worker itself."""


class WorkerError(ConfigError):
    """ConfigError of a worker, as one line."""

    def __init__(self, line: str) -> None:
        super().__init__("", None, line)

    def __str__(self) -> str:
        return self.message
