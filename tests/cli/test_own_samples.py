"""Folders of ddpm-sample and ddpm-interpolate as data, samples and references."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.data import Folder, Sequences, Videos
from ddpm.errors import ConfigError
from ddpm.evaluation.reference_data import read_images
from ddpm.outputs import RECORD

QUICK = ("steps=1", "num_samples=3")


@pytest.fixture
def gen(command, trained):
    """Folder of three samples with their trajectory."""
    ended = command("sample", f"ckpt={trained}", "out=gen", "trajectory=true", *QUICK)
    assert ended.status == 0, ended.err
    return "gen"


def pixels(*names):
    return torch.stack([torch.from_numpy(np.array(Image.open(name)))[None] for name in names])


def read(data):
    return data.fetch(range(len(data)), [0] * len(data))[0]


def test_pictures(command, trained, gen, capsys):
    drawn = pixels(*(f"gen/images/0000{n}.png" for n in range(3)))
    assert torch.equal(read(Folder(path=gen)), drawn)
    assert torch.equal(read_images(gen, "samples", {}).read(range(3)), drawn)
    with pytest.raises(ConfigError, match=r"00000\.png is not in a class folder"):
        Folder(path=gen, class_cond=True)
    Path("both").mkdir()
    shutil.copytree(gen, "both/a")
    shutil.copytree(gen, "both/b")
    nested = Folder(path="both", class_cond=True)
    assert len(nested) == 6 and nested.class_names == ["a", "b"]
    capsys.readouterr()
    Image.new("L", (3, 3)).save("gen/mine.png")
    assert len(Folder(path=gen)) == 3
    message = "gen: only the samples in images are read, not mine.png"
    assert capsys.readouterr().err == f"warning: {message}\n"
    ended = command(
        "interpolate", f"ckpt={trained}", "a=1", "b=2", "num_frames=4", "steps=1", "out=i"
    )
    assert ended.status == 0 and len(Folder(path="i")) == 4
    assert Videos(path="i").shape == (1, 4, 8, 8)  # one video: its frames


def test_arrays_of_images(command, trained, gen):
    drawn = read(Folder(path=gen))
    for format in ("npz", "npy"):
        out = ("format=" + format, f"out={format}")
        assert command("sample", f"ckpt={trained}", *QUICK, *out).status == 0
        assert torch.equal(read_images(format, "samples", {}).read(range(3)), drawn)
        with pytest.raises(ConfigError) as caught:
            Folder(path=format)
        problem = "cannot be read here; use samples of format=png"
        assert (
            str(caught.value)
            == f"path={format}: its samples are in samples.{format}, which {problem}"
        )
    Image.new("L", (5, 5)).save("npz/mine.png")
    assert Folder(path="npz").shape == (1, 5, 5)  # the user's picture, without our grid


def test_evaluation_of_samples_against_samples(command, gen):
    ended = command(
        "evaluate", "samples=gen", "reference=gen", "metrics=[fid]", "extractor=pixels", "out=e",
        "cache=null",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    (row,) = json.loads(Path("e/evaluation.json").read_text())["metrics"]
    assert row["num_samples"] == 3 and row["reference"]["num_images"] == 3
    assert row["samples"]["source"] == row["reference"]["source"] == "gen/images"
    assert abs(row["value"]) < 1e-3
    with pytest.raises(ConfigError, match="contains no images"):
        Folder(path="e")  # the picture of samples in an evaluation is not one of them


def test_grids_of_the_user_are_data(gen):
    Path("own").mkdir()
    Image.new("L", (8, 8)).save("own/grid.png")
    assert len(Folder(path="own")) == 1
    Image.new("L", (8, 8)).save("gen/grid.png")  # in place of ours
    shutil.copytree("gen", "all/gen")
    assert len(Folder(path="all", image_size=8)) == 4
    Path("gen", RECORD).unlink()  # or of an earlier version
    assert len(Folder(path=gen, image_size=8)) == 4


def test_incomplete_samples_are_read_with_a_warning(gen, capsys):
    record = json.loads(Path("gen", RECORD).read_text())
    record["commands"]["sample"]["complete"] = False
    Path("gen", RECORD).write_text(json.dumps(record))
    capsys.readouterr()
    assert len(Folder(path=gen)) == 3
    message = "gen: sampling was interrupted; the samples may be incomplete, or of two calls"
    assert capsys.readouterr().err == f"warning: {message}\n"


def test_sequences(command, tiny):
    np.save("waves.npy", np.random.default_rng(0).normal(size=(8, 1, 16)).astype(np.float32))
    options = ("data=sequence", "data.path=waves.npy", "model=unet1d", "model.dim_mults=[1,2]")
    assert command("train", "name=w", "trainer.max_steps=1", *options, *tiny).status == 0
    for format in ("npy", "npz"):
        out = (f"format={format}", f"out={format}")
        assert command("sample", "ckpt=outputs/w", *QUICK, *out).status == 0
    drawn = torch.from_numpy(np.load("npy/samples.npy"))
    assert torch.equal(read(Sequences(path="npy")), drawn)
    assert torch.equal(read(Sequences(path="npz")), drawn)


def test_videos(command, tiny):
    clips = np.random.default_rng(0).integers(0, 256, (4, 1, 3, 8, 8), dtype=np.uint8)
    np.savez("clips.npz", arr_0=clips, labels=np.array([0, 1, 0, 1]))
    options = (
        "data=video", "data.path=clips.npz", "data.order=ncfhw", "data.class_cond=true",
        "data.condition.cond_frames=1", "model=unet3d", "model.dim=8", "model.dim_mults=[1,2]",
        "model.attn_heads=1", "model.attn_dim_head=8",
    )  # fmt: skip
    ended = command("train", "name=v", "trainer.max_steps=1", *options, *tiny)
    assert ended.status == 0, ended.err
    draw = ("sample", "ckpt=outputs/v", "condition=clips.npz", *QUICK)
    for out in (("out=all",), ("out=gif", "format=gif")):
        ended = command(*draw, *out)
        assert ended.status == 0, ended.err
    with np.load("all/samples.npz") as file:
        drawn, labels = torch.from_numpy(file["arr_0"]), file["arr_1"].tolist()
    data = Videos(path="all", class_cond=True)
    assert torch.equal(read(data), drawn)
    assert (numbers := data.fetch(range(3), [0] * 3)[1]) is not None
    assert numbers.tolist() == labels
    assert torch.equal(read(Videos(path="gif", frames=3)), drawn)
    assert torch.equal(read(Videos(path="all", color="grey")), drawn)  # those are of the GIFs
    ended = command("sample", "ckpt=outputs/v", "condition=all", "out=again", *QUICK)
    assert ended.status == 0, ended.err
    with np.load("again/samples.npz") as file:
        assert np.array_equal(file["arr_0"][:, :, 0], drawn[:, :, 0])
