"""Files of items of one size, in which each item is valid by its own checksum.

Several processes may read and write a file at once, and may be killed at any moment: an item that
is missing, incomplete or damaged has an invalid checksum. Reads and writes are positional: a memory
mapping would raise SIGBUS after another machine removed the file from a network file system.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
import struct
import weakref
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpm.console import warn

MARKER = b"ddpm: decoded data, which may be deleted at any time\n"
"""First bytes of each file; files without it belong to somebody else."""
MAX_PROBES = 256
"""Items that are read to see whether a file is complete."""
_FORMAT = 1
_HEADER_BYTES = 4096
_PREFIX = struct.Struct("<II")  # checksum of the content; position of the item + 1


class ForeignFileError(Exception):
    """A file of another program has the name of a file of items."""


class ItemFile:
    """A file of ``count`` items of ``content_bytes`` bytes each.

    Args:
        path: path of the file. It is created if it does not exist. A file of another size or with a
            damaged header is created again; after a truncation the remaining items are valid.
        key: hash of everything that the items depend on; the file stores it.
        count: number of items.
        content_bytes: size of an item.
        failed: shared memory of one byte, which is not zero after a failure to write; files that
            share it warn once. It is also shared with forked processes.

    Raises:
        ForeignFileError: the file belongs to another program.
        OSError: the file cannot be opened or created.
    """

    def __init__(
        self,
        path: Path,
        key: str,
        count: int,
        content_bytes: int,
        *,
        failed: mmap.mmap | None = None,
    ) -> None:
        self.path, self.key, self.count, self.content_bytes = path, key, count, content_bytes
        self._slot_bytes = _PREFIX.size + content_bytes
        self._descriptor, self._writable = self._open()
        weakref.finalize(self, os.close, self._descriptor)
        self._verified = np.zeros(count, dtype=bool)
        self._failed = mmap.mmap(-1, 1) if failed is None else failed

    def __reduce__(self) -> tuple[Any, ...]:
        """Open the file again in a process that was not forked; None if that fails."""
        return _reopened, (self.path, self.key, self.count, self.content_bytes)

    @staticmethod
    def size(count: int, content_bytes: int) -> int:
        """Return the size of a file in bytes."""
        return _HEADER_BYTES + count * (_PREFIX.size + content_bytes)

    def read(self, index: int) -> memoryview | None:
        """Return the content of an item, None if it is missing or damaged."""
        try:
            slot = os.pread(self._descriptor, self._slot_bytes, self._offset(index))
        except OSError:  # such as ESTALE after another machine has removed the file
            return None
        content = memoryview(slot)[_PREFIX.size :]
        if len(slot) != self._slot_bytes or not self._is_valid(index, slot, content):
            return None
        return content

    def is_complete(self, indices: Sequence[int] | None = None) -> bool:
        """Return True if all of up to :data:`MAX_PROBES` items, evenly spaced, are valid.

        Args:
            indices: positions of the items to choose from; None = all.
        """
        positions = range(self.count) if indices is None else indices
        places = np.linspace(0, len(positions) - 1, min(len(positions), MAX_PROBES)).round()
        return all(self.read(positions[int(place)]) is not None for place in places)

    def read_block(
        self, start: int, stop: int
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """Return the contents of items ``start`` to ``stop - 1``, and which of them are valid."""
        count = stop - start
        block = np.zeros((count, self._slot_bytes), dtype=np.uint8)
        valid = np.zeros(count, dtype=bool)
        try:
            data = os.pread(self._descriptor, block.nbytes, self._offset(start))
        except OSError:
            data = b""
        block.reshape(-1)[: len(data)] = np.frombuffer(data, np.uint8)
        contents = block[:, _PREFIX.size :]
        for place in range(count):
            prefix = block[place, : _PREFIX.size].tobytes()
            valid[place] = self._is_valid(start + place, prefix, contents[place])
        return contents, valid

    def write(self, index: int, content: bytes) -> None:
        """Write an item; after an error, such as a full disk, warn once and write no more."""
        if not self._writable or self._failed[0]:
            return
        slot = _PREFIX.pack(zlib.crc32(content), index + 1) + content
        try:
            if os.pwrite(self._descriptor, slot, self._offset(index)) < len(slot):
                raise OSError("no space left on device")
        except OSError as error:
            report_failure(self.path, error, self._failed)

    def _offset(self, index: int) -> int:
        return _HEADER_BYTES + index * self._slot_bytes

    def _is_valid(self, index: int, slot: bytes, content: Any) -> bool:
        """Compare the checksum of an item when this process reads it for the first time."""
        if not self._verified[index]:
            checksum, number = _PREFIX.unpack_from(slot)
            self._verified[index] = number == index + 1 and checksum == zlib.crc32(content)
        return bool(self._verified[index])

    def _header(self) -> bytes:
        names = ("key", "count", "content_bytes")
        fields = {"format": _FORMAT, **{name: getattr(self, name) for name in names}}
        return (MARKER + json.dumps(fields).encode() + b"\n").ljust(_HEADER_BYTES, b"\0")

    def _open(self) -> tuple[int, bool]:
        """Return a file descriptor, and whether it may be written to."""
        header, size = self._header(), self.size(self.count, self.content_bytes)
        while True:
            try:
                descriptor, writable = _opened(self.path)
            except FileNotFoundError:
                _create(self.path, header, size)
                continue
            try:
                start = os.pread(descriptor, _HEADER_BYTES, 0)
                if start == header and writable:
                    os.ftruncate(descriptor, size)  # missing items become invalid
                    os.utime(descriptor)  # for the choice of the files to remove
                if start == header and os.fstat(descriptor).st_size == size:
                    return descriptor, writable
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
            reject_foreign(self.path, start)
            self.path.unlink(missing_ok=True)


def reject_foreign(path: Path, start: bytes) -> None:
    """Raise ForeignFileError if a file that begins with ``start`` belongs to another program."""
    if start and not start.startswith(MARKER):
        raise ForeignFileError(f"{path} belongs to another program; move it away")


def report_failure(path: Path, error: OSError, failed: mmap.mmap) -> None:
    """Warn that a file cannot be written, once for all files that share ``failed``."""
    if not failed[0]:
        failed[0] = 1
        reason = error.strerror or error
        warn(f"{path.parent}: decoded data cannot be stored ({reason}); continuing without")


@contextmanager
def temporary_name(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` for a new file, which is removed if it still has that name."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield aside
    finally:
        aside.unlink(missing_ok=True)


def _opened(path: Path) -> tuple[int, bool]:
    """Open a file for reading and, if that is allowed, for writing."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, os.O_RDWR | flags), True
    except FileNotFoundError:
        raise
    except OSError:
        return os.open(path, os.O_RDONLY | flags), False


def _create(path: Path, header: bytes, size: int) -> None:
    """Create a sparse file without items, unless another process creates it first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_name(path) as aside:
        with aside.open("xb") as file:
            file.write(header)
            file.truncate(size)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(aside, path)  # unlike a rename, it does not replace the file of another process
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            os.replace(aside, path)


def _reopened(path: Path, key: str, count: int, content_bytes: int) -> ItemFile | None:
    try:
        return ItemFile(path, key, count, content_bytes)
    except (OSError, ForeignFileError):
        return None


def is_item_file(path: Path) -> bool:
    """Return True for a regular file that begins with :data:`MARKER`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.pread(descriptor, len(MARKER), 0) == MARKER
    except OSError:
        return False
    finally:
        os.close(descriptor)
