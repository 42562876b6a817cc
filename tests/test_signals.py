"""Stop signals: immediate, deferred to the next step, or ignored."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ddpm.errors import Stopped
from ddpm.signals import SIGNALS, StopSignal, pending


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_of_training_a_signal_stops_at_once(number):
    with StopSignal() as stop, pytest.raises(Stopped, match=f"^stopped by {number.name}$"):
        os.kill(os.getpid(), number)
    assert stop.received == number.name


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_during_training_sets_a_flag(number, capfd):
    with StopSignal() as stop, stop.deferred():
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received == number.name
    assert f"{number.name}: stopping after this step, with a checkpoint" in capfd.readouterr().err


def test_a_signal_before_training_prevents_it():
    with StopSignal() as stop:
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped), stop.deferred():
            pytest.fail("training started")


def test_handlers_are_restored_and_ignored_signals_stay_ignored():
    before = signal.getsignal(signal.SIGTERM)
    hung_up = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            assert signal.getsignal(signal.SIGTERM) != before
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.received is None and signal.getsignal(signal.SIGTERM) == before
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, hung_up)


def test_repeats_within_a_second_count_once_and_signals_after_finish_are_ignored():
    with StopSignal() as stop, stop.deferred():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        stop.finish()
        time.sleep(1.1)
        os.kill(os.getpid(), signal.SIGTERM)  # would end the process


TWICE = """
import os, signal, time
from ddpm.signals import StopSignal
with StopSignal() as stop, stop.deferred():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1.1)
    os.kill(os.getpid(), signal.SIGTERM)
    print("continued")
"""


def test_a_second_signal_ends_the_process_at_once():
    ended = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True)
    assert ended.returncode == 128 + signal.SIGTERM and "continued" not in ended.stdout


def test_a_forked_worker_ignores_signals():
    with StopSignal() as stop, stop.deferred():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0 if stop.received is None else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_a_signal_after_finish_is_pending_for_the_outer_block():
    with StopSignal():
        with StopSignal() as stop:
            with stop.deferred():
                stop.finish()
            os.kill(os.getpid(), signal.SIGUSR1)
        assert pending() == "SIGUSR1"
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
    assert pending() is None


def test_interruptible_work_inside_training_stops_at_once(capfd):
    with StopSignal() as stop, stop.deferred():
        with pytest.raises(Stopped, match=r"^stopped by SIGTERM$"), stop.interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the signal was ignored")
        assert stop.received == "SIGTERM"
        with pytest.raises(Stopped), stop.interruptible():
            pytest.fail("the work started after a signal")
    assert capfd.readouterr().err.count("SIGTERM: stopping after this step") == 1


def test_an_exchange_within_interruptible_work_is_not_interrupted():
    done = []
    with StopSignal() as stop, stop.deferred():
        with pytest.raises(Stopped), stop.interruptible():
            with stop.uninterrupted():
                os.kill(os.getpid(), signal.SIGTERM)
                done.append(stop.received)
            pytest.fail("a signal during the exchange was lost")
        with stop.uninterrupted():  # no effect outside of interruptible work
            done.append("again")
    assert done == ["SIGTERM", "again"]


SECOND_SIGNAL = """
import os, signal, time
from ddpm.signals import StopSignal
with StopSignal():
    with StopSignal() as stop:
        {inside}
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            time.sleep(1.1)
            os.kill(os.getpid(), signal.SIGTERM)
            print("continued")
"""


@pytest.mark.parametrize("inside", ["", "stop.finish()"], ids=["cleaning up", "after finish"])
def test_a_second_signal_ends_a_process_that_hangs_during_cleanup(inside):
    code = SECOND_SIGNAL.format(inside=inside)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 128 + signal.SIGTERM and ended.stdout == "", ended.stderr
