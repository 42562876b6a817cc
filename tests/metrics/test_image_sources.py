"""Sources of images: one set of pixels, wherever it lies, has one hash."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.data import Digits, Folder, Sequences
from ddpm.errors import ConfigError
from ddpm.metrics import DatasetImages, FolderImages, InMemoryImages, NpzImages, contains_statistics
from tests.metrics.torch_fidelity_reference import pictures


def told(call):
    with pytest.raises(ConfigError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def lay_out(pixels, folder: Path, names):
    folder.mkdir(parents=True, exist_ok=True)
    for image, name in zip(pixels.permute(0, 2, 3, 1).numpy(), names, strict=True):
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(folder / name)


def as_npz(pixels, path, **more):
    np.savez(path, arr_0=pixels.permute(0, 2, 3, 1).numpy(), **more)
    return str(path)


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_npz_data_set_and_memory_agree(tmp_path, channels):
    pixels = pictures(300, channels, 6, 5)
    lay_out(pixels, tmp_path / "a", [f"{n:03}.png" for n in range(300)])
    lay_out(pixels, tmp_path / "b", [f"x{n:03}.bmp" for n in range(300)])
    sources = [
        InMemoryImages(pixels),
        FolderImages(str(tmp_path / "a")),
        FolderImages(str(tmp_path / "b")),
        NpzImages(as_npz(pixels, tmp_path / "s.npz", arr_1=np.arange(300))),
        DatasetImages(Folder(path=str(tmp_path / "a"), cache_mb=0, flip=True), {}),
    ]
    for source in sources:
        assert (len(source), source.shape) == (300, (channels, 6, 5))
        found = source.read([299, 0, 7, 7])
        assert torch.equal(found, pixels[[299, 0, 7, 7]]) and found.is_contiguous()
        assert found.dtype == torch.uint8
    expected = hashlib.sha256(f"(300, {channels}, 6, 5)".encode() + pixels.numpy().tobytes())
    assert {source.sha256 for source in sources} == {expected.hexdigest()}


def test_the_hash_depends_on_pixels_shape_count_and_order():
    pixels = pictures(4, 1, 4, 6)
    other = pixels.clone()
    other[3, 0, 3, 5] ^= 1
    variants = [pixels, other, pixels.flip(0), pixels[:3], pixels.reshape(4, 1, 6, 4)]
    assert len({InMemoryImages(variant).sha256 for variant in variants}) == 5


def test_the_hash_of_the_digits_is_the_same_everywhere():
    digits = DatasetImages(Digits(), {"dataset": "Digits"})
    assert digits.sha256 == DIGITS
    assert digits.provenance() == {
        "dataset": "Digits",
        "num_images": 1797,
        "shape": [1, 8, 8],
        "sha256": DIGITS,
    }


DIGITS = "b8f6054dededc0561caea7e2402289755ead4f49b648b87acc8aa0c9f0e3d73a"


def test_images_are_read_once_for_the_hash(monkeypatch):
    source, calls = InMemoryImages(pictures(600, 1, 2, 2)), []
    read = source.read
    monkeypatch.setattr(source, "read", lambda i: calls.append(len(i)) or read(i))
    assert source.sha256 == source.sha256
    assert calls == [256, 256, 88]


def test_where_a_folder_or_an_npz_lies_is_told(tmp_path):
    pixels = pictures(2, 3, 4, 6)
    lay_out(pixels, tmp_path / "a", ["1.png", "2.png"])
    source = FolderImages(str(tmp_path / "a"))
    assert source.provenance() == {
        "source": str(tmp_path / "a"),
        "resize": "none",
        "num_images": 2,
        "shape": [3, 4, 6],
        "sha256": source.sha256,
    }
    small = FolderImages(str(tmp_path / "a"), image_size=(2, 2))
    assert small.shape == (3, 2, 2)
    assert small.provenance()["resize"] == "scaled to cover, then cut at the centre"
    path = as_npz(pixels, tmp_path / "s.npz")
    assert NpzImages(path).provenance()["source"] == path


def test_sequences_are_refused(tmp_path):
    np.save(tmp_path / "s.npy", np.random.default_rng(0).normal(size=(5, 1, 16)))
    data = Sequences(path=str(tmp_path / "s.npy"))
    assert told(lambda: DatasetImages(data, {}, key="reference")) == (
        "reference: holds sequences, and fidelity is of images; leave fid, kid, isc and prc out"
    )


def test_videos_are_refused():
    from ddpm.data import VideoCodec

    data = Digits()
    data.codec = VideoCodec.__new__(VideoCodec)
    assert told(lambda: DatasetImages(data, {})).startswith("data: holds videos, and fidelity is")


# what is wrong with a folder or a file


def test_what_is_wrong_with_a_folder_is_told_with_its_own_option(tmp_path):
    missing = tmp_path / "none"
    assert told(lambda: FolderImages(str(missing))) == (
        f"samples={missing}: no such folder; set samples to a folder of images"
    )
    (tmp_path / "empty").mkdir()
    assert told(lambda: FolderImages(str(tmp_path / "empty"), key="reference")) == (
        f"reference={tmp_path / 'empty'}: contains no images (.jpg .jpeg .jpe .jfif .png .webp "
        f".bmp "
        ".tif .tiff) at any depth; set reference to a folder of images"
    )
    mixed = tmp_path / "mixed"
    lay_out(pictures(1, 1, 4, 6), mixed, ["a.png"])
    lay_out(pictures(1, 1, 5, 5), mixed, ["b.png"])
    assert told(lambda: FolderImages(str(mixed))) == (
        f"samples={mixed}: the images differ in size: a.png is 6 wide and 4 high, b.png is 5 wide "
        "and 5 high; resize them to one size, such as image_size=4"
    )
    lay_out(pictures(1, 3, 4, 6), mixed, ["b.png"])
    assert told(lambda: FolderImages(str(mixed))) == (
        f"samples={mixed}: a.png is grey but b.png is in colour; set color=rgb or color=grey"
    )
    (mixed / "b.png").write_bytes(b"<html>")
    assert told(lambda: FolderImages(str(mixed))).startswith(
        f"samples={mixed / 'b.png'}: is not a JPEG, PNG, WebP, BMP or TIFF picture"
    )


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"arr_0": np.zeros((2, 4, 4, 3))}, "its arr_0 is float64 of shape (2, 4, 4, 3); "),
        ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, "its arr_0 is uint8 of shape (2, 3, 4, 4); "),
        ({"arr_0": np.zeros((4, 4, 3), np.uint8)}, "its arr_0 is uint8 of shape (4, 4, 3); "),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, "its arr_0 is uint8 of shape (0, 4, 4, 3); "),
    ],
)
def test_an_npz_of_something_else_is_told_in_a_line(tmp_path, arrays, said):
    path = str(tmp_path / "s.npz")
    np.savez(path, **arrays)
    remedy = "save uint8 images of shape (N, H, W, C) with 1 or 3 channels"
    assert told(lambda: NpzImages(path)) == f"samples={path}: {said}{remedy}"


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def test_a_file_that_is_no_npz_is_told_in_a_line(tmp_path):
    path = str(tmp_path / "s.npz")
    assert told(lambda: NpzImages(path)) == f"samples={path}: file not found"
    np.savez(path, images=np.zeros(3), labels=np.zeros(3))
    assert told(lambda: NpzImages(path, key="reference")) == (
        f"reference={path}: holds no arr_0 (there are: images, labels)"
    )
    np.savez(path, arr_0=np.array([Bomb(str(tmp_path / "ran"))], dtype=object))
    assert told(lambda: NpzImages(path)) == (
        f"samples={path}: cannot be read as an .npz (Object arrays cannot be loaded when "
        "allow_pickle=False); save it again"
    )
    whole = Path(as_npz(pictures(9, 3, 8, 8), path)).read_bytes()
    for end in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        Path(path).write_bytes(whole[:end])
        assert told(lambda: NpzImages(path)).startswith(f"samples={path}: cannot be read as an")
    with open(path, "wb") as file:
        np.save(file, np.zeros((2, 4, 4, 3), np.uint8))
    assert told(lambda: NpzImages(path)) == (
        f"samples={path}: cannot be read as an .npz (it is not a zip archive); save it again"
    )
    assert not (tmp_path / "ran").exists()


def test_statistics_are_known_by_their_names(tmp_path):
    path = tmp_path / "s.npz"
    np.savez(path, mu=np.zeros(2), sigma=np.eye(2), arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    assert contains_statistics(str(path))
    as_npz(pictures(2, 3, 4, 4), path)
    assert not contains_statistics(str(path))
    path.write_bytes(b"")
    assert not contains_statistics(str(path))
    assert not contains_statistics(str(tmp_path))
    assert not contains_statistics(str(tmp_path / "none.safetensors"))
    (tmp_path / "a.safetensors").write_bytes(b"")
    assert contains_statistics(str(tmp_path / "a.safetensors"))
