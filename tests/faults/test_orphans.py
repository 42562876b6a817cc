"""Workers end within 10 seconds after their launcher was killed at any time."""

import os
import signal
import time

import psutil
import pytest

from tests.faults.processes import assert_as, reference, shell

__all__ = ["reference", "shell"]

TWO = ("launch.processes=2", "trainer.max_steps=30")
SECONDS = 10
SLOWLY = "at_losses(lambda step, values: (time.sleep(0.1), values)[1])\n"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not psutil.LINUX, reason="torch signals workers only on Linux"),
]


def kill_launcher(shell, started):
    """Kill the launcher, and check that its processes end within ten seconds."""
    started.signal(signal.SIGKILL)
    assert started.popen.wait(SECONDS) == -signal.SIGKILL
    started.until(lambda: not shell.living(), SECONDS, living=False)


def workers(started):
    """Return the worker processes, even while they import."""
    try:
        children = psutil.Process(started.popen.pid).children()
        return [each for each in children if "spawn_main" in " ".join(each.cmdline())]
    except psutil.Error:
        return []


@pytest.mark.parametrize("seconds", [0, 1, 3])
def test_while_workers_import(shell, seconds):
    started = shell.train(*TWO)
    started.until(lambda: len(workers(started)) == 2)
    time.sleep(seconds)
    kill_launcher(shell, started)
    assert not shell.run.exists()


def test_while_workers_build(shell):
    shell.hurt("Path(f'here-{RANK}').touch()\ntime.sleep(600)\n")
    started = shell.train(*TWO)
    started.until(lambda: all((shell.folder / f"here-{rank}").exists() for rank in (0, 1)))
    kill_launcher(shell, started)
    assert not shell.run.exists()


@pytest.mark.parametrize("who", ["True", "RANK == 1"], ids=["both hang", "one hangs"])
def test_in_a_step_without_an_end(shell, reference, who):
    """The previous checkpoint is intact, since no new one can be written."""
    change = f"lambda step, values: (time.sleep(600 * (step == 8 and ({who}))), values)[1]"
    shell.hurt(f"at_losses({change})\n")
    options = (*TWO, "trainer.checkpoint_every=3")
    started = shell.train(*options)
    started.until(lambda: shell.step() == 7 and shell.good_steps() == [6, 3])
    time.sleep(1)
    kill_launcher(shell, started)
    assert shell.good_steps() == [6, 3] and shell.leftovers() == []
    shell.heal()
    shell.ended(*options)
    assert_as(reference(2), shell.run, 30)


def test_a_save_that_takes_longer_is_finished(shell, reference):
    shell.hurt("at_save(lambda call: time.sleep(12 * (call == 1)), torch, 'save')\n")
    options = (*TWO, "trainer.checkpoint_every=5")
    started = shell.train(*options)
    started.until(shell.writing)
    started.signal(signal.SIGKILL)
    started.until(lambda: not shell.living(), 12 + SECONDS, living=False)
    assert 5 in shell.good_steps() and shell.leftovers() == []
    shell.heal()
    shell.ended(*options)
    assert_as(reference(2), shell.run, 30)


WORKERS_HANG = (
    "from ddpm.data import Digits\n"
    "def fetch(self, indices, keys):\n"
    "    Path(f'reads-{os.getpid()}').touch()\n"
    "    time.sleep(600)\n"
    "Digits.fetch = fetch\n"
)


def test_with_data_workers_that_hang(shell):
    shell.hurt(WORKERS_HANG)
    started = shell.train(*TWO, "trainer.num_workers=1")
    started.until(lambda: len(list(shell.folder.glob("reads-*"))) == 2)
    kill_launcher(shell, started)


@pytest.mark.parametrize("command", ["train", "sample"])
def test_while_workers_that_are_done_wait_for_it(shell, reference, command):
    """The launcher is stopped and misses their end; torch makes the workers wait for it."""
    if command == "train":
        shell.hurt(SLOWLY)
        started = shell.train(*TWO)
        started.until(lambda: shell.step() >= 2)
    else:
        ckpt = (f"ckpt={reference(1)}", "out=s", "num_samples=2", "steps=50")
        started = shell.start(*ckpt, TWO[0], command="sample")
        started.until(lambda: "drawing" in started.out)
    both = workers(started)  # connected, which needs the launcher
    started.signal(signal.SIGSTOP)
    started.until(lambda: "done: " in started.out)
    started.until(lambda: all(signal.SIGTERM in handled(each) for each in both))
    time.sleep(2)
    assert len(shell.living()) >= 3
    kill_launcher(shell, started)
    if command == "train":
        assert_as(reference(2), shell.run, 30)
        assert "is done: 30 steps" in shell.ended(*TWO).out


def handled(process):
    with open(f"/proc/{process.pid}/status") as status:
        (mask,) = [line.split()[1] for line in status if line.startswith("SigCgt:")]
    return {each for each in signal.Signals if int(mask, 16) >> (each - 1) & 1}


def test_a_worker_that_waits_for_a_stopped_launcher_obeys_a_signal(shell):
    """Not at once: a signal of a scheduler after the work must not make a run fail."""
    shell.hurt(SLOWLY)
    started = shell.train(*TWO)
    started.until(lambda: shell.step() >= 2)
    both = workers(started)
    started.signal(signal.SIGSTOP)
    started.until(lambda: "done: " in started.out)
    time.sleep(2)
    for each in both:
        os.kill(each.pid, signal.SIGTERM)
    time.sleep(1)
    assert all(each.status() != psutil.STATUS_ZOMBIE for each in both)
    time.sleep(8)
    for each in both:
        os.kill(each.pid, signal.SIGTERM)
    started.until(lambda: all(each.status() == psutil.STATUS_ZOMBIE for each in both), 5)


def test_data_workers_end_with_their_process(shell):
    shell.hurt(WORKERS_HANG)
    started = shell.train("trainer.num_workers=2")
    started.until(lambda: len(list(shell.folder.glob("reads-*"))) == 2)
    kill_launcher(shell, started)
