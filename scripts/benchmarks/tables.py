"""Markdown tables of the benchmark, and their places in a file."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from scripts.gpu.machine import commit


def markers(name: str) -> tuple[str, str]:
    """Return the lines around the table of a suite."""
    return f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"


def replaced(text: str, name: str, body: str) -> str:
    """Return the text of a file with ``body`` between the markers of a suite.

    Markers that the text lacks are appended.

    Raises:
        ValueError: a marker without its counterpart, or markers that occur twice.
    """
    begin, end = markers(name)
    section = f"{begin}\n{body.strip()}\n{end}"
    counts = text.count(begin), text.count(end)
    if counts == (0, 0):
        gap = "\n" if text else ""
        return f"{text}{gap}{section}\n"
    start, stop = text.find(begin), text.find(end)
    if counts != (1, 1) or stop < start:
        raise ValueError(f"expected {begin} once, followed by {end} once")
    return text[:start] + section + text[stop + len(end) :]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def provenance(threads: int, rounds: int) -> str:
    """Return the line above a table: date, versions, machine, threads and commit."""
    return (
        f"{time.strftime('%Y-%m-%d')}, torch {importlib.metadata.version('torch')}, Python "
        f"{platform.python_version()}, {processor()}, {threads} threads, {rounds} rounds, commit "
        f"{commit(7)}."
    )


def processor() -> str:
    """Return the name of the processor and the number of its cores."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        name = match[1].strip() if match else name
    return f"{name} ({os.cpu_count()} cores)"
