"""Files with the averages of a step."""

import errno
import json
import os

import pytest
import safetensors.torch
import torch

from ddpm.errors import ConfigError
from ddpm.training import checkpoint, snapshots
from ddpm.training.power_profile import Profile
from ddpm.training.run import Run
from ddpm.training.snapshots import SnapshotWriter
from tests.training.test_trainer import METADATA, fit, folder, trainer
from tests.training.test_updates import Running

OPTIONS = {"posthoc_ema": (0.05, 0.1), "max_steps": 6, "posthoc_every": 4, "log_every": 100}


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    monkeypatch.setattr(Run, "plot", lambda _: None)


@pytest.fixture
def run(tmp_path):
    return folder(tmp_path / "a")


def test_a_training_writes_its_averages_at_the_interval_and_at_the_end(run):
    training = trainer(net=Running(), **OPTIONS)
    fit(training, run, METADATA)
    paths = snapshots.listed(run.path)
    assert [*paths] == [4, 6] and paths[6] == snapshots.place(run.path, 6)
    last = snapshots.read(paths[6])
    assert last.step == 6 and last.profiles == (Profile(0.05, 6), Profile(0.1, 6))
    averages, rest = last.tensors()
    for group, expected in zip(averages, training.posthoc.named(), strict=True):
        assert group.keys() == expected.keys()
        assert all(torch.equal(group[name], expected[name]) for name in group)
        assert all(value.dtype == torch.float32 for value in group.values())
    whole = training.ema.model.state_dict()
    assert {*averages[0], *rest} == {*whole} and "norm.running_mean" in rest
    assert all(torch.equal(value, whole[name]) for name, value in rest.items())
    assert snapshots.read(paths[4]).profiles[0].updates == 4
    assert paths[6].stat().st_mode == run.metrics_file.stat().st_mode
    assert not list(paths[6].parent.glob(".*"))


def test_averages_do_not_change_the_training(run, tmp_path):
    """Without them, nothing is written."""
    plain, averaged = trainer(**{**OPTIONS, "posthoc_ema": ()}), trainer(**OPTIONS)
    fit(plain, run, METADATA)
    fit(averaged, folder(tmp_path / "b"), METADATA)
    assert torch.equal(plain.network.values(), averaged.network.values())
    assert torch.equal(plain.ema.model.values(), averaged.ema.model.values())
    assert not (run.path / "snapshots").exists()


def test_only_the_main_process_writes(run, monkeypatch):
    training = trainer(**OPTIONS)
    monkeypatch.setattr(type(training.accelerator), "is_main_process", False)
    training.step = training.num_updates = 4
    training.posthoc.update(4)
    writer = SnapshotWriter(training, run)
    assert writer.is_due()
    writer.start()
    writer.wait()
    assert snapshots.listed(run.path) == {}


def test_a_snapshot_that_a_kill_prevented_is_written_when_the_run_resumes(run):
    fit(trainer(**OPTIONS, checkpoint_every=4), run, METADATA)
    whole = {step: path.read_bytes() for step, path in snapshots.listed(run.path).items()}
    (run.path / "snapshots/.step-00000004.safetensors.77.tmp").write_bytes(b"part")
    snapshots.place(run.path, 4).unlink()
    snapshots.place(run.path, 5).write_bytes(b"of another training")
    snapshots.rewind(run.path, 4)
    assert snapshots.listed(run.path) == {} and not list((run.path / "snapshots").iterdir())
    again = trainer(**OPTIONS)
    again.resume(checkpoint.load(run.path / "checkpoints/step-00000004"))
    fit(again, run, METADATA)
    assert {step: p.read_bytes() for step, p in snapshots.listed(run.path).items()} == whole


def test_a_full_disk_is_a_warning(run, monkeypatch):
    save_file = safetensors.torch.save_file

    def full(tensors, path, metadata=None):
        if "snapshots" in str(path):
            raise safetensors.SafetensorError(os.strerror(errno.ENOSPC))
        save_file(tensors, path, metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    messages = []
    monkeypatch.setattr("ddpm.training.run.warn", messages.append)
    training = trainer(**OPTIONS)
    fit(training, run, METADATA)
    assert training.step == 6 and snapshots.listed(run.path) == {}
    assert len(messages) == 1 and "snapshots cannot be written" in messages[0]
    assert not list((run.path / "snapshots").iterdir())


@pytest.fixture
def path(run):
    fit(trainer(**OPTIONS), run, METADATA)
    return snapshots.place(run.path, 6)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x10
    path.write_bytes(content)


def not_finite(path):
    averages = [{"a": torch.tensor([1.0, float("nan")])}]
    snapshots.write(path, 6, [Profile(0.1, 6)], averages, {})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "it is not what was written"),
        (not_finite, "0/a contains values that are NaN or infinite"),
        (lambda path: path.write_bytes(path.read_bytes()[:-8]), "it cannot be read"),
        (lambda path: path.write_bytes(b""), "its metadata cannot be read"),
        (lambda path: path.write_bytes(b"\xff" * 100), "its metadata cannot be read"),
        (
            lambda path: safetensors.torch.save_file({"0/a": torch.zeros(1)}, path),
            "its metadata cannot be read",
        ),
    ],
)
def test_damage_is_reported(path, damage, reason):
    damage(path)
    with pytest.raises(ConfigError) as caught:
        snapshots.read(path).tensors()
    assert str(caught.value) == (
        f"ckpt={path}: is damaged: {reason}; move it away: the other snapshots can be used without "
        "it"
    )


def test_another_format_is_reported(path):
    content = json.dumps({"format": 2})
    safetensors.torch.save_file({"0/a": torch.zeros(1)}, path, {"ddpm": content})
    with pytest.raises(ConfigError, match="has format 2, but this version of ddpm reads 1"):
        snapshots.read(path)
