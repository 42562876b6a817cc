"""MNIST: reading and its errors."""

import gzip
import hashlib

import numpy as np
import pytest
import torchvision

from ddpm.data import MNIST
from ddpm.data.split import split
from ddpm.errors import ConfigError

RNG = np.random.default_rng(0)
PIXELS = {"train": RNG.integers(0, 256, (12, 28, 28), np.uint8),
          "t10k": RNG.integers(0, 256, (5, 28, 28), np.uint8)}  # fmt: skip


def idx(array):
    """Return an array of uint8 as bytes in the format of the published files."""
    sizes = np.array([0x800 + array.ndim, *array.shape], ">i4")
    return sizes.tobytes() + array.tobytes()


FILES = {
    f"{part}-{name}": idx(array)
    for part, pixels in PIXELS.items()
    for name, array in (
        ("images-idx3-ubyte", pixels),
        ("labels-idx1-ubyte", np.arange(len(pixels), dtype=np.uint8) % 10),
    )
}
PACKED = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in FILES.items()}


@pytest.fixture(autouse=True)
def published(tmp_path, monkeypatch):
    """Replace the published files by small ones, without a server; set an empty cache."""
    sums = [(name, hashlib.md5(content).hexdigest()) for name, content in PACKED.items()]
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", sums)
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.delenv("DDPM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(root, files):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in files.items():
        (raw / name).write_bytes(content)
    return str(root)


def test_mnist_is_read_from_the_published_files(tmp_path):
    root = write(tmp_path / "plain", FILES)
    data = MNIST(path=root, class_cond=True, download=False)
    assert (len(data), data.shape, data.num_classes) == (12, (1, 28, 28), 10)
    raw, labels = data.fetch([3, 11], [0, 0])
    assert np.array_equal(raw[:, 0].numpy(), PIXELS["train"][[3, 11]])
    assert labels is not None and labels.tolist() == [3, 1]
    test = split(MNIST(path=root, image_size=14), 0).val
    assert test is not None and (len(test), test.shape) == (5, (1, 14, 14))
    assert MNIST(path=root, split="test").own_split() is None


def test_compressed_files_are_unpacked(tmp_path, capsys):
    root = write(tmp_path / "cache/ddpm/mnist", PACKED)
    assert len(MNIST()) == 12 and len(MNIST(download=False)) == 12
    assert capsys.readouterr().err.splitlines()[0].endswith(f"to {root}")


def test_errors_have_a_remedy(tmp_path):
    (tmp_path / "pictures/7").mkdir(parents=True)
    (tmp_path / "a.tar.gz").touch()
    cut = write(tmp_path / "cut", {name: content[:-1] for name, content in FILES.items()})
    for options, line in (
        ({"download": False}, "MNIST not found in"),
        ({}, "download=true: the download failed (<urlopen error"),
        ({"path": str(tmp_path / "a.tar.gz")}, "is a file, not a folder; unpack archives first"),
        ({"path": cut}, "contains damaged files; remove"),
        ({"path": str(tmp_path / "pictures")}, "contains pictures instead of MNIST's files"),
    ):
        with pytest.raises(ConfigError) as caught:
            MNIST(**options)
        assert line in str(caught.value)
        assert "damaged" in line or "use data=folder" in str(caught.value)
        assert "\n" not in str(caught.value)
