"""Being told to stop: at once, at the next step, or not any more."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ddpm.errors import Stopped
from ddpm.signals import SIGNALS, StopSignal, pending


@pytest.mark.parametrize("number", SIGNALS)
def test_while_nothing_can_be_lost_a_signal_stops_at_once(number):
    with StopSignal() as stop, pytest.raises(Stopped, match=f"^stopped by {number.name}$"):
        os.kill(os.getpid(), number)
    assert stop.received == number.name


@pytest.mark.parametrize("number", SIGNALS)
def test_while_training_it_is_a_flag(number, capfd):
    with StopSignal() as stop, stop.deferred():
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received == number.name
    assert f"{number.name}: stopping after this step, with a checkpoint" in capfd.readouterr().err


def test_a_signal_that_came_before_training_stops_it():
    with StopSignal() as stop:
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped), stop.deferred():
            pytest.fail("training began")


def test_handlers_come_back_and_what_is_ignored_stays_ignored():
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


def test_an_echo_within_a_second_is_the_same_wish_and_once_all_is_saved_nothing_is_heard():
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
    print("went on")
"""


def test_a_second_signal_ends_the_process_at_once():
    ended = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True)
    assert ended.returncode == 128 + signal.SIGTERM and "went on" not in ended.stdout


def test_a_fork_that_reads_data_does_not_care():
    with StopSignal() as stop, stop.deferred():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0 if stop.received is None else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_one_that_comes_when_all_is_saved_is_kept_for_what_would_come_next():
    with StopSignal():
        with StopSignal() as stop:
            with stop.deferred():
                stop.finish()
            os.kill(os.getpid(), signal.SIGUSR1)
        assert pending() == "SIGUSR1"
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
    assert pending() is None


def test_interruptible_work_inside_training_is_left_at_once(capfd):
    with StopSignal() as stop, stop.deferred():
        with pytest.raises(Stopped, match=r"^stopped by SIGTERM$"), stop.interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the signal was not obeyed")
        assert stop.received == "SIGTERM"
        with pytest.raises(Stopped), stop.interruptible():
            pytest.fail("the work was begun after a signal")
    assert capfd.readouterr().err.count("SIGTERM: stopping after this step") == 1


def test_an_exchange_within_interruptible_work_is_not_interrupted():
    done = []
    with StopSignal() as stop, stop.deferred():
        with pytest.raises(Stopped), stop.interruptible():
            with stop.uninterrupted():
                os.kill(os.getpid(), signal.SIGTERM)
                done.append(stop.received)
            pytest.fail("what arrived during the exchange was forgotten")
        with stop.uninterrupted():  # outside of such work it changes nothing
            done.append("again")
    assert done == ["SIGTERM", "again"]


INSISTING = """
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


@pytest.mark.parametrize("inside", ["", "stop.finish()"], ids=["winding up", "all is saved"])
def test_a_second_signal_ends_a_process_that_hangs_at_its_end(inside):
    code = INSISTING.format(inside=inside)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 128 + signal.SIGTERM and ended.stdout == "", ended.stderr
