"""Signals and Ctrl-C: exit status 75 and one line in every command, at every point."""

import hashlib
import os
import signal
from pathlib import Path

import pytest
import torch
from hydra.errors import HydraException

from ddpm import generation
from ddpm.cli import app, workers
from ddpm.cli.argument_errors import COMMANDS
from ddpm.distributed.processes import SingleProcess
from ddpm.distributed.sharding import Shard
from ddpm.distributed.stopping import GivenUpError, Stopping
from ddpm.errors import ConfigError, Stopped
from ddpm.runs import previews
from ddpm.signals import StopSignal


def interrupt(*_, **__):
    """Send SIGINT to this process, as Ctrl-C in a terminal does."""
    os.kill(os.getpid(), signal.SIGINT)
    pytest.fail("the signal was ignored")


@pytest.mark.parametrize("name", COMMANDS)
def test_during_help(command, monkeypatch, name):
    monkeypatch.setattr(app, "usage", interrupt)
    ended = command(name, "--help")
    assert ended.status == 75 and ended.out == ""
    assert ended.err == f"ddpm-{name}: stopped by SIGINT\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_during_composition(command, monkeypatch, name):
    monkeypatch.setattr("ddpm.cli.sweeps.with_sweep_dir", interrupt)
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


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("ddpm.cli.sweeps.prepare", ConfigError("-m", None, "cannot be read")),
        ("hydra._internal.hydra.Hydra.run", ValueError("")),
        ("hydra._internal.hydra.Hydra.run", HydraException("")),
        ("ddpm.cli.app._run", ImportError("numpy")),
        ("ddpm.cli.app._run", ConfigError("plugins", None, "no such module")),
    ],
)
def test_errors_caused_by_a_signal_are_hidden(command, monkeypatch, place, error):
    def interrupted_call(*_, **__):
        try:
            interrupt()
        except Stopped:
            raise error from None

    monkeypatch.setattr(place, interrupted_call)
    ended = command("export", "ckpt=x")
    assert ended.status == 75 and ended.err == "ddpm-export: stopped by SIGINT\n"


def test_a_signal_during_an_import_stops_before_processes_start():
    with StopSignal() as stop:
        stop.received = "SIGINT"
        with pytest.raises(Stopped, match="stopped by SIGINT"), workers._forwarding():
            pytest.fail("the signal was ignored")


def test_other_processes_of_a_launcher_print_nothing(command, monkeypatch):
    monkeypatch.setattr(app, "usage", interrupt)
    monkeypatch.setenv("RANK", "1")
    ended = command("sample", "--help")
    assert ended.status == 75 and ended.err == ""


CPU = SingleProcess(torch.device("cpu"))


class Scripted(Stopping):
    """Stop at the check with this number."""

    def __init__(self, last):
        self.last, self.num_checks = last, 0

    def __call__(self):
        self.num_checks += 1
        return self.num_checks >= self.last


@pytest.mark.parametrize("calls", [0, 2, 5])
def test_processes_with_fewer_calls_check_as_often(calls):
    stopping = Scripted(100)
    shard = Shard(CPU, 5, 1, stopping=stopping, check_at_end=True)
    with shard.interruptible():
        for _ in range(calls):
            shard.tick()
    shard.finish()
    assert stopping.num_checks == 6  # one after each call, and one at the end


def test_a_call_that_a_signal_ends_is_followed_by_one_check():
    stopping = Scripted(3)
    shard = Shard(CPU, 5, 1, stopping=stopping, check_at_end=True)
    with pytest.raises(GivenUpError), shard.interruptible():
        shard.tick()
        shard.tick()
        raise Stopped
    assert stopping.num_checks == 3


DRAWS = ("trainer.preview_every=2", "trainer.preview_samples=3", "sampler.steps=3")


@pytest.fixture
def interrupted(monkeypatch):
    """Return a function: ``interrupted(2)`` sends a signal during the second next preview."""
    real = generation.generate

    def at(number):
        calls = []

        def generate(*arguments, on_step, **options):
            calls.append(None)

            def after(done, total, x):
                if len(calls) == number and done == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                    pytest.fail("the signal was ignored")
                on_step(done, total, x)

            yield from real(*arguments, on_step=after, **options)

        monkeypatch.setattr(previews, "generate", generate)

    return at


def digests(run):
    """Return hashes of the pictures and of the weights of the last checkpoint."""
    files = [
        *Path(run, "samples").iterdir(),
        *Path(run, "checkpoints/step-00000004").glob("*.saf*"),
    ]
    assert len(files) == 4
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_an_interrupted_preview_is_drawn_on_resume(command, tiny, interrupted):
    options = (*tiny, *DRAWS, "trainer.max_steps=4")
    assert command("train", "name=whole", *options).status == 0
    for number, step in ((1, 2), (2, 4)):  # the second time, that of step 2 is drawn first
        interrupted(number)
        ended = command("train", "name=cut", *options)
        checkpoint = f"outputs/cut/checkpoints/step-0000000{step}"
        assert ended.status == 75
        assert ended.err.splitlines()[-1] == (
            f"ddpm-train: stopped at step {step}, with a checkpoint in {checkpoint}; "
            "to resume: ddpm-train resume=outputs/cut"
        )
        done = [] if step == 2 else ["step-00000002.png"]
        assert os.listdir("outputs/cut/samples") == done
    interrupted(None)
    assert command("train", "name=cut", *options).status == 0
    assert digests("outputs/cut") == digests("outputs/whole")
    again = command("train", "name=cut", *options)
    assert again.status == 0 and "is done: 4 steps" in again.out


def test_a_signal_at_the_last_step_defers_the_preview(command, tiny, monkeypatch):
    from ddpm.training import Trainer

    real = Trainer.accumulate_gradient

    def accumulate_gradient(self, *arguments):
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)

    monkeypatch.setattr(Trainer, "accumulate_gradient", accumulate_gradient)
    options = ("name=last", *tiny, *DRAWS, "trainer.max_steps=2")
    ended = command("train", *options)
    assert ended.status == 75 and "stopped at step 2, with a checkpoint" in ended.err
    assert os.listdir("outputs/last/samples") == []
    assert command("train", *options).status == 0
    assert os.listdir("outputs/last/samples") == ["step-00000002.png"]


def test_the_message_of_an_interrupted_command_names_its_incomplete_folder(
    command, trained, monkeypatch
):
    real = generation.generate

    def generate(*arguments, **options):
        yield next(real(*arguments, **options))
        interrupt()

    options = (f"ckpt={trained}", "num_samples=2", "batch_size=1", "steps=1")
    new = f"{trained}/generated/step-00000002-unipc-1-seed-0"
    with monkeypatch.context() as patched:
        patched.setattr(generation, "generate", generate)
        for out, folder, same in (("made", "made", ""), ("null", new, f" with out={new}")):
            ended = command("sample", *options, f"out={out}")
            assert ended.status == 75 and ended.line == (
                f"ddpm-sample: stopped by SIGINT; {folder} is incomplete, the same command{same} "
                "draws all of it again"
            )
            assert os.listdir(f"{folder}/images") == ["00000.png"]
    for folder in ("made", new):
        assert command("sample", *options, f"out={folder}").status == 0
        assert sorted(os.listdir(f"{folder}/images")) == ["00000.png", "00001.png"]
