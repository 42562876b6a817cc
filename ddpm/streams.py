"""Output streams that ignore write errors, so that a command continues without its output.

A reader that has quit, a closed terminal, a full disk below a redirected log, a closed descriptor
and a character that the encoding lacks must not end hours of work. Text that
cannot be written is dropped; all results of a command are in its files. Texts of plots have the
same characters, which fonts reject.
"""

from __future__ import annotations

import io
import os
import re
import select
import sys
from contextlib import suppress
from typing import Any, TextIO


def protect() -> None:
    """Make ``sys.stdout`` and ``sys.stderr`` ignore write errors, in this process from now on.

    Streams that replace Python's own, such as those of a notebook, are left unchanged.
    Closed standard descriptors are pointed to the null device: otherwise the next
    file that is opened would get their number, and receive the output of libraries.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _protected(sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _protected(sys.stderr)


def _protected(stream: TextIO | None) -> TextIO:
    """Return a stream to the same descriptor, or to the null device if it was closed."""
    if not isinstance(stream, io.TextIOWrapper) or stream.closed:
        return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")
    with suppress(OSError):
        stream.flush()
    raw = _Descriptor(stream.fileno())
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),  # type: ignore[arg-type]
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Descriptor(io.RawIOBase):
    """A file descriptor that accepts all data, whether it can be written or not."""

    def __init__(self, number: int) -> None:
        self._number = number

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: Any, /) -> int:
        """Write the data, and drop the part that cannot be written."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        with suppress(OSError):
            while rest:
                try:
                    rest = rest[os.write(self._number, rest) :]
                except BlockingIOError:  # as a blocking descriptor would
                    select.select((), (self._number,), ())
        return size


def plot_text(text: str) -> str:
    """Return text that matplotlib draws as it is, not as a formula.

    Surrogates, which stand for bytes of file names that cannot be decoded, become U+FFFD: fonts
    reject them.
    """
    return re.sub("[\ud800-\udfff]", "\ufffd", text).replace("$", r"\$")
