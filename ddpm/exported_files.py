"""Files that ``ddpm-export`` writes: into a folder, or a file beside others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddpm.errors import require
from ddpm.interop.files import write as write_file
from ddpm.outputs import OutputFolder, unwritable


def write(target: Path, contents: Mapping[str, bytes | Mapping[str, Any]], folder: bool) -> None:
    """Write files to the folder of ``target``, or to ``target`` itself if it is a folder.

    The last file, without which the others are not used, is moved into place after the others.

    Raises:
        ConfigError: the folder cannot be written, or has such a file that is not an export.
    """
    with _opened(target, list(contents), folder) as output:
        last = list(contents)[-1]
        for name, content in contents.items():
            if folder and name == last:
                (output.path / last).unlink(missing_ok=True)  # of an earlier export
                output.publish()
            (output.aside / name).parent.mkdir(parents=True, exist_ok=True)
            write_file(output.aside / name, content)


def output_folder(target: Path, folder: bool) -> OutputFolder:
    """Return the folder to write to; raise ConfigError if the target is of the other kind."""
    if folder:
        problem = "is a file; set out= to the name of a folder"
        require(not target.exists() or target.is_dir(), "out", str(target), problem)
    else:
        problem = "is a folder; set out= to the name of a file"
        require(not target.is_dir(), "out", str(target), problem)
    return OutputFolder(target if folder else target.parent, "export", shown=str(target))


@contextmanager
def _opened(target: Path, names: list[str], folder: bool) -> Iterator[OutputFolder]:
    """Yield an output folder, whose files are moved into place at the end.

    Raises:
        ConfigError: the folder cannot be written, or has such a file that is not an export.
    """
    output = output_folder(target, folder)
    try:
        with output.naming():
            output.check(names)
            output.prepare()
            output.open()
            yield output
            output.publish()
            output.finish(keep=True)
    except OSError as error:
        raise unwritable(target, error) from error
    finally:
        output.close()
