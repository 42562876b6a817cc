"""Checkpoints are complete or absent."""

import errno
import json
import os
import re
import shutil
import stat
from pathlib import Path

import pytest
import torch

from ddpm.errors import ConfigError
from ddpm.training import checkpoint
from ddpm.training.checkpoint import CheckpointMetadata
from ddpm.training.retention import prune


def content(step):
    torch.manual_seed(step)
    raw = {"a.weight": torch.randn(3, 4), "b": torch.arange(5), "c": torch.tensor(1.5)}
    return {
        "raw": raw,
        "ema": {name: value + 1 for name, value in raw.items()},
        "state": {"step": step, "optimizer": {"state": {0: {"exp_avg": torch.randn(2)}}}},
    }


def write(run, step, **metadata):
    written = CheckpointMetadata(step=step, config={"seed": 1}, **metadata)
    return checkpoint.save(run / checkpoint.FOLDER, written, **content(step))


def hidden(run):
    return [path.name for path in (run / checkpoint.FOLDER).iterdir() if path.name[0] == "."]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_save_and_load(tmp_path):
    folder = write(tmp_path, 7, data={"shape": [1, 8, 8]})
    assert folder == tmp_path / "checkpoints/step-00000007"
    loaded = checkpoint.load(folder)
    assert loaded.step == 7 and loaded.config == {"seed": 1} and loaded.run == tmp_path
    assert loaded.metadata.data == {"shape": [1, 8, 8]}
    expected = content(7)
    assert same(loaded.weights("raw"), expected["raw"])
    assert same(loaded.weights("ema"), expected["ema"])
    assert same(loaded.state()["optimizer"]["state"][0], expected["state"]["optimizer"]["state"][0])
    assert hidden(tmp_path) == []


def test_metadata_are_flat_json_without_none():
    data = {"shape": [1, 8, 8], "num_classes": None, "class_names": None, "codec": {}}
    metadata = CheckpointMetadata(config={"seed": 1}, step=3, data=data, threads=2, ddpm="1")
    written = metadata.to_json()
    assert written == {"config": {"seed": 1}, "step": 3, "threads": 2, "ddpm": "1", **data}
    assert CheckpointMetadata.from_json(written) == metadata
    assert CheckpointMetadata.from_json({**written, "of": "a later version"}) == metadata


def test_metadata_of_an_earlier_version_are_migrated():
    config = {"extractor": {"_target_": "ddpm.fidelity.Auto"}}
    metadata = CheckpointMetadata.from_json({"config": config, "step": 3})
    assert metadata.config == {"extractor": {"_target_": "ddpm.metrics.Auto"}}


@pytest.mark.parametrize("content", [[], {}, {"config": {}}, {"config": 1, "step": 2}, {"step": 2}])
def test_other_content_is_not_metadata(content):
    with pytest.raises((KeyError, TypeError, ValueError)):
        CheckpointMetadata.from_json(content)


def test_tensors_with_channels_last_are_saved(tmp_path):
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert not image.is_contiguous()
    weights = {"w": image}
    metadata = CheckpointMetadata(step=1, config={})
    folder = checkpoint.save(tmp_path, metadata, raw=weights, ema=weights, state={})
    assert torch.equal(checkpoint.load(folder).weights("raw")["w"], image)


def fails_at(monkeypatch, owner, name, call, error=None):
    """Make the ``call``-th call of a function raise."""
    original, calls = getattr(owner, name), []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise error or OSError(errno.EIO, "Input/output error")
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)
    return calls


STEPS = [
    (Path, "mkdir", 1),
    (Path, "write_text", 1),  # config.json
    (checkpoint.safetensors.torch, "save_file", 1),
    (checkpoint.safetensors.torch, "save_file", 2),
    (torch, "save", 1),
    (Path, "write_text", 2),  # the manifest
    *[(os, "fsync", call) for call in range(1, 7)],  # five files and the folder
    (os, "rename", 1),
]


@pytest.mark.parametrize(
    ("owner", "name", "call"), STEPS, ids=[f"{name}-{call}" for _, name, call in STEPS]
)
def test_failed_write_leaves_only_older_checkpoints(tmp_path, monkeypatch, owner, name, call):
    write(tmp_path, 1)
    with monkeypatch.context() as patch:
        calls = fails_at(patch, owner, name, call)
        with pytest.raises(ConfigError) as caught:
            write(tmp_path, 2)
        assert len(calls) == call
    line = str(caught.value)
    place = re.escape(f"out={tmp_path}/checkpoints/step-00000002")
    assert re.match(place + r": cannot be written \(\d+\.\d GB free\): ", line), line
    assert "Input/output error" in line and "\n" not in line
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    loaded = checkpoint.newest(tmp_path, pytest.fail)
    assert loaded is not None and same(loaded.weights("raw"), content(1)["raw"])


@pytest.mark.parametrize("call", [1, 2])
def test_failed_replacement_restores_the_existing_checkpoint(tmp_path, monkeypatch, call):
    write(tmp_path, 1, num_samples=1)
    with monkeypatch.context() as patch:
        fails_at(patch, os, "rename", call)
        with pytest.raises(ConfigError):
            write(tmp_path, 1, num_samples=2)
    assert checkpoint.load(tmp_path / "checkpoints/step-00000001").metadata.num_samples == 1
    assert hidden(tmp_path) == []
    write(tmp_path, 1, num_samples=2)
    assert checkpoint.load(tmp_path / "checkpoints/step-00000001").metadata.num_samples == 2
    assert hidden(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("[enforce fail at inline_container.cc:626] . unexpected pos\nNo space left"),
    ],
)
def test_error_of_a_full_disk_is_one_line(tmp_path, monkeypatch, error):
    fails_at(monkeypatch, torch, "save", 1, error)
    with pytest.raises(ConfigError) as caught:
        write(tmp_path, 2)
    assert "No space left" in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.key == "out"


def test_partial_files_of_a_killed_process_with_the_same_id_are_replaced(tmp_path):
    """In a container the training is always process 1."""
    left = tmp_path / f"checkpoints/.tmp-step-00000003-{os.getpid()}"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    (left / "more").write_bytes(b"half")
    loaded = checkpoint.load(write(tmp_path, 3))
    assert {path.name for path in loaded.folder.iterdir()} == {
        "config.json",
        "ema.safetensors",
        "manifest.json",
        "model.safetensors",
        "state.pt",
    }


def test_prune_retains_the_newest_and_removes_partial_ones(tmp_path):
    for step in (3, 10, 200, 99_999_999, 100_000_000):
        write(tmp_path, step)
    (tmp_path / "checkpoints/.tmp-step-00000011-1").mkdir()
    (tmp_path / "checkpoints/notes").mkdir()
    prune(tmp_path, 2)
    names = [path.name for path in checkpoint.listed(tmp_path)]
    assert names == ["step-100000000", "step-99999999"]
    assert hidden(tmp_path) == [] and (tmp_path / "checkpoints/notes").is_dir()


DAMAGE = {
    "manifest.json": "it has no manifest.json",
    "config.json": "config.json is missing",
    "state.pt": "state.pt is missing",
    "model.safetensors": "model.safetensors is missing",
    "ema.safetensors": "ema.safetensors is missing",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_newest_skips_damaged_checkpoints_with_a_warning(tmp_path, name):
    for step in (1, 2):
        write(tmp_path, step)
    (tmp_path / "checkpoints/step-00000002" / name).unlink()
    warnings = []
    loaded = checkpoint.newest(tmp_path, warnings.append)
    assert loaded is not None and loaded.step == 1
    place = tmp_path / "checkpoints/step-00000002"
    message = f"{place}: is damaged: {DAMAGE[name]}; using the previous one"
    assert warnings == [message]


def test_one_changed_bit_is_detected(tmp_path):
    folder = write(tmp_path, 1)
    for name in ("config.json", "state.pt", "model.safetensors", "ema.safetensors"):
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(ConfigError, match=f"{name} is not what was written"):
            checkpoint.load(folder)
        (folder / name).write_bytes(good)
    assert checkpoint.load(folder).step == 1


def test_newest_raises_if_all_are_damaged(tmp_path):
    assert checkpoint.newest(tmp_path, pytest.fail) is None
    for step in (1, 2):
        (write(tmp_path, step) / "state.pt").unlink()
    with pytest.raises(ConfigError, match=r"step-00000001: is damaged: state.pt is missing"):
        checkpoint.newest(tmp_path, lambda _: None)


def test_other_format_is_rejected(tmp_path):
    folder = write(tmp_path, 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(ConfigError, match="has format 2, but this version of ddpm reads format 1"):
        checkpoint.load(folder)


def test_state_that_would_run_code_is_rejected(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    metadata = CheckpointMetadata(step=1, config={})
    folder = checkpoint.save(tmp_path, metadata, raw={}, ema={}, state={"x": Evil()})
    loaded = checkpoint.load(folder)
    with pytest.raises(
        ConfigError, match=r"state.pt contains objects that weights_only loading rejects"
    ):
        loaded.state()
    assert not (tmp_path / "ran").exists()


def test_find(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "outputs/a"
    for step in (1, 2):
        write(run, step)
    (tmp_path / "outputs/latest").symlink_to("a")
    for path, step in (
        ("outputs/a", 2),
        ("outputs/latest", 2),
        ("outputs/a/checkpoints/step-00000001", 1),
        (str(run), 2),
    ):
        loaded = checkpoint.find(path, pytest.fail)
        assert loaded.step == step and loaded.run == Path("outputs/a")
    shutil.copytree(run / "checkpoints/step-00000001", tmp_path / "elsewhere/mine")
    moved = checkpoint.find("elsewhere/mine", pytest.fail)
    assert moved.step == 1 and moved.run == Path("elsewhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "outputs/gone").symlink_to("deleted")
    for path, message in (
        ("nowhere", "ckpt=nowhere: run or checkpoint not found; use ckpt=outputs/a$"),
        (
            "outputs/gone",
            "ckpt=outputs/gone: run or checkpoint not found; use ckpt=outputs/a$",
        ),
        ("empty", "ckpt=empty: contains no checkpoint"),
        ("outputs/a/checkpoints/step-00000001/config.json", "is a file; use the folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            checkpoint.find(path, pytest.fail)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_files_have_the_permissions_of_the_umask(tmp_path, mask):
    old = os.umask(mask)
    try:
        folder = write(tmp_path, 1)
    finally:
        os.umask(old)
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask, path.name
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~mask
