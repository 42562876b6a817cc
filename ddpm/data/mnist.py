"""MNIST, read from its published files by torchvision, which downloads them once."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from ddpm.console import note
from ddpm.data.images import target_size
from ddpm.data.published import TIMEOUT_SECONDS, PublishedImages, cache_folder
from ddpm.errors import ConfigError
from ddpm.files import locked


class MNIST(PublishedImages):
    """MNIST: 60,000 training or 10,000 test images ``(1, 28, 28)``, uint8 grey, of 10 classes.

    Args:
        path: folder that contains MNIST/raw with the published files, compressed or not; None = a
            folder in the user's cache, which all runs share.
        download: download the files if they are missing.
        split: "train" or "test".
        image_size: resize to a side length, or to (height, width), in pixels; None = 28.
        class_cond: return labels, which are the digits.

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
    ) -> None:
        target_size(image_size)
        root = cache_folder("mnist", "MNIST") if path is None else Path(path)
        images, labels = _read(root, split == "train", download)
        self._set_images(images.unsqueeze(-1).numpy(), image_size)
        if class_cond:
            self._set_labels(labels.tolist(), [str(digit) for digit in range(10)])
        if split == "train":
            shared = partial(MNIST, path=str(root), image_size=image_size, class_cond=class_cond)
            self._test = partial(shared, split="test", download=False)


def _published() -> Any:
    """Return torchvision's class, which contains the URLs and the MD5 sums of the files."""
    import torchvision.datasets

    return torchvision.datasets.MNIST


def _read(root: Path, train: bool, download: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images ``(N, 28, 28)``, uint8, and labels ``(N,)``."""
    raw = root / "MNIST" / "raw"
    files = [raw / Path(name).stem for name, _ in _published().resources]
    if not all(file.is_file() for file in files):
        _prepare(root, raw, download)
    try:
        data = _published()(str(root), train=train)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:  # cut short
        problem = f"contains damaged files; remove {raw}, and data.download=true downloads them"
        raise ConfigError("path", str(root), problem) from error
    return data.data, data.targets


def _prepare(root: Path, raw: Path, download: bool) -> None:
    """Download the files that are missing, and unpack them.

    Raises:
        ConfigError: a download is necessary but not allowed, or it fails.
    """
    if root.is_file():
        problem = "is a file, not a folder; unpack archives first"
        raise ConfigError("path", str(root), problem, "use data=folder for folders of pictures")
    if any((root / str(digit)).is_dir() for digit in range(10)):
        remedy = f"use data=folder data.path={root}"
        raise ConfigError("path", str(root), "contains pictures instead of MNIST's files", remedy)
    if not download:
        remedy = "set data.download=true, or use data=folder data.path=<folder of pictures>"
        raise ConfigError("path", str(root), f"MNIST not found in {root}", remedy)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / ".mnist.lock", lambda: note(f"waiting for MNIST in {root}")):
            note(f"downloading MNIST (12 MB) from {_published().mirrors[0]} to {root}")
            with redirect_stdout(None), _timeout():  # torchvision prints names of files
                _published()(str(root), download=True)
    except Exception as error:  # no network, no space, an incomplete response: many types
        if isinstance(error, OSError) and error.filename is not None:
            problem = f"cannot be written ({error.strerror or error})"
            remedy = "set data.path to a writable folder for MNIST"
            raise ConfigError("path", str(root), problem, remedy) from error
        names = ", ".join(name for name, _ in _published().resources)
        remedy = (
            f"put {names} from another machine into {raw}, or use data=folder "
            "data.path=<folder of pictures>"
        )
        problem = f"the download failed ({_reason(error)})"
        raise ConfigError("download", True, problem, remedy) from error


@contextmanager
def _timeout() -> Iterator[None]:
    """Limit the time that torchvision waits for a server."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _reason(error: Exception) -> str:
    """Return the last line of torchvision's message, the error of the last mirror."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
