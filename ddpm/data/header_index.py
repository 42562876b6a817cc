"""Headers of the files of a data set, of which those that the disk cache has are not opened."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from threading import Lock

import numpy as np

from ddpm.data.decoding import Header
from ddpm.data.depth import MAX_RANGE_SAMPLES, Levels
from ddpm.data.files import parallel_for
from ddpm.data.header_file import HeaderFile
from ddpm.data.headers import RECORD_BYTES, HeaderTable, PackedHeaders, true_ranges

_SAVE_SECONDS = 30.0  # a kill costs this time of reading


class HeaderIndex:
    """Headers of the files of a data set, read when they are needed.

    Args:
        root: path of the folder.
        files: paths relative to ``root``.
        read: returns the header of the file at a path.
        file: file of the disk cache that has headers, and gets those that are read; None = each
            header is read from its file.
    """

    def __init__(
        self,
        root: str,
        files: Sequence[str],
        read: Callable[[str], Header],
        file: HeaderFile | None = None,
    ) -> None:
        self._root, self._files, self._read, self._file = root, files, read, file
        self._headers = PackedHeaders.empty(len(files)) if file is None else file.headers
        self._lock, self._changed, self._saved_at = Lock(), False, time.monotonic()

    def read(self, index: int) -> Header:
        """Return the header of a file; raise ConfigError if it cannot be read."""
        if self._headers.valid[index]:
            return self._headers.get(index)
        header = self._read(self._path(index))
        self._put(index, header)
        return header

    def read_all(self, table: HeaderTable, description: str) -> None:
        """Read the headers of all files into a table, those that are not stored on several threads.

        Args:
            table: receives the headers.
            description: text of the progress bar.

        Raises:
            ConfigError: a file cannot be read, or is inconsistent with the first one.
        """
        packed = self._headers.records.view(np.uint8).reshape(-1, RECORD_BYTES)
        for start, stop in true_ranges(self._headers.valid):
            table.add_packed(start, packed[start:stop])
        missing = np.flatnonzero(~self._headers.valid).tolist()

        def read(place: int) -> None:
            table.add(missing[place], self.read(missing[place]))

        try:
            parallel_for(len(missing), read, description)
        finally:
            self._save()

    def measure_ranges(
        self, table: HeaderTable, levels: Levels, decode: Callable[[int], Header]
    ) -> None:
        """Measure the ranges of values of some of the 16-bit pictures.

        Args:
            table: headers of all files; it receives the ranges.
            levels: levels of the data.
            decode: returns the header of the picture at a position, with the range of its values.

        Raises:
            ConfigError: (key ``low`` or ``high``) values outside the levels.
        """
        deep = table.deep()
        for index in deep[:: -(-len(deep) // MAX_RANGE_SAMPLES) or 1]:
            header = self.read(index)
            if header.value_range is None:
                header = decode(index)
                self._put(index, header)
            else:
                levels.measure(np.array(header.value_range), self._path(index))
            table.add(index, header)
        self._save()

    def _path(self, index: int) -> str:
        return os.path.join(self._root, self._files[index])

    def _put(self, index: int, header: Header) -> None:
        with self._lock:
            self._headers.put(index, header)
            self._changed = True
            if time.monotonic() - self._saved_at > _SAVE_SECONDS:
                self._save()

    def _save(self) -> None:
        if self._file is not None and self._changed:
            self._file.save(self._headers)
            self._changed, self._saved_at = False, time.monotonic()
