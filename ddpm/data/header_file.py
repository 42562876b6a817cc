"""File of the disk cache with the headers of the files of a folder.

It is small, and is read and replaced as a whole: readers get the state before or after a write, of
several writers the last one wins, and a damaged file, whose checksum is wrong, is ignored.
"""

from __future__ import annotations

import json
import mmap
import os
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ddpm.data.headers import RECORD, PackedHeaders
from ddpm.data.item_file import MARKER, reject_foreign, report_failure, temporary_name

FILE_STATE = np.dtype([("name", "<u8"), ("size", "<i8"), ("time_ns", "<i8")])
"""Hash of the name of a file, its size (-1: do not store) and its modification time."""
_FORMAT = 1
_LENGTH = np.dtype("<u4")  # of the times of the frames of a file
_ROW_BYTES = FILE_STATE.itemsize + RECORD.itemsize + _LENGTH.itemsize
_COUNT_BYTES = 8


class HeaderFile:
    """A file with the headers of N files, each valid while the state of its file is the same.

    Args:
        path: path of the file, which may not exist.
        key: hash of the folder and of the code that reads headers; the file stores it.
        states: ``(N,)`` of :data:`FILE_STATE`, the current states.
        failed: see :class:`ddpm.data.item_file.ItemFile`.

    Attributes:
        headers: those of files whose states have not changed.

    Raises:
        ForeignFileError: the file belongs to another program.
        OSError: the file cannot be read.
    """

    def __init__(
        self, path: Path, key: str, states: npt.NDArray[np.void], *, failed: mmap.mmap
    ) -> None:
        self.path, self.key, self._states, self._failed = path, key, states, failed
        self.headers = self._load()

    @staticmethod
    def size(count: int) -> int:
        """Return the size of a file in bytes, without the times of frames."""
        return len(MARKER) + _COUNT_BYTES + count * _ROW_BYTES

    def save(self, headers: PackedHeaders) -> None:
        """Replace the file; after an error, such as a full disk, warn once and write no more."""
        if self._failed[0]:
            return
        rows = np.flatnonzero(headers.valid & (self._states["size"] >= 0))
        times = [headers.times.get(row, b"") for row in rows.tolist()]
        lengths = np.array([len(each) for each in times], _LENGTH)
        columns = self._states[rows], headers.records[rows], lengths
        arrays = [column.tobytes() for column in columns]
        content = b"".join([len(rows).to_bytes(_COUNT_BYTES, "little"), *arrays, *times])
        try:
            with temporary_name(self.path) as aside:
                aside.write_bytes(MARKER + self._fields(content) + b"\n" + content)
                os.replace(aside, self.path)
        except OSError as error:
            report_failure(self.path, error, self._failed)

    def _load(self) -> PackedHeaders:
        headers = PackedHeaders.empty(len(self._states))
        states, records, times = self._parse(self._read())
        rows = _find(self._states, states)
        headers.valid[:] = rows >= 0
        headers.records[headers.valid] = records[rows[headers.valid]]
        for index in np.flatnonzero(headers.valid).tolist() if times else ():
            if rows[index] in times:
                headers.times[index] = times[rows[index]]
        return headers

    def _fields(self, content: bytes) -> bytes:
        fields = {"format": _FORMAT, "key": self.key, "checksum": zlib.crc32(content)}
        return json.dumps(fields).encode()

    def _read(self) -> bytes:
        """Return the content, b"" if the file does not exist or is damaged."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return b""
        with os.fdopen(descriptor, "rb") as file:
            start = file.read(len(MARKER))
            reject_foreign(self.path, start)
            fields, content = file.readline().rstrip(b"\n"), file.read()
        with suppress(OSError):
            os.utime(self.path)  # for the choice of the files to remove
        return content if fields == self._fields(content) else b""

    @staticmethod
    def _parse(
        content: bytes,
    ) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void], dict[int, bytes]]:
        """Return the states, the records, and the times by their rows."""
        count = int.from_bytes(content[:_COUNT_BYTES], "little")
        columns, at = [], _COUNT_BYTES
        for dtype in (FILE_STATE, RECORD, _LENGTH):
            columns.append(np.frombuffer(content, dtype, count, offset=at if count else 0))
            at += columns[-1].nbytes
        states, records, lengths = columns
        ends = at + np.cumsum(lengths, dtype=np.int64)
        starts, timed = ends - lengths, np.flatnonzero(lengths).tolist()
        return states, records, {row: content[starts[row] : ends[row]] for row in timed}


def _find(states: npt.NDArray[np.void], rows: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    """Return the row that has each of some states, -1 if none has it."""
    if not len(rows):
        return np.full(len(states), -1)
    if np.array_equal(rows["name"], states["name"]):
        matches = np.arange(len(rows))
    else:  # files were added or removed
        _, positions, places = np.intersect1d(rows["name"], states["name"], return_indices=True)
        matches = np.full(len(states), -1)
        matches[places] = positions
    same = (matches >= 0) & (states["size"] >= 0)
    for field in ("size", "time_ns"):
        same &= rows[field][matches] == states[field]
    return np.where(same, matches, -1)
