"""Atomic writes, locks, hashes and paths of files."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddpm.errors import ConfigError

MAX_HEADER_BYTES = 10_000_000  # of a safetensors file; a network of a thousand tensors needs 1e5
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""Errors of reading a JSON file that is missing, damaged or malicious."""


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` if the block succeeds.

    The folder is created if needed.

    Args:
        path: the file to write.
        durable: flush the file and its name to the disk, so that they survive a power cut.

    Raises:
        ConfigError: (key ``path``) the file system raises an error.
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
    """Hold an exclusive lock of a file; on a file system without locks, hold nothing.

    Args:
        path: the file.
        waiting: called before waiting for another process.
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
    """Return the tensors of a safetensors file, by name, on the CPU.

    Raises:
        ValueError: the header is larger than that of any network, and would be parsed in memory.
        SafetensorError: the file is damaged or of another format.
    """
    import safetensors.torch  # commands without torch import this module

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes")
    return safetensors.torch.load_file(path)


def file_sha256(path: Path) -> str:
    """Return the sha256 sum of a file; raises OSError if it cannot be read."""
    import hashlib  # --help does without OpenSSL

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
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_usual_mode(path: Path) -> None:
    """Give a file the permissions that open() gives: safetensors makes it private."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def check_is_file(path: str) -> None:
    """Raise ConfigError (key ``path``) unless ``path`` is a file; opening a pipe would block."""
    if os.path.isdir(path):
        raise ConfigError("path", path, "is a folder; use a file in it")
    if not os.path.isfile(path):
        other = os.path.exists(path)
        raise ConfigError("path", path, "is not a regular file" if other else "no such file")


def user_cache() -> Path | None:
    """Return the folder for files that can be downloaded or computed again.

    It is ``$DDPM_CACHE``, else ``$XDG_CACHE_HOME/ddpm``, else ``~/.cache/ddpm``; None if the home
    directory is unknown.
    """
    folder = os.environ.get("DDPM_CACHE")
    if folder:
        return Path(folder).absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # the XDG standard ignores relative paths
        home = os.path.expanduser("~")
        if home == "~":
            return None
        cache = os.path.join(home, ".cache")
    return Path(cache, "ddpm")


def free_space(path: Path) -> str:
    """Return the free space of the file system of ``path`` in words, such as ``1.5 GB free``."""
    while not path.exists() and path != path.parent:
        path = path.parent
    import shutil  # --help does without its archives

    free = shutil.disk_usage(path).free
    return f"{free / 1e9:.1f} GB free" if free >= 1e8 else f"{free / 1e6:.1f} MB free"


def expand(key: str, path: str) -> str:
    """Return a path with a leading ``~`` or ``~user`` replaced by that home directory.

    As in a shell, ``~`` with the name of an unknown user is returned unchanged.

    Raises:
        ConfigError: the home directory of the current user is unknown.
    """
    expanded = os.path.expanduser(path)
    if expanded == "~" or expanded.startswith("~/"):
        raise ConfigError(key, path, "the home directory is unknown; set HOME")
    return expanded
