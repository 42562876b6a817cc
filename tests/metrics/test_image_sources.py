"""Image sources: equal pixels have equal hashes, independent of the storage."""

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


def error_of(call):
    with pytest.raises(ConfigError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def save_pictures(pixels, folder: Path, names):
    folder.mkdir(parents=True, exist_ok=True)
    for image, name in zip(pixels.permute(0, 2, 3, 1).numpy(), names, strict=True):
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(folder / name)


def as_npz(pixels, path, **more):
    np.savez(path, arr_0=pixels.permute(0, 2, 3, 1).numpy(), **more)
    return str(path)


@pytest.mark.parametrize("channels", [1, 3])
def test_all_image_sources_agree(tmp_path, channels):
    pixels = pictures(300, channels, 6, 5)
    save_pictures(pixels, tmp_path / "a", [f"{n:03}.png" for n in range(300)])
    save_pictures(pixels, tmp_path / "b", [f"x{n:03}.bmp" for n in range(300)])
    sources = [
        InMemoryImages(pixels),
        FolderImages(str(tmp_path / "a")),
        FolderImages(str(tmp_path / "b")),
        NpzImages(as_npz(pixels, tmp_path / "s.npz", arr_1=np.arange(300))),
        DatasetImages(Folder(path=str(tmp_path / "a"), cache_mb=0, flip=True), {}),
    ]
    for source in sources:
        assert (len(source), source.shape) == (300, (channels, 6, 5))
        images = source.read([299, 0, 7, 7])
        assert torch.equal(images, pixels[[299, 0, 7, 7]]) and images.is_contiguous()
        assert images.dtype == torch.uint8
    expected = hashlib.sha256(f"(300, {channels}, 6, 5)".encode() + pixels.numpy().tobytes())
    assert {source.sha256 for source in sources} == {expected.hexdigest()}


def test_the_hash_depends_on_pixels_shape_count_and_order():
    pixels = pictures(4, 1, 4, 6)
    other = pixels.clone()
    other[3, 0, 3, 5] ^= 1
    variants = [pixels, other, pixels.flip(0), pixels[:3], pixels.reshape(4, 1, 6, 4)]
    assert len({InMemoryImages(variant).sha256 for variant in variants}) == 5


def test_the_hash_of_the_digits_is_stable():
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


def test_provenance_contains_the_path(tmp_path):
    pixels = pictures(2, 3, 4, 6)
    save_pictures(pixels, tmp_path / "a", ["1.png", "2.png"])
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


def test_sequences_are_rejected(tmp_path):
    np.save(tmp_path / "s.npy", np.random.default_rng(0).normal(size=(5, 1, 16)))
    data = Sequences(path=str(tmp_path / "s.npy"))
    assert error_of(lambda: DatasetImages(data, {}, key="reference")) == (
        "reference: contains sequences, but fid, kid, isc and prc require images; leave them out"
    )


def test_videos_are_rejected():
    from ddpm.data import VideoCodec

    data = Digits()
    data.codec = VideoCodec.__new__(VideoCodec)
    assert error_of(lambda: DatasetImages(data, {})).startswith(
        "data: contains videos, but fid, kid"
    )


# invalid folders and files


def test_invalid_folders_are_reported_with_their_option(tmp_path):
    missing = tmp_path / "none"
    assert error_of(lambda: FolderImages(str(missing))) == (
        f"samples={missing}: no such folder; set samples to a folder of images"
    )
    (tmp_path / "empty").mkdir()
    assert error_of(lambda: FolderImages(str(tmp_path / "empty"), key="reference")) == (
        f"reference={tmp_path / 'empty'}: contains no images (.jpg .jpeg .jpe .jfif .png .webp "
        f".bmp "
        ".tif .tiff) at any depth; set reference to a folder of images"
    )
    mixed = tmp_path / "mixed"
    save_pictures(pictures(1, 1, 4, 6), mixed, ["a.png"])
    save_pictures(pictures(1, 1, 5, 5), mixed, ["b.png"])
    assert error_of(lambda: FolderImages(str(mixed))) == (
        f"samples={mixed}: the images differ in size: a.png is 6 wide and 4 high, b.png is 5 wide "
        "and 5 high; resize them to one size, such as image_size=4"
    )
    save_pictures(pictures(1, 3, 4, 6), mixed, ["b.png"])
    assert error_of(lambda: FolderImages(str(mixed))) == (
        f"samples={mixed}: a.png is grey but b.png is in colour; set color=rgb or color=grey"
    )
    (mixed / "b.png").write_bytes(b"<html>")
    assert error_of(lambda: FolderImages(str(mixed))).startswith(
        f"samples={mixed / 'b.png'}: is not a JPEG, PNG, WebP, BMP or TIFF picture"
    )


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"arr_0": np.zeros((2, 4, 4, 3))}, "its arr_0 is float64 of shape (2, 4, 4, 3); "),
        ({"arr_0": np.zeros((2, 3, 4, 4), np.uint8)}, "its arr_0 is uint8 of shape (2, 3, 4, 4); "),
        ({"arr_0": np.zeros((4, 4, 3), np.uint8)}, "its arr_0 is uint8 of shape (4, 4, 3); "),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, "its arr_0 is uint8 of shape (0, 4, 4, 3); "),
    ],
)
def test_npz_arrays_that_are_not_images_are_reported(tmp_path, arrays, problem):
    path = str(tmp_path / "s.npz")
    np.savez(path, **arrays)
    remedy = "save uint8 images of shape (N, H, W, C) with 1 or 3 channels"
    assert error_of(lambda: NpzImages(path)) == f"samples={path}: {problem}{remedy}"


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def test_unreadable_npz_files_are_reported_in_one_line(tmp_path):
    path = str(tmp_path / "s.npz")
    assert error_of(lambda: NpzImages(path)) == f"samples={path}: file not found"
    np.savez(path, images=np.zeros(3), labels=np.zeros(3))
    assert error_of(lambda: NpzImages(path, key="reference")) == (
        f"reference={path}: contains no arr_0 (there are: images, labels)"
    )
    np.savez(path, arr_0=np.array([Bomb(str(tmp_path / "ran"))], dtype=object))
    assert error_of(lambda: NpzImages(path)) == (
        f"samples={path}: cannot be read as an .npz (Object arrays cannot be loaded when "
        "allow_pickle=False); save it again"
    )
    whole = Path(as_npz(pictures(9, 3, 8, 8), path)).read_bytes()
    for end in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        Path(path).write_bytes(whole[:end])
        assert error_of(lambda: NpzImages(path)).startswith(f"samples={path}: cannot be read as an")
    with open(path, "wb") as file:
        np.save(file, np.zeros((2, 4, 4, 3), np.uint8))
    assert error_of(lambda: NpzImages(path)) == (
        f"samples={path}: cannot be read as an .npz (it is not a zip archive); save it again"
    )
    assert not (tmp_path / "ran").exists()


def test_statistics_are_recognized_by_array_names_and_suffix(tmp_path):
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
