"""Console output: the logger ``ddpm`` and progress bars.

Messages up to INFO go to the output stream, NOTICE and above to the error stream, all above any
progress bar. ``logging.getLogger("ddpm").setLevel("WARNING")`` silences a notebook.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

NOTICE = 25
"""Level of messages on the error stream that are not warnings."""
logger = logging.getLogger("ddpm")


class _ConsoleHandler(logging.Handler):
    """Writes records above the bars of tqdm, to the streams of the moment.

    ``tqdm.contrib.logging`` has a handler of this kind for a single stream.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; warnings and errors begin with the name of their level."""
        try:
            stream = sys.stdout if record.levelno <= logging.INFO else sys.stderr
            level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
            line = f"{level}{self.format(record)}"
            bars = sys.modules.get("tqdm")  # short commands do without its import
            if bars is None:
                stream.write(f"{line}\n")
            else:
                bars.tqdm.write(line, file=stream)
            stream.flush()
        except Exception:
            self.handleError(record)


class _Recorder(logging.Handler):
    """Collects the messages of warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Add the message of a record."""
        self.messages.append(record.getMessage())


def _configure() -> None:
    """Give the logger its handler, unless the program has configured the logger already."""
    logging.addLevelName(NOTICE, "NOTICE")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(_ConsoleHandler())
        logger.propagate = False


_configure()


def progress(
    total: int, what: str, unit: str, *, initial: int = 0, shown: bool = True, leave: bool = True
) -> tqdm:
    """Return a progress bar on the error stream with the rate and the remaining time.

    In a terminal and in a notebook it is updated twice per second, in a log file every ten
    seconds. It appears after one second, so that short work prints nothing.

    Args:
        total: number of units.
        what: name of the work.
        unit: name of a unit.
        initial: units that were done before.
        shown: False for no bar, as on all processes but the main one.
        leave: False to remove the bar at its end.
    """
    from ddpm.bar import Bar

    terminal = sys.stderr.isatty() or "ipykernel" in sys.modules
    seconds = 0.5 if terminal else 10.0
    return Bar(
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


@contextmanager
def recording() -> Iterator[list[str]]:
    """Collect the warnings of the block, since nobody may read the error stream."""
    recorder = _Recorder()
    logger.addHandler(recorder)
    try:
        yield recorder.messages
    finally:
        logger.removeHandler(recorder)


def info(message: str) -> None:
    """Print a message on the output stream."""
    logger.info("%s", message)


def note(message: str) -> None:
    """Print a message on the error stream."""
    logger.log(NOTICE, "%s", message)


def warn(message: str) -> None:
    """Print a warning on the error stream."""
    logger.warning("%s", message)


def info_once(accelerator: Any, message: str) -> None:
    """Print a message on the output stream, on the main process only."""
    if accelerator.is_main_process:
        info(message)


def warn_once(accelerator: Any, messages: Iterable[str]) -> None:
    """Print warnings on the error stream, on the main process only."""
    for message in messages if accelerator.is_main_process else ():
        warn(message)
