"""Trials that have a time limit, and fail on all processes if they fail on one."""

import signal
import threading
import time
from types import SimpleNamespace

import pytest

from ddpm.distributed import trials
from ddpm.distributed.trials import Failure, attempt

ALONE = SimpleNamespace(num_processes=1)
LATE = Failure("it takes more than 0 s")


def endless():
    while True:
        time.sleep(0.001)


def failing(message="no compiler\nand more"):
    raise RuntimeError(message)


def test_a_trial_returns_its_result_and_restores_the_handler():
    def handler(*_):
        raise AssertionError

    before = signal.signal(signal.SIGALRM, handler)
    try:
        assert attempt(ALONE, lambda: 3, 0.05) == 3
        assert signal.getsignal(signal.SIGALRM) is handler
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("message", "reason"), [("no compiler\nand more", "no compiler"), ("", "RuntimeError")]
)
def test_the_reason_of_a_failure_is_one_line(message, reason):
    assert attempt(ALONE, lambda: failing(message)) == Failure(f"it fails: {reason}")


def test_a_trial_that_takes_too_long_is_interrupted():
    began = time.monotonic()
    assert attempt(ALONE, endless, 0.02) == LATE
    assert time.monotonic() - began < 10
    assert attempt(ALONE, lambda: 3, 60.0) == 3


def test_the_alarm_is_repeated_where_python_drops_its_error(monkeypatch):
    monkeypatch.setattr(trials, "_REPEAT_SECONDS", 0.02)
    monkeypatch.setattr("sys.unraisablehook", lambda _: dropped.append(None))
    dropped = []

    class Deaf:
        def __del__(self):
            endless()

    def work():
        Deaf()  # is destroyed at once
        endless()

    assert attempt(ALONE, work, 0.02) == LATE and dropped == [None]


def test_a_compiler_that_recovers_from_exceptions_does_not_recover_from_the_alarm():
    def work():
        try:
            endless()
        except Exception:
            return "without an optimization"

    assert attempt(ALONE, work, 0.02) == LATE


def test_other_threads_have_no_limit():
    results = []
    work = lambda: time.sleep(0.03) or "done"  # noqa: E731
    thread = threading.Thread(target=lambda: results.append(attempt(ALONE, work, 0.01)))
    thread.start()
    thread.join()
    assert results == ["done"]


@pytest.mark.parametrize(
    ("failures", "result"),
    [
        ([None, None, None], 3),
        ([None, Failure("b"), Failure("c")], Failure("b")),
        ([Failure("a"), None, None], Failure("a")),
    ],
)
def test_a_failure_of_one_process_is_that_of_all(monkeypatch, failures, result):
    sent = []
    monkeypatch.setattr(trials, "gather", lambda processes, own: sent.append(own) or failures)
    assert attempt(SimpleNamespace(num_processes=3), lambda: 3) == result
    attempt(SimpleNamespace(num_processes=3), failing)
    assert sent == [None, Failure("it fails: no compiler")]
