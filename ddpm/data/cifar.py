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
from ddpm.data.codec import ImageCodec
from ddpm.data.images import PixelSet, fitted, target_size
from ddpm.errors import ConfigError
from ddpm.files import locked

EARLIER = Path("data/cifar10")  # where earlier versions looked for it
_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_TIMEOUT_SECONDS = 30.0
_CHUNK = 2**18  # bytes


class CIFAR10(PixelSet):
    """CIFAR-10, 32x32 in colour: 50,000 images to train on or 10,000 to test with.

    ``path`` is the folder that holds cifar-10-batches-py, checked against the published MD5 sums.
    None is data/cifar10 where that has it, else a folder in the user's cache, which all runs
    share. ``download`` downloads the files if they are not there. ``flip`` mirrors a random half
    of the items.
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
        root = cached() if path is None else Path(path)
        images, labels, names = _read(root, split == "train", download)
        pixels = fitted(images, image_size)
        self._set_up(ImageCodec(pixels.shape[1:]), flip=flip)
        self._set_pixels(pixels)
        if class_cond:
            self._set_labels(labels, names)
        alike = partial(CIFAR10, path=str(root), image_size=image_size, class_cond=class_cond)
        test = partial(alike, split="test", download=False)
        self._test = test if split == "train" else None

    def own_split(self) -> CIFAR10 | None:
        """The test images, never mirrored; None where these are the test images."""
        return None if self._test is None else self._test()


def cached() -> Path:
    """Return the folder that holds CIFAR-10, or shall hold it, where no other is named.

    Raises:
        ConfigError: (key ``path``) the home directory is not known.
    """
    if (EARLIER / _published().base_folder).is_dir():
        return EARLIER
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):
        home = os.path.expanduser("~")
        if home == "~":
            problem = "the home directory is not known; set data.path to a folder for CIFAR-10"
            raise ConfigError("path", None, problem)
        cache = os.path.join(home, ".cache")
    return Path(cache, "ddpm", "cifar10")


def _published() -> Any:
    """Return torchvision's class, which knows the address and the sums of the files."""
    import torchvision.datasets

    return torchvision.datasets.CIFAR10


def _files() -> list[tuple[str, str]]:
    """Return names and MD5 sums of the published files."""
    published = _published()
    meta = (published.meta["filename"], published.meta["md5"])
    listed = [*published.train_list, *published.test_list, meta]
    return [(name, md5) for name, md5 in listed]


def _read(
    root: Path, train: bool, download: bool
) -> tuple[npt.NDArray[np.uint8], list[int], list[str]]:
    """Images ``(N, 32, 32, 3)``, labels and class names; files are verified, then unpickled."""
    published = _published()
    folder = root / published.base_folder
    if not folder.is_dir():
        _obtain(root, folder, download)
    for name, md5 in _files():
        file = folder / name
        if not file.is_file() or _md5(file) != md5:
            state = "is damaged (MD5 sum)" if file.is_file() else "is missing"
            problem = f"{state}; remove {folder}, and data.download=true downloads it again"
            raise ConfigError("path", str(file), problem)
    held = published(str(root), train=train)
    return np.asarray(held.data), [int(label) for label in held.targets], list(held.classes)


def _obtain(root: Path, folder: Path, download: bool) -> None:
    """Make the folder of the files: of an archive that lies beside it, or of a downloaded one.

    Raises:
        ConfigError: that is not allowed (key ``path``), or fails.
    """
    published = _published()
    archive = root / published.filename
    if not download and not archive.is_file():
        remedy = f"set data.download=true, or put {published.base_folder} there"
        raise ConfigError("path", str(root), f"no CIFAR-10 in {root}", remedy)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = locked(root / ".cifar-10.lock", lambda: note(f"waiting for CIFAR-10 in {root}"))
        with lock, _aside(root) as aside:
            if folder.is_dir():  # another process was faster
                return
            if not (archive.is_file() and _md5(archive) == published.tgz_md5):
                if not download:
                    remedy = "remove it, or set data.download=true"
                    raise ConfigError("path", str(archive), "is damaged (MD5 sum)", remedy)
                archive = _downloaded(aside / "archive", root)
            _extract(archive, aside / "files")
            os.replace(aside / "files", folder)
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        remedy = "set data.path to a folder for CIFAR-10 that can be written"
        raise ConfigError("path", str(root), problem, remedy) from error


@contextmanager
def _aside(root: Path) -> Iterator[Path]:
    """Give a new folder in ``root`` for unfinished work, and remove it and those of crashes."""
    for stale in root.glob(".cifar-10-*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    aside = root / f".cifar-10-{os.getpid()}.tmp"
    aside.mkdir()
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _downloaded(target: Path, root: Path) -> Path:
    """Download the archive to ``target``; raises ConfigError (key ``download``)."""
    published = _published()
    try:
        with urllib.request.urlopen(published.url, timeout=_TIMEOUT_SECONDS) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
            about = f" ({size / 1e6:.0f} MB)" if size else ""
            note(f"downloading CIFAR-10{about} from {published.url} to {root}")
            digest = hashlib.md5()
            with progress(size, "downloading", "B") as bar, target.open("wb") as file:
                while chunk := answer.read(_CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
        if digest.hexdigest() != published.tgz_md5:
            raise ValueError(f"{target.stat().st_size} of {size} bytes, with another MD5 sum")
    except Exception as error:  # no network, no space, an answer that is cut short: any error
        reason = " ".join(str(getattr(error, "reason", error)).split())
        remedy = (
            f"download {published.filename} from {_PAGE} on another machine, put it in {root} and "
            "run this again"
        )
        raise ConfigError("download", True, f"the download failed ({reason})", remedy) from error
    return target


def _extract(archive: Path, target: Path) -> None:
    """Take the published files, and nothing else, out of the archive."""
    target.mkdir()
    with tarfile.open(archive) as tar:
        for name, _ in _files():
            member = tar.extractfile(f"{_published().base_folder}/{name}")
            assert member is not None, name  # the sum of the archive is the published one
            with member, (target / name).open("wb") as file:
                shutil.copyfileobj(member, file)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
