"""Running checks in another process, so that a crash or a hang affects one check only.

The worker runs the checks in order and prints the result of each as one line of JSON. A CUDA error
makes every later call fail, so the worker ends after one, as it does if it crashes or is killed
after the time limit of a check; another worker then continues.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from scripts.gpu.check import Check, Setting, SkippedError
from scripts.gpu.machine import ROOT
from scripts.gpu.report import Line, Report

_MARK = "gpu-check "
_POISON = re.compile(r"CUDA error|CUBLAS_STATUS|CUDNN_STATUS|NCCL error|device-side assert")
_GRACE = 60.0  # seconds for the start of a worker: Python, torch, the context of the GPU


def run_all(
    checks: Mapping[int, Check],
    report: Report,
    worker: Sequence[str],
    *,
    until: float,
    folder: Path,
    scale: float = 1.0,
) -> None:
    """Run checks and report each, even if some crash or hang.

    Args:
        checks: by number, in order.
        report: gets a line for each.
        worker: the command of a worker; the numbers of the checks to run are added to it.
        until: ``time.monotonic()`` when the budget is spent.
        folder: for the log of the workers.
        scale: factor on the checks' own durations and limits.
    """
    left = list(checks.items())
    while left:
        _, check = left[0]
        if until - time.monotonic() < check.seconds * scale:
            detail = "does not fit into the time that is left; use a larger --minutes"
            report.add(Line(check.part, check.name, "skip", detail))
            left.pop(0)
            continue
        numbers = [str(number) for number, _ in left]
        with _Worker([*worker, *numbers], folder / "worker.log") as process:
            while left:
                _, check = left[0]
                if until - time.monotonic() < check.seconds * scale:
                    break
                limit = min(check.limit * scale, max(until - time.monotonic(), 1.0))
                line = process.next(check, limit)
                report.add(line)
                left.pop(0)
                if process.ended:
                    break


class _Worker:
    """A process that runs checks, and its messages."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.ended = False
        self._began = time.monotonic()
        self._fresh = True
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("a", encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": _with_root(), "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        self._messages: queue.Queue[str | None] = queue.Queue()
        assert self._process.stdout is not None
        stream = self._process.stdout
        self._reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._reader.start()

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        self._reader.join(timeout=10)  # it writes to the log
        self._log.close()

    def next(self, check: Check, limit: float) -> Line:
        """Return the result of the check that the worker runs."""
        began, wait = time.monotonic(), limit + (_GRACE if self._fresh else 0.0)
        self._fresh = False
        try:
            message = self._messages.get(timeout=wait)
        except queue.Empty:
            self.ended = True
            self._kill()
            took = time.monotonic() - began
            return Line(check.part, check.name, "FAIL", f"no answer after {took:.0f} s", took)
        took = time.monotonic() - began
        if message is None:
            self.ended = True
            status = self._process.wait()
            how = signal.Signals(-status).name if status < 0 else f"status {status}"
            detail = f"its process ended with {how}; see {self._log.name}"
            return Line(check.part, check.name, "FAIL", detail, took)
        result = json.loads(message)
        self.ended = result.pop("last")
        return Line(check.part, check.name, **result)

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            if line.startswith(_MARK):
                self._messages.put(line.removeprefix(_MARK))
            elif not self._log.closed:  # a process of the worker's may outlive it
                self._log.write(line)
        self._messages.put(None)

    def _kill(self) -> None:
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()


def _with_root() -> str:
    """Return a PYTHONPATH on which the checkout comes first."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def work(checks: Sequence[Check], setting: Setting) -> None:
    """Run checks in this process, the worker, and print the result of each."""
    for place, check in enumerate(checks, start=1):
        began = time.monotonic()
        outcome, detail, data, poisoned = _tried(check, setting)
        result: dict[str, Any] = {
            "outcome": outcome,
            "detail": detail,
            "seconds": time.monotonic() - began,
            "data": data,
            "last": poisoned or place == len(checks),
        }
        print(_MARK + json.dumps(result), flush=True)
        if poisoned:
            return
        _free()


def _tried(check: Check, setting: Setting) -> tuple[str, str, dict[str, Any], bool]:
    """Run a check; the last value is true if this process cannot run another one."""
    try:
        result = check.run(setting)
    except SkippedError as reason:
        return "skip", str(reason), {}, False
    except AssertionError as error:
        detail = str(error) or "failed; see worker.log"
        traceback.print_exc()
        return "FAIL", detail, {}, False
    except Exception as error:
        traceback.print_exc()
        detail = f"{type(error).__name__}: {error}".strip()
        return "FAIL", " ".join(detail.split())[:500], {}, _POISON.search(detail) is not None
    return "pass", result.detail, result.data, False


def _free() -> None:
    """Free the GPU's memory for commands and the next check."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def python(*arguments: str) -> list[str]:
    """Return a command line of this Python interpreter."""
    return [sys.executable, *arguments]
