"""Warning about a training that has become several times slower than at its start."""

from __future__ import annotations

import os
import statistics
import time
from collections import deque

from ddpm.console import warn

_FACTOR = 3.0
_WINDOW = 20  # steps; their median is compared, so that a few slow ones do not matter
_OVERHEAD = 0.02  # seconds per step that a trial does not include, such as logs
_SECONDS = 30.0  # for which training must be slow without interruption


class Slowdown:
    """Measures the duration of the steps of a run, and warns once.

    Other processes can slow down a run by more than their number: the threads of a step wait for
    each other, and thus for a thread whose core another process uses.

    Args:
        expected: seconds per step of a trial; None = measured from the first steps.
        threads: CPU threads of this process.
        enabled: False to do nothing.
    """

    def __init__(self, expected: float | None, threads: int, *, enabled: bool = True) -> None:
        self.expected = None if expected is None else expected + _OVERHEAD
        self.threads, self.enabled = threads, enabled
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._last: float | None = None
        self._slow_seconds = 0.0

    def restart_clock(self) -> None:
        """Exclude the time until now, which was not a step."""
        self._last = None

    def tick(self) -> None:
        """Record the end of a step, or the start of the first one."""
        last, self._last = self._last, time.perf_counter()
        if last is None or not self.enabled:
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
            self.enabled = False
            warn(self._message(median, self.expected))

    def _message(self, now: float, before: float) -> str:
        cores = os.cpu_count() or 1
        load = f"load average {os.getloadavg()[0]:.1f} on {cores} core{'s' if cores > 1 else ''}"
        remedy = "it becomes faster when other processes end"
        if self.threads > 1:
            remedy = (
                f"if other processes are busy, its {self.threads} threads wait for each other: "
                "stop it and resume with threads=1 (which rounds sums differently)"
            )
        slower = f"a step takes {now / before:.1f} times as long as at the start of the run"
        return f"{slower}, {now:.2g} s ({load}); {remedy}"
