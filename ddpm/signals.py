"""Being told to stop by a signal: a flag to look at, no work inside a handler.

SIGTERM, SIGINT, SIGHUP, and the warnings of schedulers (SIGUSR1, SIGUSR2), in one of three moods:
while nothing can be lost a signal raises :class:`~ddpm.errors.Stopped` at once; inside
:meth:`StopSignal.deferred` it only sets a flag; once all is saved it is not heard any more.

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
STOPPED_STATUS = 75  # EX_TEMPFAIL of sysexits.h: run me again
# A launcher hands on what a scheduler has sent to all already: the same wish, heard twice.
ECHO_SECONDS = 1.0


class StopSignal:
    """Listens while it is entered; handlers that were there before come back afterwards.

    Args:
        last: the process ends with it: afterwards signals are ignored.

    Attributes:
        received: name of the signal that was heard, or None.
    """

    def __init__(self, *, last: bool = False) -> None:
        self.received: str | None = None
        self._last, self._outer = last, None
        self._when = 0.0
        self._deferred = self._interruptible = self._raised = self._deaf = self._ignored = False
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._outer = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
            for each in SIGNALS:
                if signal.getsignal(each) != signal.SIG_IGN:  # as nohup does with SIGHUP
                    self._before[each] = signal.signal(each, self._heard)
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(self._outer, StopSignal) and self.received is not None:
            self._outer.received = self.received
            if isinstance(error, Stopped):  # the same wish, and it is being followed
                self._outer._when, self._outer._raised = self._when, True
                self._outer._deaf = self._deaf
        for each, handler in self._before.items():
            signal.signal(each, signal.SIG_IGN if self._last else handler)
        self._before.clear()
        if self._raised and isinstance(error, Exception):
            # What was broken off, such as an import, may make anything of it.
            raise Stopped(f"stopped by {self.received}") from error

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, the first signal only sets :attr:`received`; another one ends the process.

        Raises:
            Stopped: on entering, where a signal has come before.
        """
        self._deferred = True
        try:
            self._raise_received()
            yield
        finally:
            self._deferred = False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise at once again, inside :meth:`deferred`: for long work that changes no state.

        Exchange nothing with other processes inside, except within :meth:`uninterrupted`.

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
        """Suspend :meth:`interruptible`, if inside it; then raise what arrived meanwhile.

        Raises:
            Stopped: a signal arrived, on leaving.
        """
        before, self._interruptible = self._interruptible, False
        try:
            yield
        finally:
            self._interruptible = before
        if before:
            self._raise_received()

    def finish(self) -> None:
        """Ignore the next signal: all is saved, and the process is about to end."""
        self._deaf = True

    def _raise_received(self) -> None:
        if self.received is not None:
            raise Stopped(f"stopped by {self.received}")

    def _heard(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:  # a fork that reads data: it ends with its parent
            return
        now, name = time.monotonic(), signal.Signals(number).name
        if self.received is not None and now - self._when < ECHO_SECONDS:
            return
        followed = self._ignored if self._deaf else self._deferred or self._raised
        if self.received is not None and followed:
            os._exit(128 + number)
        self.received, self._when = self.received or name, now
        if self._deaf:  # the name is for what would come after, such as a next job
            self._ignored = True
            return
        if not self._deferred:
            self._raised = True
            raise Stopped(f"stopped by {name}")
        if os.environ.get("RANK", "0") == "0":
            note = f"\n{name}: stopping after this step, with a checkpoint; again = at once\n"
            with suppress(OSError):  # nobody may be reading any more
                os.write(sys.stderr.fileno() if _has_number(sys.stderr) else 2, note.encode())
        if self._interruptible:
            raise Stopped(f"stopped by {name}")


def pending() -> str | None:
    """The signal that whoever listens now has heard, and not followed yet; or None."""
    listening = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return listening.received if isinstance(listening, StopSignal) else None


def raise_pending() -> None:
    """Raise Stopped for a signal that was heard: an import that it broke off may have hidden it."""
    name = pending()
    if name is not None:
        raise Stopped(f"stopped by {name}")


def broken_off_by() -> str | None:
    """Return the signal for which the current listener has raised Stopped, or None."""
    listening = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(listening, StopSignal) and listening._raised:
        return listening.received
    return None


def _has_number(stream: Any) -> bool:
    try:
        return stream.fileno() >= 0
    except (AttributeError, OSError, ValueError):
        return False
