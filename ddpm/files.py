"""Files and folders that are written whole or not at all; paths with the home folder as ~."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddpm.errors import ConfigError

LARGEST_LIST = 10_000_000  # bytes; a network of a thousand tensors needs 1e5
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""Errors of reading a JSON file of ours that is missing, damaged or malicious."""


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A name to write to, which becomes ``path`` once all went well: never half a file.

    Makes the folder. ``durable``: on the disk before it goes on, also after a power cut. Raises
    ConfigError naming ``path`` if the file system refuses.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            if durable:
                sync(aside)
            os.replace(aside, path)
            if durable:
                sync(path.parent)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error}); free space or write elsewhere"
        raise ConfigError("path", str(path), problem) from error


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock that one process has at a time; call ``waiting`` before waiting for another one.

    On a file system without locks, nothing is held.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass
        yield


def load_tensors(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, by name, on the CPU.

    Raises:
        ValueError: the file says that its list of names is larger than that of any network: it
            would be taken apart whole, in gigabytes.
        SafetensorError: it is damaged, or something else.
    """
    import safetensors.torch  # here, because commands that need no torch import this module

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > LARGEST_LIST:
        raise ValueError(f"a list of names of {length} bytes")
    return safetensors.torch.load_file(path)


def file_sha256(path: Path) -> str:
    """Return the sha256 sum of a file; raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def missing_folders(path: Path) -> list[Path]:
    """Return ``path`` and the folders above it that do not exist, innermost first."""
    missing = []
    while not path.exists() and path != path.parent:
        missing.append(path)
        path = path.parent
    return missing


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_space(path: Path) -> str:
    """How much the file system of ``path``, or of the nearest folder above, has left, in words."""
    while not path.exists() and path != path.parent:
        path = path.parent
    free = shutil.disk_usage(path).free
    return f"{free / 1e9:.1f} GB free" if free >= 1e8 else f"{free / 1e6:.1f} MB free"


def expand(key: str, path: str) -> str:
    """Return a path with a leading ``~`` or ``~user`` replaced by that home directory.

    As in a shell, the name of an unknown user is left as it is.

    Raises:
        ConfigError: the own home directory is not known.
    """
    expanded = os.path.expanduser(path)
    if expanded == "~" or expanded.startswith("~/"):
        raise ConfigError(key, path, "the home directory is not known; set HOME")
    return expanded
