"""Decoded pictures, read from the disk cache where it has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpm.data.decoding import Header, Pixels
from ddpm.data.files import parallel_for
from ddpm.data.headers import RECORD_BYTES, HeaderTable, pack, true_ranges, unpack
from ddpm.data.item_file import ItemFile

_BLOCK_BYTES = 2**20  # per call of a thread


class DecodedItems:
    """Headers and pixels of the pictures of a data set.

    Args:
        decode: returns the header and the pixels of the picture at a position.
        shape: shape of the pixels of an item.
        dtype: type of the pixels.
        file: file of the disk cache that has the items, and gets those that are decoded; None =
            each item is decoded whenever it is read.
    """

    def __init__(
        self,
        decode: Callable[[int], tuple[Header, Pixels]],
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        file: ItemFile | None = None,
    ) -> None:
        self._decode, self._file = decode, file
        self._shape, self._dtype = shape, np.dtype(dtype)

    @staticmethod
    def content_bytes(shape: tuple[int, ...], dtype: npt.DTypeLike) -> int:
        """Return the size of an item in a file."""
        return RECORD_BYTES + int(np.prod(shape)) * np.dtype(dtype).itemsize

    def read(self, index: int) -> tuple[Header, Pixels]:
        """Return the header and the pixels of an item."""
        content = None if self._file is None else self._file.read(index)
        if content is not None:
            stored: Any = np.frombuffer(content[RECORD_BYTES:], self._dtype).reshape(self._shape)
            return unpack(content[:RECORD_BYTES]), stored
        header, pixels = self._decode(index)
        if self._file is not None:
            self._file.write(index, pack(header) + pixels.tobytes())
        return header, pixels

    def is_complete(self, indices: Sequence[int] | None = None) -> bool:
        """Return True if the file has all items, or those at ``indices``."""
        return self._file is not None and self._file.is_complete(indices)

    def read_all(self, count: int, headers: HeaderTable, pixels: Pixels, description: str) -> None:
        """Read items 0 to ``count - 1`` on several threads.

        Args:
            count: number of items.
            headers: receives the headers.
            pixels: receives the pixels, ``(count, *shape)``.
            description: text of the progress bar.

        Raises:
            ConfigError: a file cannot be decoded, or is inconsistent with the first one.
        """
        missing = self._read_stored(count, headers, pixels)

        def read(place: int) -> None:
            index = missing[place]
            header, values = self.read(index)
            headers.add(index, header)
            pixels[index] = values

        parallel_for(len(missing), read, description)

    def _read_stored(self, count: int, headers: HeaderTable, pixels: Pixels) -> list[int]:
        """Read the items that the file has; return the positions of the others."""
        file = self._file
        if file is None:
            return list(range(count))
        missing = np.zeros(count, dtype=bool)
        size = max(_BLOCK_BYTES // file.content_bytes, 1)

        def read(block: int) -> None:
            start, stop = block * size, min((block + 1) * size, count)
            contents, valid = file.read_block(start, stop)
            missing[start:stop] = ~valid
            for first, last in true_ranges(valid):
                headers.add_packed(start + first, contents[first:last, :RECORD_BYTES])
                values = contents[first:last, RECORD_BYTES:].view(self._dtype)
                pixels[start + first : start + last] = values.reshape(-1, *self._shape)

        parallel_for(-(-count // size), read, "reading the disk cache")
        return np.flatnonzero(missing).tolist()
