"""The output folder of a command, shared by its processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, cast

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ddpm.distributed.consensus import wait_for_all
from ddpm.errors import ConfigError
from ddpm.files import missing_folders
from ddpm.outputs import OutputFolder, new_folder, unwritable

T = TypeVar("T")


@contextmanager
def writing(
    accelerator: Accelerator,
    command: str,
    names: Iterable[str],
    *,
    out: str | None,
    default: Path,
    samples: Iterable[str] = (),
) -> Iterator[OutputFolder]:
    """Give each process the folder that a command writes to; without errors the record is complete.

    Each process writes below ``aside``; what lies there at the end is moved into place.

    Args:
        accelerator: of the command.
        command: see :class:`OutputFolder`.
        names: files that the command may write.
        out: the folder that the user names, or None.
        default: path of a new folder, to which a number is appended if it exists.
        samples: names of the files and folders that hold samples.

    Raises:
        ConfigError: on all processes, before anything is written: the folder cannot be written, or
            holds a file of one of ``names`` that is not the command's own.
    """
    path, made, owner = agreed(
        accelerator, lambda: _prepared(command, list(names), out, default, samples)
    )
    rank = accelerator.process_index
    folder = OutputFolder(path, command, rank=rank, owner=owner, made=made)
    try:
        with _refused(folder):
            folder.open()
        with folder.naming():
            yield folder
        folder.publish()
        wait_for_all(accelerator)
        if accelerator.is_main_process:
            folder.finish()
    finally:
        folder.close()


def check(accelerator: Accelerator, command: str, names: Iterable[str], out: str | None) -> None:
    """Raise the error of :func:`writing` where a long preparation comes before it."""
    if out is not None:
        agreed(accelerator, lambda: OutputFolder(Path(out), command).check(names))


def agreed(accelerator: Accelerator, choose: Callable[[], T]) -> T:
    """Return what the main process chooses, or raise its ConfigError, on all processes."""
    chosen: list[T | ConfigError | None] = [None]
    if accelerator.is_main_process:
        try:
            chosen = [choose()]
        except ConfigError as error:
            chosen = [error]
    (result,) = broadcast_object_list(chosen)
    if isinstance(result, ConfigError):
        raise result
    return cast(T, result)


def _prepared(
    command: str, names: Iterable[str], out: str | None, default: Path, samples: Iterable[str]
) -> tuple[Path, list[Path], int]:
    """Check and prepare the folder; returns it, the folders made for it, and its owner."""
    made: list[Path] = []
    if out is None:
        above = missing_folders(default.parent)
        path = new_folder(default.parent, default.name)
        made = [path, *above]
    else:
        path = Path(out)
    folder = OutputFolder(path, command, made=made)
    folder.check(names)
    try:
        with _refused(folder):
            folder.prepare(samples)
    except BaseException:
        folder.close()
        raise
    return path, folder.made, os.getpid()


@contextmanager
def _refused(folder: OutputFolder) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(folder.path, error) from error
