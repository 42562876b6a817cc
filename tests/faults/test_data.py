"""Errors in the data on the disk, as ddpm-train reports them."""

import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm.training import checkpoint

FOLDER = ("data=folder", "data.path=imgs")
STEP = ("name=a", "trainer.max_steps=1")


@pytest.fixture
def imgs(command):
    """Return an empty folder of pictures in the working directory of the commands."""
    folder = Path("imgs")
    folder.mkdir()
    return folder


def save(path, values, **options):
    """Save a picture of values (H, W) or (H, W, 3)."""
    Image.fromarray(np.asarray(values, np.uint8)).save(path, **options)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(width, height, *chunks):
    """Return a PNG with a size in its header but no pixels, and further chunks (name, content)."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = ((b"IHDR", head), *chunks, (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in body
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def error_of(command, *options):
    """Return the error message of a command, which must not write any file."""
    before = sorted(os.listdir())
    ended = command("train", *FOLDER, *options)
    assert ended.status == 1, ended.err
    assert sorted(os.listdir()) == before, "a rejected run wrote files"
    return ended.line.removeprefix("ddpm-train: data.")


# folders


def nothing():
    return None


def a_file():
    Path("imgs").write_bytes(b"")


def a_pipe():
    os.mkfifo("imgs")


def a_link_to_nothing():
    Path("imgs").symlink_to("nowhere")


def a_link_to_itself():
    Path("imgs").symlink_to("imgs")


def empty():
    Path("imgs/deep/er").mkdir(parents=True)


def other_files():
    Path("imgs").mkdir()
    Path("imgs/a.txt").write_text("a.png")
    Path("imgs/b.png").symlink_to("nowhere.png")


NO_IMAGES = "contains no images (.jpg .jpeg .jpe .jfif .png .webp .bmp .tif .tiff) at any depth"
INSTEAD = "set data.path to a folder of images"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nothing, f"no such folder; {INSTEAD}"),
        (a_link_to_nothing, f"no such folder; {INSTEAD}"),
        (a_link_to_itself, f"no such folder; {INSTEAD}"),
        (a_file, f"is a file, not a folder; {INSTEAD}"),
        (a_pipe, f"is a file, not a folder; {INSTEAD}"),
        (empty, f"{NO_IMAGES}; {INSTEAD}"),
        (other_files, f"{NO_IMAGES}; skipped 1 .txt, 1 unreadable (broken link, pipe or device); "
         + INSTEAD),
    ],
)  # fmt: skip
def test_path_that_is_not_a_folder_of_pictures(command, make, message):
    make()
    assert error_of(command) == f"path=imgs: {message}"


@pytest.mark.parametrize("mode", [0o000, 0o333, 0o444], ids=["none", "no listing", "no entering"])
@pytest.mark.parametrize("name", ["imgs", "imgs/sub"])
def test_a_folder_that_may_not_be_read(command, imgs, permissions, name, mode):
    Path("imgs/sub").mkdir()
    save("imgs/sub/a.png", noise(16, 16))
    Path(name).chmod(mode)
    try:
        with permissions():
            line = error_of(command)
    finally:
        Path(name).chmod(0o755)
    remedy = "cannot be listed (Permission denied); make it readable or move it away"
    assert line == f"path={name}: {remedy}"


def test_a_folder_below_one_that_may_not_be_entered(command, permissions):
    Path("locked/imgs").mkdir(parents=True)
    Path("locked").chmod(0)
    try:
        with permissions():
            line = error_of(command, "data.path=locked/imgs")
    finally:
        Path("locked").chmod(0o755)
    remedy = "cannot be reached (Permission denied); make the folders above it readable"
    assert line == f"path=locked/imgs: {remedy}"


def test_a_picture_that_may_not_be_read(command, imgs, permissions):
    for name in "ab":
        save(f"imgs/{name}.png", noise(16, 16))
    Path("imgs/b.png").chmod(0)
    with permissions():
        line = error_of(command)
    remedy = "cannot be opened (Permission denied); make it readable or move it away"
    assert line == f"path=imgs/b.png: {remedy}"


# one bad file among a hundred good ones

REMEDY = "remove the file or re-encode it"
NONE = f"is not a JPEG, PNG, WebP, BMP or TIFF picture; {REMEDY}"
LIMIT = "the limit is 64 million; remove the file or scale it down"
TEXT_BOMB = (b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000), 9))
BAD = [
    ("page.png", b"<!DOCTYPE html><html><body>404 Not Found</body></html>", NONE),
    ("zero.png", b"", NONE),
    ("zero.jpg", b"", NONE),
    ("bomb.png", png(60_000, 60_000), f"has too many pixels, {LIMIT}"),
    ("bomb.png", png(12_000, 12_000), f"has 12000x12000 pixels, {LIMIT}"),
    ("bomb.png", png(2**31 - 1, 2**31 - 1), f"has too many pixels, {LIMIT}"),
    ("text.png", png(16, 16, TEXT_BOMB), f"is damaged (Decompressed data too large for "
     f"PngImagePlugin.MAX_TEXT_CHUNK); {REMEDY}"),
]  # fmt: skip


@pytest.fixture
def hundred(imgs):
    """Write a hundred valid pictures in colour."""
    for number in range(100):
        save(imgs / f"{number:03}.jpg", noise(16, 16, 3, seed=number))
    return imgs


@pytest.mark.parametrize("cache_mb", [0, 2048])
@pytest.mark.parametrize(
    ("name", "content", "message"), BAD, ids=[f"{b[0]} {len(b[1])}" for b in BAD]
)
def test_one_bad_file_among_a_hundred(command, hundred, name, content, message, cache_mb):
    (hundred / name).write_bytes(content)
    assert error_of(command, f"data.cache_mb={cache_mb}") == f"path=imgs/{name}: {message}"


def truncate(path, lost=40):
    path.write_bytes(path.read_bytes()[:-lost])


TRUNCATED = (
    r"path=imgs/050\.jpg: is damaged \(image file is truncated \(\d+ bytes not processed\)\)"
)


def test_one_truncated_jpeg_among_a_hundred(command, hundred):
    truncate(hundred / "050.jpg")
    assert re.fullmatch(f"{TRUNCATED}; {REMEDY}", error_of(command))
    truncate(hundred / "050.jpg", 400)
    assert error_of(command) == (
        f"path=imgs/050.jpg: is damaged (Truncated File Read); {REMEDY}"  # within the header
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_truncated_jpeg_that_is_detected_while_training(command, tiny, hundred, workers):
    """The header is complete: the error is the same, and no checkpoint is written."""
    truncate(hundred / "050.jpg")
    options = ("data.cache_mb=0", f"trainer.num_workers={workers}", "trainer.max_steps=20")
    ended = command("train", "name=a", *FOLDER, *tiny, *options)
    assert ended.status == 1
    (line,) = [x for x in ended.err.splitlines() if x.startswith("ddpm-train: ")]
    assert re.fullmatch(f"ddpm-train: data.{TRUNCATED}; {REMEDY}", line)
    assert "Traceback" not in ended.err
    assert checkpoint.listed(Path("outputs/a")) == []
    assert not [x for x in Path("outputs").rglob("*") if ".tmp" in x.name]


@pytest.mark.slow
def test_files_that_are_not_regular_are_skipped(imgs, tiny):
    for number in range(3):
        save(imgs / f"{number}.png", noise(16, 16, seed=number))
    os.mkfifo(imgs / "a.png")
    os.mkfifo(imgs / "pipe")
    (imgs / "x.png").mkdir()
    (imgs / "device.png").symlink_to("/dev/zero")
    (imgs / "round").symlink_to(".")
    output = trained(*FOLDER, *STEP, *tiny)
    assert "3 samples of 1x16x16" in output


def trained(*options):
    """Return the output of a run in a process of its own, with a time limit of two minutes."""
    root = str(Path(__file__).resolve().parents[2])
    ended = subprocess.run(
        [sys.executable, "-m", "ddpm.cli.train", *options],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
