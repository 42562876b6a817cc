"""Headers of many picture files in one array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ddpm.data.decoding import Header, check_consistent
from ddpm.data.depth import Levels, depth_warnings, range_warnings

_RECORD = np.dtype(
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
RECORD_BYTES: int = _RECORD.itemsize


def pack(header: Header) -> bytes:
    """Return the header of a picture as :data:`RECORD_BYTES` bytes."""
    low, high = header.value_range or (0, 0)
    sizes, flags = header[:2], (header.grey, header.bits, header.deep_colour)
    fields = (*sizes, *flags, header.value_range is not None, low, high)
    return np.array(fields, _RECORD).tobytes()


def unpack(data: bytes | memoryview) -> Header:
    """Return the header of :func:`pack`."""
    height, width, grey, bits, deep, has_range, *limits = np.frombuffer(data, _RECORD)[0].item()
    value_range = (limits[0], limits[1]) if has_range else None
    return Header(height, width, grey, bits=bits, deep_colour=deep, value_range=value_range)


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
        record = np.frombuffer(pack(self._first), _RECORD)
        self._records = np.repeat(record, len(self._files))

    def free(self) -> None:
        """Free the memory of the headers; later ones are only checked."""
        self._records = None

    def add(self, index: int, header: Header) -> None:
        """Store the header of a file; raise ConfigError if it is inconsistent with the first."""
        first, other = (self._files[0], self._first), (self._files[index], header)
        check_consistent(first, other, **self._tolerances)
        if self._records is not None:
            self._records[index] = np.frombuffer(pack(header), _RECORD)[0]

    def add_packed(self, start: int, data: npt.NDArray[np.uint8]) -> None:
        """Store the headers ``(N, RECORD_BYTES)`` of consecutive files; see :meth:`add`."""
        records = np.ascontiguousarray(data).view(_RECORD)[:, 0]
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
