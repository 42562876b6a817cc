"""Signals that stop a command: the handlers set a flag or raise, and do no work.

SIGTERM, SIGINT, SIGHUP, and the warnings of schedulers (SIGUSR1, SIGUSR2), are
handled in one of three states. While no work can be lost, a signal raises
:class:`~ddpm.errors.Stopped` at once; inside :meth:`StopSignal.deferred` it sets a flag; after
everything is saved it is ignored.

A second signal, at least a second after the first, ends the process at once with 128 + its number.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Self

from ddpm.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
STOPPED_STATUS = 75  # EX_TEMPFAIL of sysexits.h: the command can be run again
# A launcher forwards signals that the scheduler has sent to its workers as well.
ECHO_SECONDS = 1.0


class StopSignal:
    """Context manager that handles signals; the previous handlers are restored afterwards.

    Args:
        last: the process ends after the context: signals are ignored then.

    Attributes:
        received: name of the first signal, or None.
    """

    def __init__(self, *, last: bool = False) -> None:
        self.received: str | None = None
        self._last, self._outer = last, None
        self._when = 0.0
        self._deferred = self._interruptible = self._raised = self._ignoring = self._ignored = False
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._outer = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
            for each in SIGNALS:
                if signal.getsignal(each) != signal.SIG_IGN:  # as nohup does with SIGHUP
                    self._before[each] = signal.signal(each, self._handle)
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(self._outer, StopSignal) and self.received is not None:
            self._outer.received = self.received
            if isinstance(error, Stopped):  # the process is stopping already
                self._outer._when, self._outer._raised = self._when, True
                self._outer._ignoring = self._ignoring
        for each, handler in self._before.items():
            signal.signal(each, signal.SIG_IGN if self._last else handler)
        self._before.clear()
        if self._raised and isinstance(error, Exception):
            # Interrupted code, such as an import, may raise any error.
            raise Stopped(f"stopped by {self.received}") from error

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the first signal inside set :attr:`received` only; a second one ends the process.

        Raises:
            Stopped: on entry, if a signal has arrived before.
        """
        self._deferred = True
        try:
            self._raise_received()
            yield
        finally:
            self._deferred = False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise at once inside :meth:`deferred`: for long work that changes no state.

        Collective operations are allowed within :meth:`uninterrupted` only.

        Raises:
            Stopped: a signal arrived, or had arrived before.
        """
        self._interruptible = True
        try:
            self._raise_received()
            yield
        finally:
            self._interruptible = False

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Suspend :meth:`interruptible`; afterwards raise for a signal that arrived inside.

        Raises:
            Stopped: on exit, if a signal arrived.
        """
        before, self._interruptible = self._interruptible, False
        try:
            yield
        finally:
            self._interruptible = before
        if before:
            self._raise_received()

    def finish(self) -> None:
        """Ignore further signals: everything is saved, and the process is about to end."""
        self._ignoring = True

    def _raise_received(self) -> None:
        if self.received is not None:
            raise Stopped(f"stopped by {self.received}")

    def _handle(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked data worker ends with its parent
            return
        now, name = time.monotonic(), signal.Signals(number).name
        if self.received is not None and now - self._when < ECHO_SECONDS:
            return
        stopping = self._ignored if self._ignoring else self._deferred or self._raised
        if self.received is not None and stopping:
            os._exit(128 + number)
        self.received, self._when = self.received or name, now
        if self._ignoring:  # the name is for later work, such as the next job
            self._ignored = True
            return
        if not self._deferred:
            self._raised = True
            raise Stopped(f"stopped by {name}")
        if os.environ.get("RANK", "0") == "0":
            note = f"\n{name}: stopping after this step, with a checkpoint; again = at once\n"
            with suppress(OSError):  # the reader may have quit
                os.write(sys.stderr.fileno() if _has_descriptor(sys.stderr) else 2, note.encode())
        if self._interruptible:
            raise Stopped(f"stopped by {name}")


def pending() -> str | None:
    """Return the name of a signal that the current handler has received, or None."""
    handler = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return handler.received if isinstance(handler, StopSignal) else None


def raise_pending() -> None:
    """Raise Stopped for a received signal, whose exception an import may have suppressed."""
    name = pending()
    if name is not None:
        raise Stopped(f"stopped by {name}")


def interrupted_by() -> str | None:
    """Return the name of the signal for which Stopped was raised, or None."""
    handler = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(handler, StopSignal) and handler._raised:
        return handler.received
    return None


def _has_descriptor(stream: Any) -> bool:
    try:
        return stream.fileno() >= 0
    except (AttributeError, OSError, ValueError):
        return False
