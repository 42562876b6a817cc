"""Signals and Ctrl-C: one exit status, one line, in every command and at every point."""

import os
import signal

import pytest

from ddpm.cli import app
from tests.cli.test_help import COMMANDS


def interrupt(*_, **__):
    """What Ctrl-C in a terminal does to this process."""
    os.kill(os.getpid(), signal.SIGINT)
    pytest.fail("the signal was not obeyed")


@pytest.mark.parametrize("name", COMMANDS)
def test_during_help(command, monkeypatch, name):
    monkeypatch.setattr(app, "usage", interrupt)
    ended = command(name, "--help")
    assert ended.status == 75 and ended.out == ""
    assert ended.err == f"ddpm-{name}: stopped by SIGINT\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_during_composition(command, monkeypatch, name):
    monkeypatch.setattr("ddpm.cli.sweeps.placed", interrupt)
    ended = command(name)
    assert ended.status == 75 and ended.err == f"ddpm-{name}: stopped by SIGINT\n"


@pytest.mark.parametrize("name", ["train", "sample"])
def test_no_further_job_of_a_sweep_starts(command, monkeypatch, name):
    started = []
    monkeypatch.setattr(app, "_run", lambda *_: (started.append(0), interrupt()))
    options = ["ckpt=x"] if name == "sample" else []
    ended = command(name, "-m", "seed=1,2,3", *options)
    assert ended.status == 75 and started == [0]
    assert ended.err == f"ddpm-{name}: stopped by SIGINT\n"


def test_other_processes_of_a_launcher_say_nothing(command, monkeypatch):
    monkeypatch.setattr(app, "usage", interrupt)
    monkeypatch.setenv("RANK", "1")
    ended = command("sample", "--help")
    assert ended.status == 75 and ended.err == ""
