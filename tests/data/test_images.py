import hashlib
import inspect
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml
from sklearn.datasets import load_digits

import ddpm.data
from ddpm.data import CIFAR10, Digits, images
from ddpm.data.split import split
from ddpm.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs" / "data"


@pytest.mark.parametrize("name", ["digits", "cifar", "folder", "sequence"])
def test_each_config_lists_every_option_at_its_default(name: str):
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    target = config.pop("_target_").removeprefix("ddpm.data.")
    assert target in ddpm.data.__all__
    parameters = inspect.signature(getattr(ddpm.data, target)).parameters
    defaults = {
        key: "???" if parameter.default is parameter.empty else parameter.default
        for key, parameter in parameters.items()
    }
    assert config.pop("val_fraction") == 0.0  # of every data node, not of its class
    assert list(config.items()) == list(defaults.items())


def test_digits_are_those_of_scikit_learn_in_256_steps():
    values, labels = load_digits(return_X_y=True)
    data = Digits(class_cond=True)
    assert (len(data), data.shape, data.in_memory) == (1797, (1, 8, 8), True)
    assert (data.num_classes, data.class_names) == (10, list("0123456789"))
    raw, numbers = data.fetch(range(1797), range(1797))
    assert raw.dtype == torch.uint8
    assert np.array_equal(raw.numpy().reshape(1797, 64), np.rint(values * 255 / 16))
    assert raw.max() == 255
    assert np.array_equal(numbers, labels)  # pyright: ignore[reportArgumentType]
    assert data.codec.state() == {"kind": "images", "shape": [1, 8, 8]}
    without = Digits()
    assert (without.num_classes, without.class_names, without.fetch([0], [0])[1]) == (None,) * 3


def test_digits_can_be_resized():
    assert Digits(image_size=8).shape == (1, 8, 8)
    data = Digits(image_size=(16, 32))  # twice as wide as high: the upper and lower quarter go
    raw, _ = data.fetch([0], [0])
    assert raw.shape == (1, 1, 16, 32)
    middle = Digits().fetch([0], [0])[0][0, 0, 2:6].float()
    means = raw[0, 0].reshape(4, 4, 8, 4).float().mean((1, 3))
    assert torch.corrcoef(torch.stack([means.flatten(), middle.flatten()]))[0, 1] > 0.97


@pytest.mark.parametrize("size", [0, -3, (8, 0)])
def test_a_size_without_pixels_is_refused(size):
    with pytest.raises(ConfigError, match=r"^image_size=.*: must be a positive number of pixels"):
        Digits(image_size=size)


def test_a_fetched_batch_may_be_changed_without_changing_the_data():
    data = Digits()
    before = data.fetch([5], [0])[0].clone()
    data.fetch([5], [0])[0].zero_()
    assert torch.equal(data.fetch([5], [0])[0], before)


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch) -> Path:
    """A small CIFAR-10 in the published layout, with sums that are those of its files."""
    published = torchvision.datasets.CIFAR10
    folder = tmp_path / published.base_folder
    folder.mkdir()
    draw = np.random.default_rng(0)

    def save(name: str, held: dict) -> list[str]:
        content = pickle.dumps(held)
        (folder / name).write_bytes(content)
        return [name, hashlib.md5(content).hexdigest()]

    def batch(count: int) -> dict:
        images = draw.integers(0, 256, (count, 3072), dtype=np.uint8)
        return {"data": images, "labels": [n % 10 for n in range(count)]}

    names = [f"class {n}" for n in range(10)]
    meta, md5 = save("batches.meta", {"label_names": names})
    train = [save(f"data_batch_{n}", batch(n)) for n in (4, 5)]
    monkeypatch.setattr(published, "train_list", train)
    monkeypatch.setattr(published, "test_list", [save("test_batch", batch(12))])
    monkeypatch.setattr(published, "meta", {"filename": meta, "key": "label_names", "md5": md5})
    return tmp_path


def test_cifar_is_read_from_the_published_files(cifar: Path):
    data = CIFAR10(path=str(cifar), class_cond=True)
    assert (len(data), data.shape, data.in_memory, data.num_classes) == (9, (3, 32, 32), True, 10)
    assert data.class_names == [f"class {n}" for n in range(10)]
    held = pickle.loads((cifar / "cifar-10-batches-py" / "data_batch_5").read_bytes())
    raw, labels = data.fetch([4, 8], [0, 0])
    assert np.array_equal(raw.numpy(), held["data"][[0, 4]].reshape(2, 3, 32, 32))
    assert labels is not None
    assert labels.tolist() == [0, 4]
    assert len(CIFAR10(path=str(cifar), split="test")) == 12
    assert CIFAR10(path=str(cifar), image_size=16).fetch([0], [0])[0].shape == (1, 3, 16, 16)
    assert len(CIFAR10(path=str(cifar), download=True)) == 9  # all there: nothing is fetched


def test_cifar_validates_with_its_test_images(cifar: Path):
    options = {"path": str(cifar), "image_size": (16, 8), "class_cond": True}
    test = CIFAR10(**options, split="test")
    raw, labels = test.fetch(range(12), range(12))
    own = CIFAR10(**options, flip=True).own_split()
    assert own is not None and (len(own), own.shape, own.num_classes) == (12, (3, 16, 8), 10)
    found, names = own.fetch(range(12), range(12))  # none is mirrored, whatever the key
    assert torch.equal(found, raw)
    assert labels is not None and names is not None and names.tolist() == labels.tolist()
    assert test.own_split() is None and own.own_split() is None
    unlabelled = CIFAR10(path=str(cifar)).own_split()
    assert unlabelled is not None
    assert (unlabelled.shape, unlabelled.num_classes) == ((3, 32, 32), None)


def test_cifar_reads_its_test_images_when_they_are_asked_for_and_fetches_nothing_then(
    cifar: Path, monkeypatch
):
    read: list[tuple[str, bool, bool]] = []
    really = images._read_cifar10

    def watched(root: str, train: bool, download: bool):
        read.append((root, train, download))
        return really(root, train, download)

    monkeypatch.setattr(images, "_read_cifar10", watched)
    parts = split(CIFAR10(path=str(cifar), download=True), 0)
    assert read == [(str(cifar), True, True)]
    assert parts.val is not None and len(parts.val) == 12
    assert parts.val.fetch([0], [0])[0].shape == (1, 3, 32, 32)
    assert read[1:] == [(str(cifar), False, False)]


def test_flips_are_a_function_of_the_key_and_half_of_all(cifar: Path):
    data = CIFAR10(path=str(cifar), flip=True)
    plain = CIFAR10(path=str(cifar)).fetch([3], [0])[0][0]
    keys = list(range(400)) + [2**63 - 1]
    raw, _ = data.fetch([3] * len(keys), keys)
    flipped = [torch.equal(item, plain.flip(-1)) for item in raw]
    assert all(
        turned or torch.equal(item, plain) for turned, item in zip(flipped, raw, strict=True)
    )
    assert 160 < sum(flipped) < 240
    again, _ = data.fetch([2, 3, 3], [keys[7], keys[11], keys[7]])  # in other company
    assert torch.equal(again[1:], raw[[11, 7]])
    other = CIFAR10(path=str(cifar)).fetch([2], [0])[0][0]
    assert torch.equal(again[0], other.flip(-1) if flipped[7] else other)


def test_cifar_that_is_not_there_says_how_to_get_it(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        CIFAR10(path=str(tmp_path))
    assert str(caught.value) == (
        f"path={tmp_path}: no CIFAR-10 in {tmp_path}; add data.download=true, "
        "or put cifar-10-batches-py there"
    )


def test_a_failed_download_says_what_else_to_do(tmp_path: Path, monkeypatch):
    def offline(*_: object, **__: object) -> None:
        raise OSError("Name or service\nnot known")

    module = "torchvision.datasets.cifar.download_and_extract_archive"
    monkeypatch.setattr(module, offline)
    with pytest.raises(ConfigError) as caught:
        CIFAR10(path=str(tmp_path), download=True)
    assert str(caught.value) == (
        "download=true: the download failed (Name or service not known); fetch "
        "cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html on another "
        f"machine, put it in {tmp_path} and run this again"
    )


@pytest.mark.parametrize("name", ["data_batch_5", "test_batch", "batches.meta"])
@pytest.mark.parametrize("gone", [True, False])
def test_a_damaged_or_missing_file_is_named_and_not_unpickled(cifar: Path, name: str, gone: bool):
    file = cifar / "cifar-10-batches-py" / name
    if gone:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(ConfigError) as caught:
        CIFAR10(path=str(cifar))
    assert str(caught.value) == (
        f"path={file}: {'is missing' if gone else 'is damaged (MD5 sum)'}; "
        f"remove {file.parent} and add data.download=true"
    )
