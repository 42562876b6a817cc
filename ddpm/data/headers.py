"""Headers of many files of pictures and videos in arrays."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ddpm.data.decoding import Header, check_consistent
from ddpm.data.depth import Levels, depth_warnings, range_warnings

RECORD = np.dtype(
    [
        ("height", "<u4"),
        ("width", "<u4"),
        ("grey", "?"),
        ("bits", "u1"),
        ("deep_colour", "?"),
        ("has_range", "?"),
        ("low", "<u2"),
        ("high", "<u2"),
    ]
)
"""Packed header of a file without the times of its frames."""
RECORD_BYTES: int = RECORD.itemsize


def pack(header: Header) -> bytes:
    """Return a header without the times of its frames as :data:`RECORD_BYTES` bytes."""
    low, high = header.value_range or (0, 0)
    sizes, flags = header[:2], (header.grey, header.bits, header.deep_colour)
    fields = (*sizes, *flags, header.value_range is not None, low, high)
    return np.array(fields, RECORD).tobytes()


def unpack(data: bytes | memoryview, times: bytes = b"") -> Header:
    """Return the header of :func:`pack` and :func:`pack_times`."""
    height, width, grey, bits, deep, has_range, *limits = np.frombuffer(data, RECORD)[0].item()
    value_range = (limits[0], limits[1]) if has_range else None
    header = Header(height, width, grey, bits=bits, deep_colour=deep, value_range=value_range)
    return header._replace(**_unpack_times(times)) if times else header


def pack_times(header: Header) -> bytes:
    """Return the durations and the timestamps of the frames of a header; b"" without any."""
    if not header.durations_ms:
        return b""
    durations = np.asarray(header.durations_ms, "<f8")
    steps = np.diff(np.asarray(header.timestamps, "<i8"), prepend=0)  # equal ones compress well
    count = len(durations).to_bytes(4, "little")
    return zlib.compress(count + durations.tobytes() + steps.astype("<i8").tobytes())


def _unpack_times(data: bytes) -> dict[str, tuple[float, ...]]:
    content = zlib.decompress(data)
    count = int.from_bytes(content[:4], "little")
    durations = np.frombuffer(content, "<f8", count, offset=4)
    timestamps = np.frombuffer(content, "<i8", offset=4 + durations.nbytes).cumsum()
    return {"durations_ms": tuple(durations.tolist()), "timestamps": tuple(timestamps.tolist())}


@dataclass
class PackedHeaders:
    """Headers of some of the N files of a data set.

    Attributes:
        valid: ``(N,)``, true for files whose header is here.
        records: ``(N,)`` of :data:`RECORD`.
        times: :func:`pack_times` of those files that have any, by their positions.
    """

    valid: npt.NDArray[np.bool_]
    records: npt.NDArray[np.void]
    times: dict[int, bytes]

    @classmethod
    def empty(cls, count: int) -> PackedHeaders:
        """Return no header of ``count`` files."""
        return cls(np.zeros(count, bool), np.zeros(count, RECORD), {})

    def get(self, index: int) -> Header:
        """Return the header of a file, which must be here."""
        return unpack(self.records[index].tobytes(), self.times.get(index, b""))

    def put(self, index: int, header: Header) -> None:
        """Add or replace the header of a file."""
        self.records[index] = np.frombuffer(pack(header), RECORD)[0]
        self.valid[index] = True
        times = pack_times(header)
        if times:
            self.times[index] = times


def true_ranges(values: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the ranges (start, stop) of consecutive true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], values, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


class HeaderTable:
    """Headers of the files of a data set, which must be consistent with the first one.

    Args:
        files: paths for messages.
        first: header of the first file.
        any_size: accept different sizes.
        any_color: accept both grey and colour.
        any_bits: accept both 8 and 16 bits.
    """

    def __init__(
        self,
        files: Sequence[str],
        first: Header,
        *,
        any_size: bool,
        any_color: bool,
        any_bits: bool,
    ) -> None:
        self._files, self._first = files, first
        self._tolerances = {"any_size": any_size, "any_color": any_color, "any_bits": any_bits}
        self._records: npt.NDArray[np.void] | None = None

    def allocate(self) -> None:
        """Make memory for all headers, until :meth:`free`."""
        record = np.frombuffer(pack(self._first), RECORD)
        self._records = np.repeat(record, len(self._files))

    def free(self) -> None:
        """Free the memory of the headers; later ones are only checked."""
        self._records = None

    def add(self, index: int, header: Header) -> None:
        """Store the header of a file; raise ConfigError if it is inconsistent with the first."""
        first, other = (self._files[0], self._first), (self._files[index], header)
        check_consistent(first, other, **self._tolerances)
        if self._records is not None:
            self._records[index] = np.frombuffer(pack(header), RECORD)[0]

    def add_packed(self, start: int, data: npt.NDArray[np.uint8]) -> None:
        """Store the headers ``(N, RECORD_BYTES)`` of consecutive files; see :meth:`add`."""
        records = np.ascontiguousarray(data).view(RECORD)[:, 0]
        different = np.zeros(len(records), dtype=bool)
        exceptions = ("any_size", "height"), ("any_size", "width"), ("any_color", "grey")
        for tolerance, field in (*exceptions, ("any_bits", "bits")):
            if not self._tolerances[tolerance]:
                different |= records[field] != getattr(self._first, field)
        for place in np.flatnonzero(different)[:1].tolist():
            self.add(start + place, unpack(records[place].tobytes()))  # raises the error
        if self._records is not None:
            self._records[start : start + len(records)] = records

    def deep(self) -> list[int]:
        """Return the positions of 16-bit grey pictures."""
        assert self._records is not None
        return np.flatnonzero(self._records["bits"] == 16).tolist()

    def warnings(self, root: str, levels: Levels) -> tuple[str, ...]:
        """Return warnings about the bit depths and ranges of the pictures in ``root``."""
        assert self._records is not None
        records, ranged = self._records, self._records[self._records["has_range"]]
        colours = int(records["deep_colour"].sum())
        lines = depth_warnings(root, len(records), len(self.deep()), colours, levels)
        if len(ranged):
            limits = int(ranged["low"].min()), int(ranged["high"].max())
            lines += range_warnings(root, [limits], levels)
        return lines
