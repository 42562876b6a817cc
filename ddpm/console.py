"""Progress bars that also suit a log file, and words that do not break them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

_recordings: list[list[str]] = []


def progress(
    total: int, what: str, unit: str, *, initial: int = 0, shown: bool = True, leave: bool = True
) -> tqdm:
    """A bar on the error stream with the rate and the time that is left.

    In a terminal it moves twice a second; in a file it writes a line every ten seconds. It shows
    up once a second has passed, so short work stays silent.

    Args:
        total: units in all.
        what: the work, for the bar's head.
        unit: what is counted.
        initial: units that were done before.
        shown: False on all processes but the main one.
        leave: False to remove the bar at its end.
    """
    terminal = sys.stderr.isatty()
    seconds = 0.5 if terminal else 10.0
    return tqdm(
        total=total,
        initial=initial,
        desc=what,
        unit=unit,
        disable=not shown,
        leave=leave,
        position=None if terminal else 0,  # a file has no cursor to move below another bar
        dynamic_ncols=True,
        mininterval=seconds,
        maxinterval=max(seconds, 10.0),
        delay=1.0,
        smoothing=0.05,
    )


def duration(seconds: float) -> str:
    """Return a duration in words, such as ``12 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36_000 else f"{seconds / 3600:.0f} h"


def warn(message: str) -> None:
    """Say on the error stream that something is not as it should be."""
    note(f"warning: {message}")
    for messages in _recordings:
        messages.append(message)


@contextmanager
def recording() -> Iterator[list[str]]:
    """Collect the warnings of the block: the error stream alone may have no reader."""
    messages: list[str] = []
    _recordings.append(messages)
    try:
        yield messages
    finally:
        _recordings[:] = [each for each in _recordings if each is not messages]


def note(message: str) -> None:
    """Say something on the error stream, above any bar."""
    for bar in getattr(tqdm, "_instances", ()):
        bar.delay = 0.0  # it shows up now, and has to end its line when it is closed
    tqdm.write(message, file=sys.stderr)


def echo(message: str) -> None:
    """Print a line on the output stream."""
    print(message, flush=True)


def tell(message: str) -> None:
    """Print a line on the error stream."""
    print(message, file=sys.stderr, flush=True)


def say(accelerator: Any, message: str) -> None:
    """Print a line on the output stream, once for all processes."""
    if accelerator.is_main_process:
        echo(message)


def warn_once(accelerator: Any, lines: Iterable[str]) -> None:
    """Print warnings on the error stream, once for all processes."""
    for line in lines if accelerator.is_main_process else ():
        warn(line)
