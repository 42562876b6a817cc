"""Automatic choices before network calls of a command: threads, precision, compilation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ddpm.arithmetic import CLOSE, Arithmetic, predictions
from ddpm.console import info_once
from ddpm.distributed import cpu_threads, devices
from ddpm.distributed.consensus import broadcast
from ddpm.distributed.cuda_graphs import use_graphs
from ddpm.distributed.trials import (
    FASTER,
    Failure,
    attempt,
    calls_of,
    first_line,
    relative_distance,
    set_calls,
)
from ddpm.errors import ConfigError
from ddpm.memory import is_out_of_memory
from ddpm.pipeline import SamplingPipeline
from ddpm.runs.session import Session
from ddpm.training.trial import MAX_PASSES, median_seconds

Compile = bool | Literal["auto"]
WORTH_A_TRIAL = cpu_threads.WORTH_A_TRIAL  # calls, below which a trial is too large a part of them
# Seconds of calls that have to remain: compiling takes about a minute, on a CPU up to three.
WORTH_COMPILING = {"cpu": 3600.0, "cuda": 600.0}
_SECONDS, _GLANCE = 1.0, 0.1  # per measurement, and per estimate


class Work(NamedTuple):
    """Network calls of this process.

    Attributes:
        pipeline: makes the calls.
        calls: their number.
        size: samples per call.
        classes: numbers of the classes, or None.
    """

    pipeline: SamplingPipeline
    calls: int
    size: int
    classes: Sequence[int] | None

    def seconds(self, duration: float = _SECONDS, calls: int = MAX_PASSES) -> float:
        """Return the duration of a call, see :func:`ddpm.training.trial.median_seconds`."""
        call = self.pipeline.benchmark_call(max(self.size, 1), self.classes)
        return median_seconds(call, self.pipeline.device, seconds=duration, passes=calls)

    def predictions(self) -> list[Tensor]:
        """Return predictions of a batch, see :func:`ddpm.arithmetic.predictions`."""
        return predictions(self.pipeline, max(self.size, 1), self.classes)


def tune(session: Session, work: Work, *, threads: cpu_threads.Threads, compile: Compile) -> None:
    """Choose the number of threads, the precision and the compilation; called on every process.

    Raises:
        ConfigError: ``compile=True`` on a machine that cannot compile.
    """
    choose_threads(session, lambda: work, threads)
    choose_precision(session, lambda: work)
    choose_compilation(session, lambda: work, compile)


def choose_threads(
    session: Session, work: Callable[[], Work], threads: cpu_threads.Threads
) -> None:
    """Set the number of threads; by default that of the training, which keeps the bits.

    Args:
        session: the model and its processes.
        work: returns the work that follows; called only for a trial.
        threads: see :mod:`ddpm.distributed.cpu_threads`.
    """

    def trial() -> cpu_threads.Trial:
        tried = work()
        return cpu_threads.Trial(tried.seconds, tried.calls, "network call")

    stored = session.checkpoint.metadata
    cpu_threads.use(threads, session.accelerator, trial=trial, stored=stored)


def choose_precision(session: Session, work: Callable[[], Work]) -> None:
    """Choose the precision if it is automatic: by a trial on a CPU, by a check on a GPU."""
    arithmetic = session.model.autocast
    if not isinstance(arithmetic, Arithmetic) or arithmetic.option != "auto":
        return
    if arithmetic.device.type != "cpu":
        _ = work()  # making the pipeline checks it
        info_once(session.accelerator, f"precision: {arithmetic.precision}")
    elif broadcast(session.accelerator, devices.has_bf16_instructions()):
        _try_bf16(session, arithmetic, work())


def choose_compilation(session: Session, work: Callable[[], Work], compile: Compile) -> None:
    """Compile the network, if it is requested or ``auto`` and pays back.

    ``auto`` first tries CUDA graphs on a GPU.

    Raises:
        ConfigError: ``compile=True`` on a machine that cannot compile.
    """
    network = session.model.network
    if compile == "auto":
        tried, device = work(), session.accelerator.device.type
        if device == "cuda" and not tried.pipeline.denoiser.needs_gradients:
            _try(session, tried, GRAPHS, least_seconds=0.0)
        _try(session, tried, COMPILED, least_seconds=WORTH_COMPILING[device])
    elif compile:
        try:
            _compile(network, work())
        except Exception as error:  # of any kind: a missing compiler, or an unsupported operation
            set_calls(network, None)
            if is_out_of_memory(error):
                raise
            problem = f"fails: {first_line(error)}"
            raise ConfigError("compile", True, problem, "use compile=false") from error


def _try_bf16(session: Session, arithmetic: Arithmetic, work: Work) -> None:
    """Use bf16 on a CPU with instructions for it, if calls are faster and predictions close."""
    if not broadcast(session.accelerator, work.calls >= WORTH_A_TRIAL):
        return
    plain, expected = work.seconds(), work.predictions()
    arithmetic.precision = "bf16"
    fast, difference = work.seconds(), relative_distance(work.predictions(), expected)
    use = broadcast(session.accelerator, difference <= CLOSE["bf16"] and fast <= FASTER * plain)
    arithmetic.precision = "bf16" if use else "no"
    _report(session, f"precision: {arithmetic.precision}", "bf16", plain, fast, difference)


def _try(session: Session, work: Work, way: Way, *, least_seconds: float) -> None:
    """Call the network in another way, and keep it if it is faster and close.

    Args:
        session: the model and its processes.
        work: the calls that remain.
        way: to be tried.
        least_seconds: duration of the remaining calls from which a trial pays back.
    """
    if not broadcast(session.accelerator, work.calls >= WORTH_A_TRIAL):
        return
    if least_seconds > 0:
        remaining = work.calls * work.seconds(_GLANCE)
        if not broadcast(session.accelerator, remaining >= least_seconds):
            return
    plain, expected = work.seconds(), work.predictions()
    network = session.model.network
    before = calls_of(network)

    def trial() -> tuple[float, float, float]:
        began = time.perf_counter()
        way.start(network, work)
        took = time.perf_counter() - began
        return took, work.seconds(), relative_distance(work.predictions(), expected)

    result = attempt(session.accelerator, trial)
    use = False
    if isinstance(result, Failure):
        info_once(session.accelerator, f"{way.name}: false ({result.reason})")
    else:
        took, fast, difference = result
        arithmetic = session.model.autocast
        precision = arithmetic.precision if isinstance(arithmetic, Arithmetic) else "no"
        use = difference <= CLOSE[precision] and fast <= FASTER * plain
        choice = f"{way.name}: {str(use).lower()}"
        _report(session, choice, way.done, plain, fast, difference, f" after {took:.0f} s")
    if not broadcast(session.accelerator, use):
        set_calls(network, before)


def _start_graphs(network: nn.Module, work: Work) -> None:
    """Record CUDA graphs for the shapes of the work."""
    calls = use_graphs(network)
    for _ in range(2):  # a graph is recorded at the second call of its kind
        work.predictions()
    if calls.error is not None or calls.count == 0:
        raise RuntimeError(calls.error or "nothing was recorded")


def _compile(network: nn.Module, work: Work) -> None:
    """Compile the network for the shapes of the work; other shapes run without compilation."""
    torch.compiler.set_stance("default")
    network.compile(dynamic=False)
    work.predictions()
    torch.compiler.set_stance("eager_on_recompile")  # a last, smaller batch


class Way(NamedTuple):
    """A way to call the network.

    Attributes:
        name: as in the line of the choice.
        done: of the network, in the reason.
        start: calls the network in this way from now on, and makes some calls; raises any
            Exception.
    """

    name: str
    done: str
    start: Callable[[nn.Module, Work], None]


COMPILED, GRAPHS = (
    Way("compile", "compiled", _compile),
    Way("CUDA graphs", "recorded", _start_graphs),
)


def _report(
    session: Session,
    choice: str,
    name: str,
    plain: float,
    fast: float,
    difference: float,
    note: str = "",
) -> None:
    """Print a choice and its reason in one line."""
    times = f"{cpu_threads.short(fast)} per call{note} against {cpu_threads.short(plain)}"
    line = f"{choice} ({name}: {times}; predictions differ by {difference:.2g})"
    info_once(session.accelerator, line)
