"""Updates that are decided on the device: skipped steps, errors, resumed runs, the scaler."""

import math
import subprocess
import sys
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch import nn

from ddpm.checkpoint_paths import step_of
from ddpm.errors import ConfigError, Stopped
from ddpm.signals import StopSignal
from ddpm.training import checkpoint
from ddpm.training.loop import TrainingLoop
from ddpm.training.run import Run
from ddpm.training.updates import Updates
from tests.training.test_trainer import (
    METADATA,
    Net,
    Overflows,
    fit,
    folder,
    trainer,
    with_scaler,
)

_init = Updates.__init__
OPTIONS = {
    "lr": 0.05, "lr_warmup": 3, "lr_decay": "cosine", "weight_decay": 0.1, "clip_grad_norm": 1.0,
    "on_nonfinite": "skip", "max_skips": 2, "max_steps": 8, "log_every": 100,
    "posthoc_ema": (0.05, 0.2), "posthoc_every": 8,
}  # fmt: skip


class Running(Net):
    """Network whose buffer changes in each forward pass."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x):
        return self.layer(self.norm(x))


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    """Leave out the plot of the losses, which takes longer than the steps."""
    monkeypatch.setattr(Run, "plot", lambda _: None)


@pytest.fixture
def delayed(monkeypatch):
    """Decide about each step during the next one, as on a GPU."""
    monkeypatch.setattr(Updates, "__init__", partialmethod(Updates.__init__, delayed=True))


@pytest.fixture
def run(tmp_path):
    return folder(tmp_path / "a")


def values(training):
    """Return all tensors and counters of a training."""
    state = training.state()
    optimizer = state["optimizer"]["state"]
    return {
        **training.network.state_dict(),
        **{f"ema.{name}": value for name, value in training.ema.model.state_dict().items()},
        **{f"{i}.{name}": value for i, each in optimizer.items() for name, value in each.items()},
        "counters": torch.tensor(
            [training.step, training.num_updates, training.skipped, training.num_skipped]
            + [state["ema"]["step"], training.samples]
        ),
        **{
            f"{each['sigma_rel']}.{name}": value
            for each in state["posthoc"] for name, value in each["weights"].items()
        },
        "posthoc": torch.tensor([[each["start"], each["updates"]] for each in state["posthoc"]]),
        "lr": torch.tensor([group["lr"] for group in state["optimizer"]["param_groups"]]),
    }  # fmt: skip


def assert_equal(training, expected):
    result = values(training)
    assert result.keys() == expected.keys()
    for name, value in result.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("broken", [set(), {2}, {2, 3, 6}, {7}])
def test_the_bits_are_those_of_steps_that_the_host_skips(tmp_path, monkeypatch, broken):
    results = []
    for each in (False, True):
        monkeypatch.setattr(Updates, "__init__", partialmethod(_init, delayed=each))
        training = trainer(Overflows(broken), Running(), **OPTIONS)
        fit(training, folder(tmp_path / str(each)), METADATA)
        results.append(values(training))
        assert training.num_updates == 8 - len(broken) == training.ema.state()["step"]
        assert {each.updates for each in training.posthoc.profiles} == {8 - len(broken)}
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_a_step_is_decided_during_the_next_one(run, delayed):
    """At its decision the gradient of the next one exists, except before a log or a checkpoint."""
    training, decided = trainer(**{**OPTIONS, "log_every": 4, "max_steps": 7}), []
    loop = TrainingLoop(training, run, METADATA)
    decide = loop.updates.decide
    loop.updates.decide = lambda result, agreed: (
        decided.append((result.step, len(training.loss.calls))),
        decide(result, agreed),
    )[1]
    loop.train()
    assert decided == [(0, 2), (1, 3), (2, 4), (3, 4), (4, 6), (5, 7), (6, 7)]


def test_the_error_is_that_of_the_step_that_broke(run, delayed):
    options = {**OPTIONS, "on_nonfinite": "stop", "lr_decay": "constant"}
    training = trainer(Overflows({3}), **options)
    with pytest.raises(ConfigError, match="the gradient of step 4 is not finite") as caught:
        fit(training, run, METADATA)
    indices = [index for index, _ in training.loader.order.items(24, 8)]
    assert f"loss inf of sample {indices[0]} at t=" in str(caught.value)
    assert len(training.loss.calls) == 5  # the next step had begun
    assert (training.step, training.num_updates, training.samples) == (3, 3, 24)
    clean = trainer(**{**options, "max_steps": 3})
    fit(clean, folder(run.path.parent / "b"), METADATA)
    assert torch.equal(training.network.values(), clean.network.values())
    assert torch.equal(training.ema.model.values(), clean.ema.model.values())


def test_too_many_skipped_steps_are_an_error(run, delayed):
    training = trainer(Overflows({1, 3, 4, 5}), **OPTIONS)
    with pytest.raises(ConfigError, match="of step 6 is not finite after 2 skipped steps"):
        fit(training, run, METADATA)
    assert (training.step, training.num_updates, training.num_skipped) == (5, 2, 3)


@pytest.mark.parametrize("saved", [2, 3, 4])
def test_a_checkpoint_waits_for_the_decision(run, delayed, saved):
    """A run resumed before, at or after a skipped step ends with the bits of the whole one."""
    whole = trainer(Overflows({2}), Running(), **OPTIONS, checkpoint_every=saved, keep_last=9)
    fit(whole, run, METADATA)
    path = next(p for p in checkpoint.listed(run.path) if step_of(p) == saved)
    again = trainer(Overflows({2 - saved}), Running(), **OPTIONS)
    again.resume(checkpoint.load(path))
    assert again.num_updates == saved - (saved > 2)
    fit(again, folder(run.path.parent / "b"), METADATA)
    assert_equal(again, values(whole))


def test_the_scaler_decides_in_fp16(tmp_path, delayed):
    results = []
    for each in (False, True):
        options = {**OPTIONS, "on_nonfinite": "stop"}
        training = with_scaler(Overflows({0, 3}), **options)
        loop = TrainingLoop(training, folder(tmp_path / str(each)), METADATA)
        loop.updates.delayed = each
        loop.train()
        assert training.num_updates == 6 and training.accelerator.scaler.get_scale() == 256
        results.append(values(training))
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_a_stop_signal_ends_the_run_after_the_next_step(run, delayed):
    signal = StopSignal()
    training = trainer(**OPTIONS)
    begin = training.accumulate_gradient

    def accumulate_gradient(batches):
        signal.received = "SIGTERM" if training.step == 3 else signal.received
        return begin(batches)

    training.accumulate_gradient = accumulate_gradient
    loop = TrainingLoop(training, run, METADATA, stop=signal)
    with pytest.raises(Stopped, match="stopped at step 5"):
        loop.train()
    assert step_of(checkpoint.listed(run.path)[0]) == 5 == training.num_updates
    assert [record["step"] for record in run.metrics()] == [5]


def test_one_checkpoint_is_written_when_the_clock_says_so(run, delayed, monkeypatch):
    training = trainer(**{**OPTIONS, "max_steps": 6}, keep_last=9)
    loop = TrainingLoop(training, run, METADATA)
    due = {"now": False}

    def is_due():
        due["now"] = due["now"] or training.step == 1
        return due["now"]

    monkeypatch.setattr(loop.save_timer, "is_due", is_due)
    monkeypatch.setattr(loop.save_timer, "restart", lambda: due.update(now=False))
    loop.train()
    assert sorted(map(step_of, checkpoint.listed(run.path))) == [3, 6]


def test_losses_that_are_nan_are_skipped(run, delayed):
    class Nan(Overflows):
        def __call__(self, *arguments, **options):
            return super().__call__(*arguments, **options) * (math.nan if self.broken else 1.0)

        @property
        def broken(self):
            return len(self.calls) - 1 in self.steps

    training = trainer(Nan({1}), **OPTIONS)
    fit(training, run, METADATA)
    assert training.num_updates == 7 and training.network.values().isfinite().all()


TWO = """
import os, sys, types, torch
from pathlib import Path
tests = types.ModuleType("tests")  # another package may have that name
tests.__path__ = [sys.argv[1]]
sys.modules["tests"] = tests
from tests.training.test_trainer import METADATA, Overflows, folder, trainer
from ddpm.training.loop import TrainingLoop
from ddpm.training.run import Run
results = []
for delayed in (False, True):
    training = trainer(Overflows({2, 3}), lr=0.05, max_steps=8, log_every=100, on_nonfinite="skip")
    accelerator = training.accelerator
    if accelerator.is_main_process:
        training.loss.steps = set()
        folder(Path(sys.argv[2]) / str(delayed))
    accelerator.wait_for_everyone()
    loop = TrainingLoop(training, Run(Path(sys.argv[2]) / str(delayed)), METADATA)
    loop.updates.delayed = delayed
    loop.train()
    results.append((training.network.values(), training.ema.model.values()))
    assert training.num_updates == 6
equal = all(torch.equal(a, b) for a, b in zip(*results))
print("equal" if equal else "different", accelerator.num_processes, flush=True)
accelerator.wait_for_everyone()
os._exit(0)
"""


@pytest.mark.slow
def test_processes_skip_a_step_that_overflows_on_one_of_them(tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    arguments = [str(tmp_path / "two.py"), str(Path(__file__).parents[1]), str(tmp_path)]
    ended = subprocess.run([*launcher, *arguments], capture_output=True, text=True, timeout=240)
    assert ended.stdout.splitlines() == ["equal 2"] * 2, ended.stderr
