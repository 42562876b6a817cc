"""Runs that are resumed and evaluated from a different folder."""

import os
from pathlib import Path

import numpy as np
import pytest

from ddpm.config import paths
from ddpm.config.text import from_yaml

NET = ("model=unet1d", "model.dim_mults=[1,2]")
DATA = ("data=sequence", "data.path=in/a.npy", "data.axes=NLC", *NET)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Folder ``work`` with sequences (N, L, C), beside the folder ``other``."""
    for name in ("work/in", "other"):
        (tmp_path / name).mkdir(parents=True)
    values = np.random.default_rng(0).normal(size=(12, 16, 2)).astype(np.float32)
    np.save(tmp_path / "work/in/a.npy", values)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def train(command, tiny):
    """Return a function: ``train(3, "name=a", ...)`` trains to step 3 and returns the output."""

    def run(step, *options):
        ended = command("train", f"trainer.max_steps={step}", *options)
        assert ended.status == 0, ended.err
        assert f"to step {step} on" in ended.out
        return ended

    return run


def config(run):
    return from_yaml(Path(run, "config.yaml").read_text(), "config.yaml")


@pytest.mark.slow
def test_a_run_is_resumed_from_other_folders(command, work, train, tiny, monkeypatch):
    ended = train(1, "name=a", *DATA, *tiny)
    assert "12 sequences of 2 channels, length 16\n" in ended.out
    run = work / "outputs/a"
    assert config(run)["data"]["path"] == str(work / "in/a.npy")
    assert config(run)["as_typed"] == {"data.path": "in/a.npy"}
    assert "data." not in train(2, "name=a", *DATA, *tiny).out  # the same command: nothing changed
    os.chdir(work.parent / "other")
    assert "data." not in train(3, f"resume={run}").out
    same = (f"out={run.parent}", "name=a", *DATA, *tiny)
    assert "data." not in train(4, *same).out
    ended = command("evaluate", f"ckpt={run}", "metrics=[loss]", "num_images=4", "cache=null")
    assert ended.status == 0, ended.err
    os.chdir(work.parent)
    work.rename("moved")
    os.chdir("moved")
    ended = train(5, "resume=outputs/a")  # not at the stored path: as typed
    moved = f"data.path: {work / 'in/a.npy'} until step 4, from now on in/a.npy"
    assert moved in ended.out.splitlines()
    assert config("outputs/a")["data"]["path"] == str(work.parent / "moved/in/a.npy")
    assert config("outputs/a")["as_typed"] == {"data.path": "in/a.npy"}
    Path("in/a.npy").rename("b.npy")
    ended = train(6, "resume=outputs/a", "data.path=b.npy")
    assert ended.out.count("data.path: ") == 1
    assert config("outputs/a")["as_typed"] == {"data.path": "b.npy"}
    Path("b.npy").unlink()
    ended = command("train", "resume=outputs/a", "trainer.max_steps=7")
    missing = work.parent / "moved/b.npy"
    assert ended.line == f"ddpm-train: data.path={missing}: no such file"
    options = ("ckpt=outputs/a", "num_samples=2", "steps=1", "out=s")
    assert command("sample", *options).status == 0
    assert np.load("s/samples.npy").shape == (2, 16, 2)


def test_runs_of_earlier_versions_stored_relative_paths(command, work, train, tiny, monkeypatch):
    channels_first = np.load("in/a.npy").swapaxes(1, 2)[:, :, :2]
    np.save("in/b.npy", channels_first.repeat(4, axis=1))  # (12, 8, 2), the axes of all data then
    old = ("data=sequence", "data.path=in/b.npy", *NET, "model.dim_mults=[1]")
    with monkeypatch.context() as patch:
        patch.setattr(paths, "stored", lambda config: config)
        train(1, "name=a", *old, "data.axes=NCL", *tiny)
    file = Path("outputs/a/config.yaml")
    text = file.read_text()
    assert "  path: in/b.npy\n" in text and "  axes: NCL\n" in text
    file.write_text(text.replace("  axes: NCL\n", ""))
    assert "data." not in train(2, "name=a", *old, *tiny).out
    file.write_text(text.replace("  axes: NCL\n", ""))
    os.chdir(work.parent / "other")
    located = work / "in/b.npy"
    ended = train(3, f"resume={work / 'outputs/a'}")
    assert f"data.path=in/b.npy: not found here; reading {located}" in ended.err
    assert config(work / "outputs/a")["data"]["path"] == str(located)


def test_paths_are_stored_as_absolute_and_located_after_a_move(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train", "a b", "x/runs/r", "x/d"):
        Path(name).mkdir(parents=True)
    config = {"data": {"path": "a b"}, "evaluation": {"reference": "train"}, "seed": 1}
    stored = paths.stored(config)
    assert stored["data"]["path"] == str(tmp_path / "a b")
    assert stored["evaluation"] == {"reference": "train"}  # a part of the data, not that folder
    assert stored[paths.TYPED] == {"data.path": "a b"} and config["data"] == {"path": "a b"}
    assert paths.stored(stored) == stored
    assert paths.stored({"data": {"path": "org/name"}}) == {"data": {"path": "org/name"}}
    monkeypatch.setenv("HOME", str(tmp_path))
    old = {"data": {"path": "~/a b"}, paths.TYPED: 7}
    assert paths.located(old, tmp_path)["data"]["path"] == f"{tmp_path}/a b"
    moved = paths.located({"data": {"path": "d"}}, tmp_path / "x/runs/r")
    assert moved["data"]["path"] == str(tmp_path / "x/d")
    assert paths.located({"data": None, "seed": 1}, tmp_path) == {"data": None, "seed": 1}
    assert paths.is_same("data.path", "a b", str(tmp_path / "a b"))
    assert not paths.is_same("seed", "1", "1")
