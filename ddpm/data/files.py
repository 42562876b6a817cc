"""Folders of files: finding them, their classes, and visiting many of them on threads."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ddpm.data.samples import pictures_of_several
from ddpm.errors import ConfigError
from ddpm.outputs import RECORD

_CHUNK = 16  # visits a task: less bookkeeping, still prompt errors
_MAX_KINDS = 8  # of skipped files that are listed
_OF_THE_SYSTEM = ("desktop.ini", "thumbs.db", "ehthumbs.db")  # nobody put them there
_VIDEOS = (".gif", ".mp4", ".webm", ".mov")
_PARTS = ("train", "training", "val", "valid", "validation", "test", "testing")
"""Names of folders that are parts of a data set, the one to train on first."""


@dataclass(frozen=True)
class Listing:
    """Files below a folder.

    Attributes:
        root: the folder.
        files: those with the requested suffixes, relative to ``root``; the order depends on names
            alone.
        suffixes: the requested ones.
        what: what these files are called.
        skipped: the number of other files per suffix.
    """

    root: str
    files: list[str]
    suffixes: tuple[str, ...]
    what: str
    skipped: Counter[str]

    @property
    def warnings(self) -> tuple[str, ...]:
        """A line that counts the skipped files by suffix, unless there are none."""
        if not self.skipped:
            return ()
        read = f"{self.what} are read from {' '.join(self.suffixes)}"
        return (f"{self.root}: skipped {self._counts}; {read}",)

    @property
    def _counts(self) -> str:
        ranked = sorted(self.skipped.items(), key=lambda item: (-item[1], item[0]))
        counts = [
            f"{count} {kind}{' (data=video reads them)' if kind in _VIDEOS else ''}"
            for kind, count in ranked[:_MAX_KINDS]
        ]
        rest = sum(count for _, count in ranked[_MAX_KINDS:])
        return ", ".join(counts + ([f"{rest} of other kinds"] if rest else []))

    def refuse_empty(self) -> None:
        """Raise ConfigError (key ``path``) unless there are files; it counts the skipped ones."""
        if self.files:
            return
        problem = f"holds no {self.what} ({' '.join(self.suffixes)}), nor do the folders in it"
        if self.skipped:
            problem += f"; skipped {self._counts}"
        raise ConfigError("path", self.root, problem, f"set {{path}} to a folder of {self.what}")


def find_files(root: str, suffixes: tuple[str, ...], what: str) -> Listing:
    """List the files with these suffixes, in either case, below ``root``.

    Hidden files (``.name``) and those that operating systems leave behind are ignored; other files
    are counted as skipped, except the grids beside samples of ours. ``what`` is what the files are
    called. Raises ConfigError (key ``path``) if there is no such folder, or no such file in it.
    """
    if not os.path.isdir(root):
        problem, remedy = _no_folder(root, what)
        raise ConfigError("path", root, problem, remedy)
    skipped: Counter[str] = Counter()
    files = list(_walk(root, "", (os.path.realpath(root),), suffixes, skipped))
    listing = Listing(root, files, suffixes, what, skipped)
    listing.refuse_empty()
    return listing


def _no_folder(root: str, what: str) -> tuple[str, str]:
    """Why ``root`` is not a folder, and what to do."""
    remedy = f"set {{path}} to a folder of {what}"
    try:
        os.stat(root)
    except PermissionError as error:
        problem = f"cannot be reached ({error.strerror})"
        return problem, "make the folders above it readable"
    except (OSError, ValueError):
        return "no such folder", remedy
    return "is a file, not a folder", remedy


def _kind(entry: os.DirEntry[str]) -> str:
    """What a skipped file is counted as: its suffix, or the lack of one."""
    if not os.path.isfile(entry.path):
        return "unreadable (broken link, pipe or device)"
    suffix = os.path.splitext(entry.name)[1].lower()
    return suffix if re.fullmatch(r"\.[a-z0-9_+-]{1,12}", suffix) else "without suffix"


def _walk(
    root: str,
    below: str,
    above: tuple[str, ...],
    suffixes: tuple[str, ...],
    skipped: Counter[str],
) -> Iterator[str]:
    """Files in ``root/below`` and deeper; links to a folder ``above`` are not followed again."""
    folder = os.path.join(root, below) if below else root
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        os.stat(os.path.join(folder, "."))  # one may list a folder that one may not enter
    except OSError as error:
        problem = f"cannot be listed ({error.strerror}); make it readable or move it away"
        raise ConfigError("path", folder, problem) from error
    beside: frozenset[str] = frozenset()
    if any(entry.name == RECORD for entry in entries):
        beside = pictures_of_several(folder, suffixes)
    for entry in entries:
        relative = os.path.join(below, entry.name)
        if entry.name.startswith(".") or entry.name in beside:
            continue
        if os.path.isdir(entry.path):
            real = os.path.realpath(entry.path)
            if real not in above:
                yield from _walk(root, relative, (*above, real), suffixes, skipped)
        elif entry.name.lower().endswith(suffixes) and os.path.isfile(entry.path):
            yield relative
        elif entry.name.lower() not in _OF_THE_SYSTEM:
            skipped[_kind(entry)] += 1


def folder_classes(files: list[str], root: str) -> tuple[list[int], list[str], tuple[str, ...]]:
    """Return the label of each file below ``root``, the classes' names, and warnings.

    The class is the first folder in the path. Folders named as the parts of a data set (train, val,
    test) are refused as classes where they are at least two, or half of all: a single one among
    others may well be a class, such as the train among vehicles, and is worth a warning.

    Raises ConfigError (key ``class_cond``), also for a file that is not in a folder.
    """
    names = [os.path.dirname(file).split(os.sep)[0] for file in files]
    if "" in names:
        problem = f"{files[names.index('')]} is in no class folder"
        remedy = "put it into one, named after its class, or set {class_cond}=false"
        raise ConfigError("class_cond", True, problem, remedy)
    classes = sorted(set(names))
    parts = [name for name in classes if name.lower() in _PARTS]
    if len(parts) > 1 or 2 * len(parts) >= len(classes):
        _refuse_parts(sorted(parts, key=_rank), files, root)
    numbers = {name: number for number, name in enumerate(classes)}
    warnings = tuple(
        f"the folder {os.path.join(root, name)} is one class of {len(classes)}; if it is a part of "
        "the data set instead, move it elsewhere"
        for name in parts
    )
    return [numbers[name] for name in names], classes, warnings


def _rank(part: str) -> int:
    return _PARTS.index(part.lower())


def _refuse_parts(parts: list[str], files: list[str], root: str) -> None:
    """Raise ConfigError for class folders that are ``parts`` of a data set, if there are any."""
    if not parts:
        return
    first = parts[0]
    below = [file for file in files if file.split(os.sep)[0] == first]
    flat = any(file.count(os.sep) == 1 for file in below)  # no class folders in there
    problem = f"{', '.join(parts)} in {root} are parts of a data set, not classes"
    if len(parts) == 1:
        problem = f"{first} in {root} is a part of a data set, not a class"
    chosen = f"set {{path}}={os.path.join(root, first).replace('{', '{{').replace('}', '}}')}"
    remedy = f"{chosen} and {{class_cond}}=false" if flat else chosen
    raise ConfigError("class_cond", True, problem, remedy)


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
