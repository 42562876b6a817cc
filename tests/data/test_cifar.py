"""CIFAR-10: reading, download, and their errors."""

import hashlib
import http.server
import io
import os
import pickle
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from ddpm.data import CIFAR10, cifar
from ddpm.data.split import split
from ddpm.errors import ConfigError

BASE = "cifar-10-batches-py"
NAMES = [f"class {n}" for n in range(10)]


def batch(count):
    values = np.random.default_rng(count).integers(0, 256, (count, 3072), dtype=np.uint8)
    return {"data": values, "labels": [n % 10 for n in range(count)]}


CONTENT = {
    name: pickle.dumps(content)
    for name, content in {
        "batches.meta": {"label_names": NAMES},
        "data_batch_4": batch(4),
        "data_batch_5": batch(5),
        "test_batch": batch(12),
    }.items()
}


def pack():
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in {**CONTENT, "../evil": b"x", "readme.html": b"y"}.items():
            member = tarfile.TarInfo(f"{BASE}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


ARCHIVE = pack()


@pytest.fixture(autouse=True)
def published(tmp_path, monkeypatch):
    """Replace the published files by small ones; set an empty cache and working folder."""
    dataset = torchvision.datasets.CIFAR10
    sums = {name: hashlib.md5(content).hexdigest() for name, content in CONTENT.items()}
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    train = [[name, sums[name]] for name in ("data_batch_4", "data_batch_5")]
    monkeypatch.setattr(dataset, "train_list", train)
    monkeypatch.setattr(dataset, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(dataset, "meta", meta)
    monkeypatch.setattr(dataset, "tgz_md5", hashlib.md5(ARCHIVE).hexdigest())
    monkeypatch.setattr(dataset, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")  # no server
    monkeypatch.delenv("DDPM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return dataset


@pytest.fixture
def folder(tmp_path):
    """Folder that contains the files."""
    (tmp_path / "own" / BASE).mkdir(parents=True)
    for name, content in CONTENT.items():
        (tmp_path / "own" / BASE / name).write_bytes(content)
    return tmp_path / "own"


@pytest.fixture
def server(published, monkeypatch):
    """Server of the archive, with the list ``requests`` and the response ``body``."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.requests.append(self.path)
            time.sleep(0.3)
            self.send_response(200)
            self.send_header("Content-Length", str(len(ARCHIVE)))
            self.end_headers()
            self.wfile.write(self.server.body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests, server.body = [], ARCHIVE
        url = f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz"
        monkeypatch.setattr(published, "url", url)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_cifar_is_read_from_the_published_files(folder):
    data = CIFAR10(path=str(folder), class_cond=True, download=False)
    assert (len(data), data.shape, data.in_memory, data.num_classes) == (9, (3, 32, 32), True, 10)
    assert data.class_names == NAMES
    content = pickle.loads(CONTENT["data_batch_5"])
    raw, labels = data.fetch([4, 8], [0, 0])
    assert np.array_equal(raw.numpy(), content["data"][[0, 4]].reshape(2, 3, 32, 32))
    assert labels is not None and labels.tolist() == [0, 4]
    assert len(CIFAR10(path=str(folder), split="test")) == 12
    assert CIFAR10(path=str(folder), image_size=16).fetch([0], [0])[0].shape == (1, 3, 16, 16)
    assert len(CIFAR10(path=str(folder))) == 9  # all files exist: no download


def test_cifar_validates_with_its_test_images(folder):
    options = {"path": str(folder), "image_size": (16, 8), "class_cond": True}
    test = CIFAR10(**options, split="test")
    raw, labels = test.fetch(range(12), range(12))
    own = CIFAR10(**options, flip=True).own_split()
    assert own is not None and (len(own), own.shape, own.num_classes) == (12, (3, 16, 8), 10)
    images, names = own.fetch(range(12), range(12))  # not mirrored, for any key
    assert torch.equal(images, raw)
    assert labels is not None and names is not None and names.tolist() == labels.tolist()
    assert test.own_split() is None and own.own_split() is None
    unlabelled = CIFAR10(path=str(folder)).own_split()
    assert unlabelled is not None
    assert (unlabelled.shape, unlabelled.num_classes) == ((3, 32, 32), None)


def test_test_images_are_read_on_access_without_a_download(folder, monkeypatch):
    read: list[tuple[Path, bool, bool]] = []
    original = cifar._read

    def spy(root: Path, train: bool, download: bool):
        read.append((root, train, download))
        return original(root, train, download)

    monkeypatch.setattr(cifar, "_read", spy)
    parts = split(CIFAR10(path=str(folder)), 0)
    assert read == [(folder, True, True)]
    assert parts.val is not None and len(parts.val) == 12
    assert parts.val.fetch([0], [0])[0].shape == (1, 3, 32, 32)
    assert read[1:] == [(folder, False, False)]


def test_flips_depend_on_the_key_and_affect_half_of_the_items(folder):
    data = CIFAR10(path=str(folder), flip=True)
    plain = CIFAR10(path=str(folder)).fetch([3], [0])[0][0]
    keys = list(range(400)) + [2**63 - 1]
    raw, _ = data.fetch([3] * len(keys), keys)
    flipped = [torch.equal(item, plain.flip(-1)) for item in raw]
    assert all(
        mirrored or torch.equal(item, plain) for mirrored, item in zip(flipped, raw, strict=True)
    )
    assert 160 < sum(flipped) < 240
    again, _ = data.fetch([2, 3, 3], [keys[7], keys[11], keys[7]])  # in another batch
    assert torch.equal(again[1:], raw[[11, 7]])
    other = CIFAR10(path=str(folder)).fetch([2], [0])[0][0]
    assert torch.equal(again[0], other.flip(-1) if flipped[7] else other)


def test_cifar_is_downloaded_once_into_a_shared_cache(server, tmp_path, capsys, monkeypatch):
    with ThreadPoolExecutor(3) as pool:
        sizes = list(pool.map(lambda _: len(CIFAR10()), range(3)))
    assert sizes == [9, 9, 9] and len(server.requests) == 1
    root = tmp_path / "cache/ddpm/cifar10"
    lines = capsys.readouterr().err.splitlines()
    url = f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz"
    assert lines.count(f"downloading CIFAR-10 (0 MB) from {url} to {root}") == 1
    assert f"waiting for CIFAR-10 in {root}" in lines
    assert sorted(os.listdir(root)) == [".cifar-10.lock", BASE]
    assert sorted(os.listdir(root / BASE)) == sorted(CONTENT)
    assert len(CIFAR10(download=False)) == 9
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cifar.default_folder() == tmp_path / ".cache/ddpm/cifar10"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # must be ignored by the XDG standard
    assert cifar.default_folder() == tmp_path / ".cache/ddpm/cifar10"
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "own"))
    assert cifar.default_folder() == tmp_path / "own/cifar10"
    assert os.listdir() == []


@pytest.mark.parametrize("body", [ARCHIVE[:-100], b"", b"<html>" + bytes(len(ARCHIVE) - 6)])
def test_incomplete_downloads_are_not_used(server, body, tmp_path):
    root = tmp_path / "cache/ddpm/cifar10"
    (root / ".cifar-10-1.tmp/files").mkdir(parents=True)  # left by a killed process
    server.body = body
    with pytest.raises(ConfigError, match=r"^download=true: the download failed \("):
        CIFAR10()
    assert os.listdir(root) == [".cifar-10.lock"]
    server.body = ARCHIVE
    assert len(CIFAR10()) == 9


def test_the_error_of_a_failed_download_has_a_remedy(folder, tmp_path, published):
    root = tmp_path / "cache/ddpm/cifar10"
    with pytest.raises(ConfigError) as caught:
        CIFAR10()
    assert str(caught.value) == (
        "download=true: the download failed ([Errno 111] Connection refused); download "
        "cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html on another "
        f"machine, put it in {root} and run this again"
    )
    (root / published.filename).write_bytes(ARCHIVE)
    assert len(CIFAR10(download=False)) == 9
    assert (root / published.filename).read_bytes() == ARCHIVE  # is kept


def test_missing_or_damaged_files_without_a_download(tmp_path, published):
    root = tmp_path / "cache/ddpm/cifar10"
    with pytest.raises(ConfigError) as caught:
        CIFAR10(download=False)
    assert str(caught.value) == (
        f"path={root}: CIFAR-10 not found in {root}; set data.download=true, "
        "or put cifar-10-batches-py there"
    )
    assert not root.exists()
    root.mkdir(parents=True)
    archive = root / published.filename
    archive.write_bytes(b"not it")
    with pytest.raises(ConfigError) as caught:
        CIFAR10(download=False)
    problem = "is damaged (MD5 sum); remove it, or set data.download=true"
    assert str(caught.value) == f"path={archive}: {problem}"
    assert archive.read_bytes() == b"not it"
    with pytest.raises(ConfigError, match="is a file, not a folder; set data"):
        CIFAR10(path=str(archive))


def test_an_unwritable_or_unknown_cache(tmp_path, monkeypatch):
    (tmp_path / "cache").touch()
    with pytest.raises(ConfigError) as caught:
        CIFAR10()
    root = tmp_path / "cache/ddpm/cifar10"
    assert str(caught.value) == (
        f"path={root}: cannot be written (Not a directory); set data.path to a writable "
        "folder for CIFAR-10"
    )
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(ConfigError) as caught:
        CIFAR10()
    problem = "the home directory is unknown; set data.path to a folder for CIFAR-10"
    assert str(caught.value) == f"path: {problem}"


def test_the_default_folder_of_earlier_versions_is_used_if_it_exists(folder):
    Path("data").mkdir()
    folder.rename("data/cifar10")
    assert cifar.default_folder() == Path("data/cifar10")
    assert len(CIFAR10(download=False)) == 9


@pytest.mark.parametrize("name", ["data_batch_5", "test_batch", "batches.meta"])
@pytest.mark.parametrize("missing", [True, False])
def test_damaged_or_missing_files_are_named_and_not_unpickled(folder, name: str, missing: bool):
    file = folder / BASE / name
    if missing:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(ConfigError) as caught:
        CIFAR10(path=str(folder))
    assert str(caught.value) == (
        f"path={file}: {'is missing' if missing else 'is damaged (MD5 sum)'}; "
        f"remove {file.parent}, and data.download=true downloads it again"
    )
