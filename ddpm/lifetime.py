"""End of worker processes: an exit without abort, and an exit after the parent is gone."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OWN_WORKERS = "DDPM_WORKERS"
"""Environment variable of workers that a command starts: the id of the command's process."""
THREADS_SHARED = "DDPM_THREADS_SHARED"
"""Environment variable of workers: the launcher, not the user, has set OMP_NUM_THREADS."""
BUSY = "ddpm-busy"
"""Name of threads that may be in a long call of a library."""
HELD = (signal.SIGINT,)
"""Signals that the workers block until they import this module."""
_POLL_SECONDS = 0.5
_STATUS = 1  # no process reads it


class _Watch(threading.Thread):
    """A thread that ends this process when its parent is gone.

    Attributes:
        grace_seconds: time from then on in which the process may still end by itself.
        busy: returns True while the process must not be ended even after that time.
    """

    def __init__(self, parent: int) -> None:
        super().__init__(name="parent", daemon=True)
        self.parent, self.grace_seconds = parent, 0.0
        self.busy: Callable[[], bool] = _never

    def run(self) -> None:
        """Wait for the end of the parent, then for unfinished work, and exit."""
        while os.getppid() == self.parent:
            time.sleep(_POLL_SECONDS)
        gone = time.monotonic()
        while time.monotonic() - gone < self.grace_seconds or self.busy():
            time.sleep(_POLL_SECONDS / 5)
        os._exit(_STATUS)


def _never() -> bool:
    return False


_watches: dict[int, _Watch] = {}  # by process: a fork has a copy of the table, and no thread


def end_with_parent(
    parent: int, grace_seconds: float = 0.0, busy: Callable[[], bool] = _never
) -> None:
    """End this process when its parent is gone; a later call changes the conditions.

    Args:
        parent: the process that started this one. It may be gone already.
        grace_seconds: time in which this process may still end by itself.
        busy: a function that returns True while a file is being written.
    """
    watch = _watches.get(os.getpid())
    if watch is None:
        watch = _watches[os.getpid()] = _Watch(parent)
        watch.start()
    watch.grace_seconds, watch.busy = grace_seconds, busy


def end_import_with_launcher() -> None:
    """End a worker whose launcher is gone while the worker still imports modules.

    Ctrl-C ends it too, without the traceback that Python would print.
    """
    # torch's launcher sets RANK later. With it, this is a process that a worker has started.
    if OWN_WORKERS in os.environ and "RANK" not in os.environ:
        end_with_parent(int(os.environ[OWN_WORKERS]))
        for each in HELD:
            if signal.getsignal(each) != signal.SIG_IGN:
                signal.signal(each, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)


def one_of_several() -> bool:
    """Return True in a process of torchrun, accelerate launch or our own launcher."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


@contextmanager
def leaving() -> Iterator[None]:
    """Exit without the finalization of the interpreter, with the status of the block.

    A thread of gloo may hold the tensors of a finished all-reduce for a moment longer than the
    main thread waits for it. If it frees them during the finalization, it asks for the interpreter,
    Python ends the thread instead, and that inside a C++ destructor aborts the process
    ("terminate called without an active exception"), after everything is saved. Functions that are
    registered with ``atexit`` inside the block run first.
    """
    status = 1

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    atexit.register(leave)
    try:
        yield
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
