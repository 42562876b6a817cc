"""Parts of the trials that choose precision and compilation."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from ddpm.console import duration
from ddpm.distributed.consensus import gather
from ddpm.distributed.processes import Processes

T = TypeVar("T")
FASTER = 0.95
"""Fraction to which a choice has to shorten a step or a call."""
MAX_SECONDS = 300.0
"""Longest trial. A collective operation of NCCL waits twice as long for a process."""
_REPEAT_SECONDS = 1.0


class Failure(NamedTuple):
    """A trial that failed on some process.

    Attributes:
        reason: the end of a sentence, such as ``it fails: no compiler``.
    """

    reason: str


class _OutOfTimeError(BaseException):
    """A block exceeded its time; not an Exception, since compilers recover from these."""


def attempt(
    processes: Processes, work: Callable[[], T], seconds: float = MAX_SECONDS
) -> T | Failure:
    """Run a trial; if it fails or takes too long on one process, it has failed on all.

    Args:
        processes: all of them call this.
        work: the trial. It contains no collective operation, so that each process may fail alone.
        seconds: time limit on each process.

    Returns:
        The result of this process, or on every process the failure of the first one that failed.
    """
    try:
        with _time_limit(seconds):
            result = work()
    except _OutOfTimeError:
        result = Failure(f"it takes more than {duration(seconds)}")
    except Exception as error:  # of any kind: a missing compiler, or an unsupported operation
        result = Failure(f"it fails: {first_line(error)}")
    failures = gather(processes, result if isinstance(result, Failure) else None)
    return next((each for each in failures if each is not None), result)


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise _OutOfTimeError inside a block that takes longer, if this is the main thread.

    The alarm interrupts Python code, also while it waits for a compiler, but no kernel. It is
    repeated, because Python drops errors of destructors and callbacks.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    active = True

    def interrupt(*_: object) -> None:
        if active:
            raise _OutOfTimeError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds, _REPEAT_SECONDS)
            yield
        finally:
            active = False
    finally:  # also if the last alarm comes at the end of the block
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def first_line(error: Exception) -> str:
    """Return the first line of the message of an error, or its type if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def relative_distance(values: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """Return the norm of the difference over the norm of ``expected``; NaN if one is not finite."""
    difference = norm = 0.0
    for a, b in zip(values, expected, strict=True):
        difference += float((a.double() - b.double()).square().sum())
        norm += float(b.double().square().sum())
    return difference**0.5 / max(norm**0.5, 1e-30)


def calls_of(network: nn.Module) -> Callable[..., Any] | None:
    """Return what ``network.compile()`` calls; None for plain calls. torch has no public method."""
    return network._compiled_call_impl  # pyright: ignore


def set_calls(network: nn.Module, calls: Callable[..., Any] | None) -> None:
    """Set what :func:`calls_of` returns; None undoes ``network.compile()``."""
    network._compiled_call_impl = calls  # pyright: ignore
