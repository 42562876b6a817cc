"""Folders of files: finding them, their classes, and visiting many of them on threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from ddpm.errors import ConfigError

_CHUNK = 16  # visits a task: less bookkeeping, still prompt errors


def find_files(root: str, suffixes: tuple[str, ...], what: str) -> list[str]:
    """Files with these suffixes, in either case, below ``root`` and relative to it.

    What is hidden (``.name``) or no regular file is left out. The order depends on names alone;
    ``what`` is what the files are called. Raises ConfigError (key ``path``) if there is no such
    folder, or no such file in it.
    """
    if not os.path.isdir(root):
        raise ConfigError("path", root, _no_folder(root, what))
    files = list(_walk(root, "", (os.path.realpath(root),), suffixes))
    if not files:
        problem = f"holds no {what} ({' '.join(suffixes)}), nor do the folders in it"
        raise ConfigError("path", root, f"{problem}; set data.path to a folder of {what}")
    return files


def _no_folder(root: str, what: str) -> str:
    """Why ``root`` is none, and what to do."""
    try:
        os.stat(root)
    except PermissionError as error:
        return f"cannot be reached ({error.strerror}); make the folders above it readable"
    except (OSError, ValueError):
        return f"no such folder; set data.path to a folder of {what}"
    return f"is a file, not a folder; set data.path to a folder of {what}"


def _walk(
    root: str, below: str, above: tuple[str, ...], suffixes: tuple[str, ...]
) -> Iterator[str]:
    """Files in ``root/below`` and deeper; links to a folder ``above`` are not followed again."""
    folder = os.path.join(root, below) if below else root
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        os.stat(os.path.join(folder, "."))  # one may list a folder that one may not enter
    except OSError as error:
        problem = f"cannot be listed ({error.strerror}); make it readable or move it away"
        raise ConfigError("path", folder, problem) from error
    for entry in entries:
        relative = os.path.join(below, entry.name)
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry.path):
            real = os.path.realpath(entry.path)
            if real not in above:
                yield from _walk(root, relative, (*above, real), suffixes)
        elif entry.name.lower().endswith(suffixes) and os.path.isfile(entry.path):
            yield relative


def folder_classes(files: list[str]) -> tuple[list[int], list[str]]:
    """The label of each file, which is the first folder in its path, and the classes' names.

    Raises ConfigError (key ``class_cond``) for a file in no folder.
    """
    names = [os.path.dirname(file).split(os.sep)[0] for file in files]
    if "" in names:
        problem = f"{files[names.index('')]} is in no class folder; put it into one, named after"
        raise ConfigError("class_cond", True, f"{problem} its class, or set data.class_cond=false")
    classes = sorted(set(names))
    numbers = {name: number for number, name in enumerate(classes)}
    return [numbers[name] for name in names], classes


def visit_all(count: int, visit: Callable[[int], None], what: str) -> None:
    """Visit 0 to ``count - 1`` on a few threads, with a progress bar; raises the first error."""
    from tqdm import tqdm

    def visit_chunk(start: int) -> int:
        chunk = range(start, min(start + _CHUNK, count))
        for index in chunk:
            visit(index)
        return len(chunk)

    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, 16))
    bar = tqdm(
        total=count, desc=what, delay=1, mininterval=0.5, leave=False, file=sys.stderr
    )  # fmt: skip
    try:
        for done in pool.map(visit_chunk, range(0, count, _CHUNK)):
            bar.update(done)
    finally:
        bar.close()
        pool.shutdown(cancel_futures=True)
