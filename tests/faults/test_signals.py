"""Stop signals: one checkpoint, exit status 75, and the same command resumes."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.faults.processes import assert_as, reference, shell

__all__ = ["reference", "shell"]

END = ("trainer.max_steps=30",)
TWO = ("launch.processes=2", *END)
NOTE = "SIGTERM: stopping after this step, with a checkpoint; again = at once"
HANGS = "at_losses(lambda step, values: (time.sleep(600 * (step == 8 and {who})), values)[1])\n"
SLOWLY = "at_losses(lambda step, values: (time.sleep(0.02), values)[1])\n"


def stopped(shell, started):
    """Return the step at which a run stopped; check its message and its checkpoint."""
    assert started.end() == 75, started.err
    step = shell.step()
    message = f"stopped at step {step}, with a checkpoint in outputs/x/checkpoints/step-{step:08d}"
    message += "; to resume: ddpm-train resume=outputs/x"
    assert sum(line.endswith(message) for line in started.err.splitlines()) == 1
    assert "Traceback" not in started.err
    assert shell.good_steps()[0] == step and shell.leftovers() == []
    return step


def assert_resumes(shell, options, expected):
    """Check that the same command finishes the run, equal to an uninterrupted one."""
    shell.heal()
    shell.ended(*options)
    assert_as(expected, shell.run, 30)


# one process


@pytest.mark.slow
def test_during_a_save_and_twice_at_once(shell, reference):
    """A launcher forwards the signal that a scheduler also sends to all processes."""
    shell.hurt("at_save(lambda call: time.sleep(1.5 * (call == 1)), torch, 'save')\n" + SLOWLY)
    options = (*END, "trainer.checkpoint_every=5")
    started = shell.train(*options)
    started.until(shell.writing)
    assert shell.good_steps() == []
    started.signal(signal.SIGTERM)
    time.sleep(0.3)
    started.signal(signal.SIGTERM)
    step = stopped(shell, started)
    assert 5 < step <= 10 and shell.good_steps() == [step, 5]
    assert started.err.count(NOTE) == 1
    assert_resumes(shell, options, reference(1))


@pytest.mark.slow
def test_a_second_signal_ends_a_step_that_hangs(shell, reference):
    shell.hurt(HANGS.format(who="True"))
    options = (*END, "trainer.checkpoint_every=3")
    started = shell.train(*options)
    started.until(lambda: shell.step() == 7 and shell.good_steps() == [6, 3])
    started.signal(signal.SIGTERM)
    started.until(lambda: NOTE in started.err)
    time.sleep(1.2)
    assert started.popen.poll() is None
    started.signal(signal.SIGTERM)
    assert started.end(5) == 128 + signal.SIGTERM
    assert shell.good_steps() == [6, 3] and shell.leftovers() == []
    assert_resumes(shell, options, reference(1))


@pytest.mark.slow
def test_a_second_signal_during_a_save_leaves_the_older_ones(shell, reference):
    shell.hurt("at_save(lambda call: time.sleep(600 * (call == 2)), torch, 'save')\n")
    options = (*END, "trainer.checkpoint_every=5")
    started = shell.train(*options)
    started.until(lambda: shell.good_steps() == [5] and shell.writing())
    started.signal(signal.SIGTERM)
    time.sleep(1.2)
    started.signal(signal.SIGTERM)
    assert started.end(5) == 128 + signal.SIGTERM
    assert shell.good_steps() == [5] and len(shell.leftovers()) == 1
    assert_resumes(shell, options, reference(1))
    assert shell.leftovers() == []


def handles_sigterm(pid):
    """Return True if a process handles SIGTERM."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (mask,) = (line.split()[1] for line in lines if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> signal.SIGTERM - 1 & 1)


@pytest.mark.skipif(not psutil.LINUX, reason="only Linux reports which signals a process handles")
def test_while_it_is_loaded(shell):
    started = shell.train(*END)
    started.until(lambda: handles_sigterm(started.popen.pid))
    started.signal(signal.SIGTERM)
    assert_stopped_before_start(shell, started)


def assert_stopped_before_start(shell, started):
    assert started.end() == 75, started.err
    assert started.err == "ddpm-train: stopped by SIGTERM\n"
    assert not shell.run.exists()


@pytest.mark.slow
@pytest.mark.parametrize("when", ["stopped", "done"])
def test_another_signal_when_it_is_about_to_end(shell, when):
    shell.hurt(
        f"{SLOWLY}import atexit\natexit.register(lambda: (Path('here').touch(), time.sleep(2)))\n"
    )
    started = shell.train("trainer.max_steps=10000" if when == "stopped" else "trainer.max_steps=2")
    if when == "stopped":
        started.until(lambda: shell.step() >= 2)
        started.signal(signal.SIGTERM)
    started.until((shell.folder / "here").exists)
    started.signal(signal.SIGTERM)
    assert started.end() == (75 if when == "stopped" else 0)


@pytest.mark.slow
def test_while_it_builds(shell, reference):
    shell.hurt("Path('here').touch()\ntime.sleep(600)\n")
    started = shell.train(*END)
    started.until((shell.folder / "here").exists)
    started.signal(signal.SIGTERM)
    assert_stopped_before_start(shell, started)
    assert_resumes(shell, END, reference(1))


# two processes


@pytest.mark.slow
def test_two_processes_stop_together(shell):
    shell.hurt(SLOWLY)
    started = shell.train(*TWO, "trainer.max_steps=10000")
    started.until(lambda: shell.step() >= 5)
    started.signal(signal.SIGTERM)
    step = stopped(shell, started)
    assert shell.good_steps() == [step] and started.err.count(NOTE) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "rank"),
    [(signal.SIGTERM, None), (signal.SIGUSR1, None), (signal.SIGTERM, 0), (signal.SIGTERM, 1)],
    ids=["launcher", "warning", "first", "second"],
)
def test_one_checkpoint_whichever_process_is_signalled(shell, reference, number, rank):
    shell.hurt(SLOWLY)
    started = shell.train(*TWO)
    started.until(lambda: shell.step() >= 5)
    started.signal(number, rank)
    step = stopped(shell, started)
    assert step < 30 and shell.good_steps() == [step]
    assert_resumes(shell, TWO, reference(2))


@pytest.mark.slow
def test_ctrl_c_in_a_terminal(shell, reference):
    shell.hurt(SLOWLY)
    started = shell.train(*TWO, start_new_session=True)
    started.until(lambda: shell.step() >= 5)
    os.killpg(started.popen.pid, signal.SIGINT)
    step = stopped(shell, started)
    assert step < 30 and shell.good_steps() == [step]
    assert_resumes(shell, TWO, reference(2))


@pytest.mark.slow
def test_two_processes_during_a_save(shell, reference):
    shell.hurt("at_save(lambda call: time.sleep(2 * (call == 1)), torch, 'save')\n" + SLOWLY)
    options = (*TWO, "trainer.checkpoint_every=5")
    started = shell.train(*options)
    started.until(shell.writing)
    started.signal(signal.SIGTERM)
    step = stopped(shell, started)
    assert 5 < step <= 10 and shell.good_steps() == [step, 5]
    assert_resumes(shell, options, reference(2))


@pytest.mark.slow
@pytest.mark.parametrize("who", ["True", "RANK == 1"], ids=["both hang", "one hangs"])
def test_a_second_signal_ends_two_processes(shell, reference, who):
    shell.hurt(HANGS.format(who=who))
    options = (*TWO, "trainer.checkpoint_every=3")
    started = shell.train(*options)
    started.until(lambda: shell.step() == 7 and shell.good_steps() == [6, 3])
    time.sleep(1)  # both are in step 8
    started.signal(signal.SIGTERM)
    time.sleep(1.2)
    assert started.popen.poll() is None
    started.signal(signal.SIGTERM)
    assert started.end(30) == 128 + signal.SIGTERM
    assert "ddpm-train: " not in started.err
    assert shell.good_steps() == [6, 3] and shell.leftovers() == []
    assert_resumes(shell, options, reference(2))


@pytest.mark.slow
def test_two_processes_while_they_build(shell, reference):
    shell.hurt("Path(f'here-{RANK}').touch()\ntime.sleep(600)\n")
    started = shell.train(*TWO)
    started.until(lambda: all((shell.folder / f"here-{rank}").exists() for rank in (0, 1)))
    started.signal(signal.SIGTERM)
    assert started.end(30) == 75, started.err
    assert "stopped by SIGTERM" in started.err and not shell.run.exists()
    assert_resumes(shell, TWO, reference(2))


@pytest.mark.slow
@pytest.mark.skipif(not psutil.LINUX, reason="only Linux reports which signals a process handles")
@pytest.mark.parametrize("seconds", [0, 2, 4, 6, 8])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_two_processes_while_they_are_loaded(shell, seconds, number):
    started = shell.train(*TWO, "trainer.max_steps=10000", start_new_session=True)
    started.until(lambda: handles_sigterm(started.popen.pid))
    time.sleep(seconds)
    if number == signal.SIGINT:  # a terminal sends it to all
        os.killpg(started.popen.pid, number)
    else:
        started.signal(number)
    assert started.end(60) == 75, started.err
    assert "Traceback" not in started.err
    assert (
        shell.good_steps() == ([shell.step()] if shell.step() else []) and shell.leftovers() == []
    )


# within network calls

CALLS = """
from ddpm.diffusion import Denoiser
real = Denoiser.__call__


def slowly(self, *args, **kwargs):
    Path(f"drawing-{RANK}").touch()
    time.sleep({seconds})
    return real(self, *args, **kwargs)


Denoiser.__call__ = slowly
"""


def hurt_calls(shell, seconds):
    shell.hurt(CALLS.replace("{seconds}", str(seconds)))


def until_it_draws(shell, started, processes):
    started.until(lambda: all((shell.folder / f"drawing-{n}").exists() for n in range(processes)))
    time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "rank", "seconds"),
    [(1, None, 600), (2, None, 600), (2, 1, 1.0)],
    ids=["one", "two", "one of two"],
)
def test_during_a_preview(shell, reference, processes, rank, seconds):
    """A network call of 600 seconds does not delay the stop."""
    hurt_calls(shell, seconds)
    previews = ("trainer.preview_every=7", "trainer.preview_samples=2", "sampler.steps=3")
    options = (f"launch.processes={processes}", *END, *previews)
    started = shell.train(*options)
    until_it_draws(shell, started, processes)
    started.signal(signal.SIGINT, rank)
    assert stopped(shell, started) == 7
    assert list((shell.run / "samples").iterdir()) == []
    assert_resumes(shell, options, reference(processes))
    pictures = sorted(path.name for path in (shell.run / "samples").iterdir())
    assert pictures == [f"step-{n:08d}.png" for n in (7, 14, 21, 28, 30)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "processes", "rank"),
    [("sample", 1, None), ("sample", 2, None), ("sample", 2, 1), ("interpolate", 1, None)],
    ids=["sample", "sample in two", "sample, one of two", "interpolate"],
)
def test_while_it_draws(shell, command, processes, rank):
    shell.ended("trainer.max_steps=2")
    hurt_calls(shell, 600)
    what = ("a=1", "b=2") if command == "interpolate" else ("num_samples=4",)
    options = ("ckpt=outputs/x", "plugins=[hurt]", "out=made", "steps=3", *what)
    options = (*options, f"launch.processes={processes}")
    started = shell.start(*options, command=command)
    until_it_draws(shell, started, processes)
    started.signal(signal.SIGINT, rank)
    assert started.end(20) == 75, started.err
    assert started.line == (
        f"ddpm-{command}: stopped by SIGINT; no file was written; run the same command again"
    )
    assert not (shell.folder / "made").exists()
    assert "Traceback" not in started.err
    shell.heal()
    assert shell.start(*options, command=command).end() == 0
