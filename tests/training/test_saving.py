"""Checkpoints that are written while training continues."""

import errno
import os
import threading

import pytest
import torch

from ddpm.checkpoint_paths import step_of
from ddpm.errors import ConfigError
from ddpm.training import checkpoint, saving
from ddpm.training.checkpoint import CheckpointMetadata
from ddpm.training.saving import Saver


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def saver(tmp_path, warnings):
    return Saver(tmp_path, lambda _: None, warnings.append)


def content(value):
    weights = {"w": torch.full((3,), float(value))}
    return {"raw": weights, "ema": dict(weights), "state": {"exp_avg": weights["w"]}}


def begin(saver, step, value=0):
    saver.start(CheckpointMetadata(step=step, config={}), **content(value))


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_training_may_change_the_weights_while_they_are_written(saver, tmp_path, monkeypatch):
    """The file has the values of the call, and the caller does not wait."""
    go, real = threading.Event(), checkpoint.save

    def slow(*arguments, **options):
        assert go.wait(10)
        return real(*arguments, **options)

    monkeypatch.setattr(saving.checkpoint, "save", slow)
    weights = content(1.0)
    saver.start(CheckpointMetadata(step=1, config={}), **weights)
    assert saver.error() is None, "it waited"
    for tensors in weights.values():
        for tensor in tensors.values():
            tensor.fill_(9.0)
    go.set()
    assert saver.error(last=True) is None
    loaded = checkpoint.load(tmp_path / "checkpoints/step-00000001")
    for which in ("raw", "ema"):
        assert loaded.weights(which)["w"].tolist() == [1.0] * 3
    assert loaded.state()["exp_avg"].tolist() == [1.0] * 3


def test_next_checkpoint_waits_for_the_previous(saver, tmp_path):
    for step in range(1, 6):
        begin(saver, step)
    assert saver.error(last=True) is None
    assert [step_of(path) for path in checkpoint.listed(tmp_path)] == [
        5,
        4,
        3,
        2,
        1,
    ]


def test_third_failure_in_a_row_is_an_error(saver, tmp_path, monkeypatch, warnings):
    begin(saver, 1)
    saver.wait()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        for step in (2, 3):
            begin(saver, step)
            saver.wait()
            assert saver.error() is None and saver.failures == step - 1
        begin(saver, 4)
        saver.wait()
        error = saver.error()
    assert isinstance(error, ConfigError) and "No space left on device" in str(error)
    assert len(warnings) == 2
    place = tmp_path / "checkpoints/step-00000002"
    assert warnings[0].startswith(f"out={place}: cannot be written (")
    assert "B free): " in warnings[0]
    assert warnings[0].endswith("; training continues, and the next checkpoint is another attempt")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_success_resets_the_count_of_failures(saver, monkeypatch, warnings):
    for step in range(1, 8):
        with monkeypatch.context() as patch:
            if step % 3:
                patch.setattr(torch, "save", full)
            begin(saver, step)
            saver.wait()
            assert saver.error() is None
    assert len(warnings) == 5


def test_failure_of_the_last_checkpoint_is_an_error(saver, monkeypatch, warnings):
    monkeypatch.setattr(torch, "save", full)
    begin(saver, 1)
    assert isinstance(saver.error(last=True), ConfigError) and not warnings


@pytest.mark.parametrize("which", ["raw", "ema"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_an_error_at_once(saver, tmp_path, warnings, which, value):
    begin(saver, 1)
    bad = {**content(0), which: {"w": torch.tensor([0.0, value])}}
    saver.start(CheckpointMetadata(step=2, config={}), **bad)
    saver.wait()
    assert str(saver.error()) == (
        f"out={tmp_path}/checkpoints/step-00000002: is not written: w of the {which} weights is "
        "not finite; resume from the previous checkpoint with a lower trainer.lr or "
        "trainer.precision=bf16 or no"
    )
    assert not warnings
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_unexpected_exceptions_are_errors_at_once(saver, monkeypatch, warnings):
    monkeypatch.setattr(saver, "prune", lambda _: 1 / 0)
    begin(saver, 1)
    saver.wait()
    assert isinstance(saver.error(), ZeroDivisionError) and not warnings
