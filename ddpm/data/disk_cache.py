"""Cache of decoded data on the disk: its folder, its size limit, and the keys of its files.

The folder is ``$DDPM_CACHE/decoded``, by default ``~/.cache/ddpm/decoded``. Its files
(:mod:`ddpm.data.item_file`) may be deleted at any time. The least recently used ones are removed
when the folder would exceed ``$DDPM_CACHE_GB`` (20 by default); files of other programs stay.
"""

from __future__ import annotations

import hashlib
import inspect
import mmap
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import PIL
from PIL import features

from ddpm.data import decoding, depth
from ddpm.data.files import parallel_for
from ddpm.data.header_file import FILE_STATE, HeaderFile
from ddpm.data.item_file import ForeignFileError, ItemFile, is_item_file
from ddpm.errors import Advice, ConfigError
from ddpm.files import expand, user_cache
from ddpm.version import __version__

T = TypeVar("T")
SIZE_VARIABLE = "DDPM_CACHE_GB"
MIN_BYTES = 16 * 2**20
"""Space on the disk that a data set must take to be cached by default; decoding takes about 1 s."""
_DEFAULT_GB = "20"
_BLOCK_BYTES = 4096  # of a file system: the cost of opening a file is that of about one block
_RECENT_NS = 2 * 10**9  # resolution of time stamps on the coarsest file systems
_STALE_NS = 3600 * 10**9  # age of temporary files of processes that were killed
_NUM_READ = 16  # files whose contents are in a key
_MAX_READ_BYTES = 2**20  # of each
_CHUNK = 512  # files per call of a thread
_TEMPORARY = re.compile(r"\.[0-9a-f]{64}\.items\.[0-9a-f]{8}\.tmp")
_NAME = re.compile(r"[0-9a-f]{64}\.items")
_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n"  # https://bford.info/cachedir


@dataclass(frozen=True)
class FileStates:
    """Sizes and modification times of the files of a data set.

    Attributes:
        root: path of the folder.
        files: paths relative to ``root``.
        sizes: size of each file in bytes, -1 if it is not found.
        times_ns: modification time of each file.
    """

    root: str
    files: Sequence[str]
    sizes: np.ndarray
    times_ns: np.ndarray

    @classmethod
    def scan(cls, root: str, files: Sequence[str]) -> FileStates:
        """Return the states of files, of which none is opened."""
        sizes, times = np.full(len(files), -1, np.int64), np.zeros(len(files), np.int64)

        def scan_chunk(chunk: int) -> None:
            for index in range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, len(files))):
                try:
                    state = os.stat(os.path.join(root, files[index]))
                except OSError:  # decoding reports it
                    continue
                sizes[index], times[index] = state.st_size, state.st_mtime_ns

        parallel_for(-(-len(files) // _CHUNK), scan_chunk, "listing files")
        return cls(root, files, sizes, times)

    @property
    def disk_bytes(self) -> int:
        """Space that the files take on the disk, a measure of the time to decode them."""
        return int(np.maximum(self.sizes, _BLOCK_BYTES).sum())

    @property
    def settled(self) -> npt.NDArray[np.bool_]:
        """True for files of which a later change would change the size or the modification time."""
        ages = np.abs(time.time_ns() - self.times_ns)
        return (self.sizes >= 0) & (ages >= _RECENT_NS)

    def packed(self) -> npt.NDArray[np.void]:
        """Return the state of each file as :data:`FILE_STATE`; sizes are -1 unless settled."""
        names = [file.encode("utf-8", "surrogateescape") for file in self.files]
        hashes = b"".join(hashlib.blake2b(name, digest_size=8).digest() for name in names)
        states = np.empty(len(self.files), FILE_STATE)
        states["name"] = np.frombuffer(hashes, "<u8")
        states["size"] = np.where(self.settled, self.sizes, -1)
        states["time_ns"] = self.times_ns
        return states

    def digest(self) -> str:
        """Return a hash of names, sizes and times, and of the contents of a few files."""
        digest = hashlib.sha256("\0".join(self.files).encode("utf-8", "surrogateescape"))
        digest.update(self.sizes.tobytes() + self.times_ns.tobytes())
        last = len(self.files) - 1
        for index in sorted({last * place // (_NUM_READ - 1) for place in range(_NUM_READ)}):
            with open(os.path.join(self.root, self.files[index]), "rb") as file:
                digest.update(file.read(_MAX_READ_BYTES))
        return digest.hexdigest()


class DiskCache:
    """The files of one data set in the cache.

    Args:
        folder: folder of the cache.
        states: the files of the data set.
        limit_bytes: limit of the size of the folder.

    Attributes:
        warnings: reasons why files cannot be used.
    """

    def __init__(self, folder: Path, states: FileStates, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._states, self._in_use = states, set[Path]()
        self._failed = mmap.mmap(-1, 1)
        self.warnings: tuple[str, ...] = ()

    @classmethod
    def choose(cls, option: bool | str | None, root: str, files: Sequence[str]) -> DiskCache | None:
        """Return the cache of a data set, None without one.

        Args:
            option: None = if the files are large enough, see :data:`MIN_BYTES`; False = no cache;
                True = always, or always in this folder.
            root: path of the folder of the data set.
            files: paths relative to ``root``.

        Raises:
            ConfigError: an invalid folder or limit.
        """
        if option is False:
            return None
        states = FileStates.scan(root, files)
        if option is None and states.disk_bytes < MIN_BYTES:
            return None
        parent = Path(expand("disk_cache", option)) if isinstance(option, str) else user_cache()
        if parent is None:
            return None
        return cls(parent.absolute() / "decoded", states, _limit_bytes())

    def open(self, parts: Sequence[object], count: int, content_bytes: int) -> ItemFile | None:
        """Open a file of decoded items, or create it.

        It is found again by a data set of the same files, also in another folder. Files that
        changed a moment ago are not stored.

        Args:
            parts: options that its items depend on, beside the files of the data set.
            count: number of items.
            content_bytes: size of an item.

        Returns:
            The file, or None if it cannot be used, with the reason in :attr:`warnings`.
        """
        if not self._states.settled.all():
            return None
        try:
            digest = self._states.digest()
        except OSError:  # decoding reports it
            return None
        path, key = self._name(digest, _decoder_versions(), *parts, count, content_bytes)
        size = ItemFile.size(count, content_bytes)
        return self._opened(
            path, size, lambda: ItemFile(path, key, count, content_bytes, failed=self._failed)
        )

    def open_headers(self, *parts: object) -> HeaderFile | None:
        """Open the file of the headers of the files of this folder.

        Args:
            parts: versions of the code that reads the headers, beside that of pictures.

        Returns:
            The file, or None if it cannot be used, with the reason in :attr:`warnings`.
        """
        root, states = os.path.realpath(self._states.root), self._states.packed()
        path, key = self._name("headers", root, _decoder_versions(), *parts)
        size = HeaderFile.size(len(states))
        return self._opened(path, size, lambda: HeaderFile(path, key, states, failed=self._failed))

    def _name(self, *parts: object) -> tuple[Path, str]:
        """Return the path and the key of the file of some data."""
        key = hashlib.sha256(repr(parts).encode()).hexdigest()
        return self.folder / f"{key}.items", key

    def _opened(self, path: Path, size: int, function: Callable[[], T]) -> T | None:
        """Return the file that a function opens, None if it cannot be used."""
        try:
            self._in_use.add(path)
            if path.exists() or self._make_room(size):
                return function()
        except ForeignFileError as error:
            self._warn(str(error))
        except OSError as error:
            problem = f"{self.folder}: decoded data cannot be stored ({error.strerror or error})"
            self._warn(Advice(problem, "set {disk_cache} to another folder or to false"))
        return None

    def _warn(self, line: str) -> None:
        if line not in self.warnings:
            self.warnings += (line,)

    def _make_room(self, size: int) -> bool:
        """Remove the least recently used files; warn and return False if space is lacking."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tag = self.folder / "CACHEDIR.TAG"  # programs for backups omit the folder
        if not tag.exists():
            tag.write_bytes(_TAG)
        self._remove_temporary()
        entries = sorted(self._entries())
        total = sum(entry_size for _, entry_size, _ in entries) + size
        needed = f"{self.folder}: the decoded data take {_gigabytes(size)}"
        if size <= self.limit_bytes:
            for _, entry_size, path in entries:
                if total > self.limit_bytes and path not in self._in_use:
                    path.unlink(missing_ok=True)
                    total -= entry_size
        if total > self.limit_bytes:
            limit = f"more than the limit of the cache, {_gigabytes(self.limit_bytes)}"
            remedy = f"set the variable {SIZE_VARIABLE}, or {{disk_cache}}=false"
            self._warn(Advice(f"{needed}, {limit}", remedy))
            return False
        free = shutil.disk_usage(self.folder).free
        if 2 * size > free:  # leave space for checkpoints
            problem = f"{needed}, more than half of the free space, {_gigabytes(free)}"
            self._warn(Advice(problem, "set {disk_cache} to a folder elsewhere or to false"))
            return False
        return True

    def _entries(self, name: re.Pattern[str] = _NAME) -> list[tuple[int, int, Path]]:
        """Return time of last use in ns, size in bytes and path of each file of this module."""
        entries = []
        for path in self.folder.iterdir():
            if name.fullmatch(path.name) and is_item_file(path):
                with suppress(FileNotFoundError):  # removed by another process
                    state = path.lstat()
                    entries.append((state.st_mtime_ns, state.st_size, path))
        return entries

    def _remove_temporary(self) -> None:
        """Remove the unfinished files of processes that were killed."""
        for time_ns, _, path in self._entries(_TEMPORARY):
            if time.time_ns() - time_ns > _STALE_NS:
                path.unlink(missing_ok=True)


def _limit_bytes() -> int:
    text = os.environ.get(SIZE_VARIABLE) or _DEFAULT_GB
    try:
        limit = float(text)
        if not 0 <= limit < float("inf"):
            raise ValueError
    except ValueError:
        problem = "must be a number of gigabytes, such as 50"
        raise ConfigError(SIZE_VARIABLE, text, problem, absolute=True) from None
    return int(limit * 1e9)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def code_version(*modules: ModuleType) -> str:
    """Return a hash of the source of modules, the version of the package without sources."""
    try:
        sources = "".join(map(inspect.getsource, modules))
    except OSError:
        sources = __version__
    return hashlib.sha256(sources.encode()).hexdigest()


def _decoder_versions() -> tuple[object, ...]:
    """Return the versions of the code that decodes pictures."""
    codecs = [features.version(name) for name in ("libjpeg_turbo", "jpg", "webp", "libtiff")]
    return code_version(decoding, depth), PIL.__version__, codecs, sys.byteorder
