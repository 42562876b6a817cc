"""A warning where training becomes several times slower than it was at its start."""

from __future__ import annotations

import os
import statistics
import time
from collections import deque

from ddpm.console import warn

_FACTOR = 3.0
_WINDOW = 20  # steps whose median counts, so that a few slow ones do not
_OVERHEAD = 0.02  # seconds of a step that its trial does not have, such as logs
_SECONDS = 30.0  # of training in which it has to be slow all the time


class Slowdown:
    """Times the steps of a run, and warns once.

    Other processes that start later can slow a run down by more than their number: threads of one
    step wait for one another, and for a thread whose core another process has.

    Args:
        expected: seconds per step in a trial; None = those of the first steps.
        threads: of this process.
        watched: False to do nothing.
    """

    def __init__(self, expected: float | None, threads: int, *, watched: bool = True) -> None:
        self.expected = None if expected is None else expected + _OVERHEAD
        self.threads, self.watched = threads, watched
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._last: float | None = None
        self._slow_seconds = 0.0

    def restart_clock(self) -> None:
        """Leave the time until now out: something else than a step was done."""
        self._last = None

    def tick(self) -> None:
        """Note the end of a step, or the beginning of the first one."""
        last, self._last = self._last, time.perf_counter()
        if last is None or not self.watched:
            return
        self._recent.append(self._last - last)
        if len(self._recent) < _WINDOW:
            return
        median = statistics.median(self._recent)
        if self.expected is None:
            self.expected = median
        is_slow = median > _FACTOR * self.expected
        self._slow_seconds = self._slow_seconds + self._recent[-1] if is_slow else 0.0
        if self._slow_seconds >= _SECONDS:
            self.watched = False
            warn(self._message(median, self.expected))

    def _message(self, now: float, before: float) -> str:
        cores = os.cpu_count() or 1
        load = f"load average {os.getloadavg()[0]:.1f} on {cores} core{'s' if cores > 1 else ''}"
        remedy = "other processes that end make it faster"
        if self.threads > 1:
            remedy = (
                f"if other processes are busy, its {self.threads} threads wait for one another: "
                "stop it and resume with threads=1 (which rounds sums otherwise)"
            )
        slower = f"a step takes {now / before:.1f} times as long as at the start of the run"
        return f"{slower}, {now:.2g} s ({load}); {remedy}"
