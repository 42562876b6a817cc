"""Pictures of all kinds, small data sets, and data workers that die."""

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.data import ImageCodec
from ddpm.training import Trainer, checkpoint
from tests.faults.test_data import FOLDER, STEP, error_of, hundred, imgs, noise, save

__all__ = ["hundred", "imgs"]

# pixels of all kinds of pictures


@pytest.fixture
def fed(monkeypatch):
    """Return a list of the raw batches (B, C, H, W) that the codec receives."""
    batches, encode = [], ImageCodec.encode

    def spied(self, raw):
        batches.append(raw.clone())
        return encode(self, raw)

    monkeypatch.setattr(ImageCodec, "encode", spied)
    return batches


def write_pictures(folder):
    """Write pictures of all kinds; return the expected pixels (3, 8, 8) of each."""
    rows = np.arange(64).reshape(8, 8)
    expected = {}
    sixteen = (rows * 1000 + 500).astype(np.uint16)
    Image.fromarray(sixteen).save(folder / "sixteen.png")
    expected["sixteen"] = np.rint(sixteen / 257)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(folder / "cmyk.jpg", quality=100)
    expected["cmyk"] = np.array([255, 0, 0])[:, None, None] + 0 * rows
    palette = Image.fromarray((rows % 2).astype(np.uint8), "P")
    palette.putpalette([1, 2, 3, 250, 10, 20])
    palette.save(folder / "palette.png")
    expected["palette"] = np.where(
        rows % 2, *np.array([[250, 10, 20], [1, 2, 3]])[:, :, None, None]
    )
    rgba = np.stack([rows, rows, rows, np.where(rows < 32, 0, 255)], axis=2)
    save(folder / "rgba.png", rgba)
    expected["rgba"] = np.where(rows < 32, 255, rows)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    save(folder / "exif.png", rows * 3, exif=exif)
    expected["exif"] = np.rot90(rows * 3, -1)
    save(folder / "dot.png", [[123]])
    expected["dot"] = 0 * rows + 123
    tall = np.repeat([10, 77, 200], [2400, 200, 2400])[:, None] + np.zeros(7)
    save(folder / "tall.png", tall)
    expected["tall"] = 0 * rows + 77
    return {name: np.broadcast_to(value, (3, 8, 8)) for name, value in expected.items()}


@pytest.mark.parametrize("cache_mb", [0, 2048])
def test_pixels_of_all_kinds_of_pictures(command, imgs, tiny, fed, cache_mb):
    expected = write_pictures(imgs)
    options = ("data.image_size=8", "data.color=rgb", f"data.cache_mb={cache_mb}")
    batch = ("trainer.num_workers=0", f"trainer.batch_size={len(expected)}")
    ended = command("train", *FOLDER, *STEP, *tiny, *options, *batch)
    assert ended.status == 0, ended.err
    (raw,) = fed
    assert raw.shape == (7, 3, 8, 8) and raw.dtype == torch.uint8
    read = {name: each for name in expected for each in raw.numpy() if near(each, expected[name])}
    assert read.keys() == expected.keys()
    for name, pixels in read.items():
        bound = 3 if name == "cmyk" else 0  # a JPEG is never exact
        assert np.abs(pixels.astype(int) - expected[name]).max() <= bound, name


def near(pixels, expected):
    return np.abs(pixels.astype(int) - expected).max() <= 3


def test_pictures_of_different_sizes_need_an_option(command, imgs):
    save(imgs / "dot.png", [[1]])
    save(imgs / "tall.png", noise(5000, 7))
    assert error_of(command) == (
        "image_size: the images differ in size: dot.png is 1 wide and 1 high, tall.png is 7 wide "
        "and 5000 high; resize them to one size, such as data.image_size=1"
    )


# few pictures, sizes that do not fit


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("count", [1, 5])
def test_fewer_pictures_than_the_batch_train(command, imgs, tiny, fed, count, workers):
    for number in range(count):
        save(imgs / f"{number}.png", np.full((8, 8), 10 + number))
    options = ("data.cache_mb=0", f"trainer.num_workers={workers}", "trainer.max_steps=5")
    ended = command("train", "name=a", *FOLDER, *tiny, *options)
    assert ended.status == 0, ended.err
    shades = torch.cat(fed)[:, 0, 0, 0].tolist()
    assert len(shades) == 5 * 8
    epochs = [sorted(shades[k : k + count]) for k in range(0, 40, count)]
    assert epochs == [list(range(10, 10 + count))] * (40 // count)
    assert checkpoint.listed(Path("outputs/a"))[0].name == "step-00000005"


def test_a_size_that_the_network_cannot_halve(command, imgs):
    save(imgs / "a.png", noise(20, 30))
    ended = command("train", *FOLDER, "model.dim_mults=[1,2,4,8]")
    assert (ended.status, ended.line) == (
        1,
        "ddpm-train: model.dim_mults=[1,2,4,8]: 4 levels halve the size 3 times, but 20x30 is not "
        "divisible by 8; set data.image_size to a multiple of 8, shorten dim_mults or set pad=true",
    )
    assert os.listdir() == ["imgs"]


# workers


@pytest.mark.slow
def test_killed_worker_ends_the_run_with_an_error(command, tiny, hundred, monkeypatch):
    losses, calls = Trainer._losses, []

    def kill(self, *arguments):
        calls.append(None)
        if len(calls) == 3:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
                child.join(10)
        return losses(self, *arguments)

    options = ("name=a", "trainer.max_steps=20", "trainer.checkpoint_every=1", *FOLDER, *tiny)
    reading = ("data.cache_mb=0", "trainer.num_workers=1")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_losses", kill)
        ended = command("train", *options, *reading)
    assert ended.status == 1
    (line,) = [x for x in ended.err.splitlines() if x.startswith("ddpm-train: ")]
    start = "ddpm-train: trainer.num_workers=1: a data worker died"
    assert line.startswith(start)
    assert "Traceback" not in ended.err
    assert len(calls) < 10, "the run continued without its data worker"
    again = command("train", *options, *reading)
    assert again.status == 0, again.err
    assert checkpoint.listed(Path("outputs/a"))[0].name == "step-00000020"
