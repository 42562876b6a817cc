"""CIFAR-10, read from its published files, which are downloaded once."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ddpm.console import note, progress
from ddpm.data.images import target_size
from ddpm.data.published import TIMEOUT_SECONDS, PublishedImages, cache_folder
from ddpm.errors import ConfigError
from ddpm.files import locked

LEGACY_FOLDER = Path("data/cifar10")  # default of earlier versions
_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_CHUNK = 2**18  # bytes


class CIFAR10(PublishedImages):
    """CIFAR-10: 50,000 training or 10,000 test images ``(3, 32, 32)``, uint8 RGB, of 10 classes.

    The files are verified by the published MD5 sums.

    Args:
        path: folder that contains cifar-10-batches-py; None = data/cifar10 if it contains the
            files, otherwise a folder in the user's cache, which all runs share.
        download: download the files if they are missing.
        split: "train" or "test".
        image_size: resize to a side length, or to (height, width), in pixels; None = 32.
        class_cond: return labels.
        flip: mirror a random half of the items, left to right.

    Raises:
        ConfigError: the files are missing or damaged, or cannot be downloaded.
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        download: bool = True,
        split: Literal["train", "test"] = "train",
        image_size: int | tuple[int, int] | None = None,
        class_cond: bool = False,
        flip: bool = False,
    ) -> None:
        target_size(image_size)
        root = default_folder() if path is None else Path(path)
        images, labels, names = _read(root, split == "train", download)
        self._set_images(images, image_size, flip=flip)
        if class_cond:
            self._set_labels(labels, names)
        if split == "train":
            shared = partial(CIFAR10, path=str(root), image_size=image_size, class_cond=class_cond)
            self._test = partial(shared, split="test", download=False)


def default_folder() -> Path:
    """Return the folder of CIFAR-10 for ``path=None``.

    Raises:
        ConfigError: (key ``path``) the home directory is unknown.
    """
    if (LEGACY_FOLDER / _published().base_folder).is_dir():
        return LEGACY_FOLDER
    return cache_folder("cifar10", "CIFAR-10")


def _published() -> Any:
    """Return torchvision's class, which contains the URL and the MD5 sums of the files."""
    import torchvision.datasets

    return torchvision.datasets.CIFAR10


def _files() -> list[tuple[str, str]]:
    """Return names and MD5 sums of the published files."""
    published = _published()
    meta = (published.meta["filename"], published.meta["md5"])
    entries = [*published.train_list, *published.test_list, meta]
    return [(name, md5) for name, md5 in entries]


def _read(
    root: Path, train: bool, download: bool
) -> tuple[npt.NDArray[np.uint8], list[int], list[str]]:
    """Return images ``(N, 32, 32, 3)``, labels and class names; verify files before unpickling."""
    published = _published()
    folder = root / published.base_folder
    if not folder.is_dir():
        _prepare(root, folder, download)
    for name, md5 in _files():
        file = folder / name
        if not file.is_file() or _md5(file) != md5:
            state = "is damaged (MD5 sum)" if file.is_file() else "is missing"
            problem = f"{state}; remove {folder}, and data.download=true downloads it again"
            raise ConfigError("path", str(file), problem)
    data = published(str(root), train=train)
    return np.asarray(data.data), [int(label) for label in data.targets], list(data.classes)


def _prepare(root: Path, folder: Path, download: bool) -> None:
    """Create the folder of the files from an archive in ``root``, or from a downloaded one.

    Raises:
        ConfigError: a download is necessary but not allowed, or it fails.
    """
    published = _published()
    if root.is_file():
        remedy = "set {path} to a folder for CIFAR-10"
        raise ConfigError("path", str(root), "is a file, not a folder", remedy)
    archive = root / published.filename
    if not download and not archive.is_file():
        remedy = f"set data.download=true, or put {published.base_folder} there"
        raise ConfigError("path", str(root), f"CIFAR-10 not found in {root}", remedy)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = locked(root / ".cifar-10.lock", lambda: note(f"waiting for CIFAR-10 in {root}"))
        with lock, _temporary_folder(root) as temporary:
            if folder.is_dir():  # another process was faster
                return
            if not (archive.is_file() and _md5(archive) == published.tgz_md5):
                if not download:
                    remedy = "remove it, or set data.download=true"
                    raise ConfigError("path", str(archive), "is damaged (MD5 sum)", remedy)
                archive = _download(temporary / "archive", root)
            _extract(archive, temporary / "files")
            os.replace(temporary / "files", folder)
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        remedy = "set data.path to a writable folder for CIFAR-10"
        raise ConfigError("path", str(root), problem, remedy) from error


@contextmanager
def _temporary_folder(root: Path) -> Iterator[Path]:
    """Yield a new folder in ``root`` for unfinished work; remove it, and those left by crashes."""
    for stale in root.glob(".cifar-10-*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary = root / f".cifar-10-{os.getpid()}.tmp"
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _download(target: Path, root: Path) -> Path:
    """Download the archive to ``target``; raise ConfigError (key ``download``) on failure."""
    published = _published()
    try:
        with urllib.request.urlopen(published.url, timeout=TIMEOUT_SECONDS) as response:
            size = int(response.headers.get("Content-Length") or 0)
            about = f" ({size / 1e6:.0f} MB)" if size else ""
            note(f"downloading CIFAR-10{about} from {published.url} to {root}")
            digest = hashlib.md5()
            with progress(size, "downloading", "B") as bar, target.open("wb") as file:
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
        if digest.hexdigest() != published.tgz_md5:
            raise ValueError(f"{target.stat().st_size} of {size} bytes, with a different MD5 sum")
    except Exception as error:  # no network, no space, an incomplete response: many types
        reason = " ".join(str(getattr(error, "reason", error)).split())
        remedy = (
            f"download {published.filename} from {_PAGE} on another machine, put it in {root} and "
            "run this again"
        )
        raise ConfigError("download", True, f"the download failed ({reason})", remedy) from error
    return target


def _extract(archive: Path, target: Path) -> None:
    """Extract the published files, and no others, from the archive."""
    target.mkdir()
    with tarfile.open(archive) as tar:
        for name, _ in _files():
            member = tar.extractfile(f"{_published().base_folder}/{name}")
            assert member is not None, name  # the MD5 sum of the archive was verified
            with member, (target / name).open("wb") as file:
                shutil.copyfileobj(member, file)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
