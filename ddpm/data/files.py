"""Folders of files: listing them, their classes, and processing them on threads."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ddpm.console import progress
from ddpm.data.samples import overview_pictures
from ddpm.errors import ConfigError
from ddpm.outputs import RECORD

_CHUNK = 16  # calls per task: little overhead, and early errors
_MAX_KINDS = 8  # of skipped files in a message
_SYSTEM_FILES = ("desktop.ini", "thumbs.db", "ehthumbs.db")  # created by Windows
_VIDEOS = (".gif", ".mp4", ".webm", ".mov")
_SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test", "testing")
"""Folder names of the splits of a data set; the preferred one for training is first."""


@dataclass(frozen=True)
class Listing:
    """Files below a folder.

    Attributes:
        root: path of the folder.
        files: files with the requested suffixes, relative to ``root``, in an order that depends
            only on their names.
        suffixes: requested suffixes.
        what: term for these files, for messages.
        skipped: number of other files per suffix.
    """

    root: str
    files: list[str]
    suffixes: tuple[str, ...]
    what: str
    skipped: Counter[str]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warning that counts the skipped files by suffix, if any."""
        if not self.skipped:
            return ()
        formats = f"{self.what} are read from {' '.join(self.suffixes)}"
        return (f"{self.root}: skipped {self._counts}; {formats}",)

    @property
    def _counts(self) -> str:
        ranked = sorted(self.skipped.items(), key=lambda item: (-item[1], item[0]))
        counts = [
            f"{count} {kind}{' (data=video reads them)' if kind in _VIDEOS else ''}"
            for kind, count in ranked[:_MAX_KINDS]
        ]
        rest = sum(count for _, count in ranked[_MAX_KINDS:])
        return ", ".join(counts + ([f"{rest} of other kinds"] if rest else []))

    def check_not_empty(self) -> None:
        """Raise ConfigError (key ``path``) without files; the message counts skipped ones."""
        if self.files:
            return
        problem = f"contains no {self.what} ({' '.join(self.suffixes)}) at any depth"
        if self.skipped:
            problem += f"; skipped {self._counts}"
        raise ConfigError("path", self.root, problem, f"set {{path}} to a folder of {self.what}")


def find_files(root: str, suffixes: tuple[str, ...], what: str) -> Listing:
    """List the files with certain suffixes below ``root``.

    Hidden files (``.name``), files of operating systems, and the grids that our commands write
    beside samples are ignored; other files are counted as skipped.

    Args:
        root: path of the folder.
        suffixes: in lower case, with the dot; upper case matches too.
        what: term for the files, for messages.

    Raises:
        ConfigError: (key ``path``) the folder is not found, or contains no such file.
    """
    if not os.path.isdir(root):
        problem, remedy = _no_folder(root, what)
        raise ConfigError("path", root, problem, remedy)
    skipped: Counter[str] = Counter()
    files = list(_walk(root, "", (os.path.realpath(root),), suffixes, skipped))
    listing = Listing(root, files, suffixes, what, skipped)
    listing.check_not_empty()
    return listing


def _no_folder(root: str, what: str) -> tuple[str, str]:
    """Return the reason why ``root`` is not a folder, and a remedy."""
    remedy = f"set {{path}} to a folder of {what}"
    try:
        os.stat(root)
    except PermissionError as error:
        problem = f"cannot be reached ({error.strerror})"
        return problem, "make the folders above it readable"
    except NotADirectoryError:
        file = next(each for each in (Path(root), *Path(root).parents) if each.exists())
        return f"{file} is a file, not a folder", remedy
    except (OSError, ValueError):
        return "no such folder", remedy
    return "is a file, not a folder", remedy


def _kind(entry: os.DirEntry[str]) -> str:
    """Return the category by which a skipped file is counted, such as its suffix."""
    if not os.path.isfile(entry.path):
        return "unreadable (broken link, pipe or device)"
    suffix = os.path.splitext(entry.name)[1].lower()
    return suffix if re.fullmatch(r"\.[a-z0-9_+-]{1,12}", suffix) else "without suffix"


def _holds(test: Callable[[], bool]) -> bool:
    """Return a property of an entry, which needs no system call unless the entry is a link."""
    try:
        return test()
    except OSError:  # such as a link to itself
        return False


def _walk(
    root: str,
    below: str,
    above: tuple[str, ...],
    suffixes: tuple[str, ...],
    skipped: Counter[str],
) -> Iterator[str]:
    """Yield the files below ``root/below``; links to a folder in ``above`` are not followed."""
    folder = os.path.join(root, below) if below else root
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        os.stat(os.path.join(folder, "."))  # a folder may be readable, but not searchable
    except OSError as error:
        problem = f"cannot be listed ({error.strerror}); make it readable or move it away"
        raise ConfigError("path", folder, problem) from error
    overviews: frozenset[str] = frozenset()
    if any(entry.name == RECORD for entry in entries):
        overviews = overview_pictures(folder, suffixes)
    for entry in entries:
        relative = os.path.join(below, entry.name)
        if entry.name.startswith(".") or entry.name in overviews:
            continue
        if _holds(entry.is_dir):
            real = os.path.realpath(entry.path)
            if real not in above:
                yield from _walk(root, relative, (*above, real), suffixes, skipped)
        elif entry.name.lower().endswith(suffixes) and _holds(entry.is_file):
            yield relative
        elif entry.name.lower() not in _SYSTEM_FILES:
            skipped[_kind(entry)] += 1


def folder_classes(files: list[str], root: str) -> tuple[list[int], list[str], tuple[str, ...]]:
    """Return the label of each file, the class names, and warnings.

    The class is the first folder in the path. Names of splits (train, val, test) are rejected as
    classes if they are at least two, or half of all folders. A single one among others may be a
    class, such as the train among vehicles; it causes a warning.

    Args:
        files: paths relative to ``root``.
        root: path of the data, for messages.

    Raises:
        ConfigError: (key ``class_cond``) a file is not in a folder, or folders are splits.
    """
    names = [os.path.dirname(file).split(os.sep)[0] for file in files]
    if "" in names:
        problem = f"{files[names.index('')]} is not in a class folder"
        remedy = "move it to a folder named after its class, or set {class_cond}=false"
        raise ConfigError("class_cond", True, problem, remedy)
    classes = sorted(set(names))
    splits = [name for name in classes if name.lower() in _SPLIT_NAMES]
    if len(splits) > 1 or 2 * len(splits) >= len(classes):
        _reject_split_names(sorted(splits, key=_rank), files, root)
    numbers = {name: number for number, name in enumerate(classes)}
    warnings = tuple(
        f"the folder {os.path.join(root, name)} is one class of {len(classes)}; if it is a split "
        "of the data set instead, move it elsewhere"
        for name in splits
    )
    return [numbers[name] for name in names], classes, warnings


def _rank(split: str) -> int:
    return _SPLIT_NAMES.index(split.lower())


def _reject_split_names(splits: list[str], files: list[str], root: str) -> None:
    """Raise ConfigError for class folders that are splits of a data set, if any."""
    if not splits:
        return
    first = splits[0]
    below = [file for file in files if file.split(os.sep)[0] == first]
    flat = any(file.count(os.sep) == 1 for file in below)  # without class folders
    problem = f"{', '.join(splits)} in {root} are splits of a data set, not classes"
    if len(splits) == 1:
        problem = f"{first} in {root} is a split of a data set, not a class"
    choice = f"set {{path}}={os.path.join(root, first).replace('{', '{{').replace('}', '}}')}"
    remedy = f"{choice} and {{class_cond}}=false" if flat else choice
    raise ConfigError("class_cond", True, problem, remedy)


def parallel_for(count: int, function: Callable[[int], None], description: str) -> None:
    """Call ``function`` with 0 to ``count - 1`` on several threads; raise the first error.

    Args:
        count: number of calls.
        function: called with an index.
        description: text of the progress bar.
    """

    def run_chunk(start: int) -> int:
        chunk = range(start, min(start + _CHUNK, count))
        for index in chunk:
            function(index)
        return len(chunk)

    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, 16))
    bar = progress(count, description, "it", leave=False)
    try:
        for done in pool.map(run_chunk, range(0, count, _CHUNK)):
            bar.update(done)
    finally:
        bar.close()
        pool.shutdown(cancel_futures=True)
