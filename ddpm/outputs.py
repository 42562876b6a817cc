"""Output folders with a record of the files that each command wrote.

The record, ``.ddpm-files.json``, lists the files of each command by name and sha256. A file is
replaced or removed only if it is listed and still has that content; everything else in the folder
belongs to the user. A hash, unlike a date, survives copying the folder.

Files are written to a hidden folder inside the output folder and moved into place. Their hashes are
appended to a journal before the move, so that after a crash every file is in the record, a journal
or the hidden folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

import psutil

from ddpm.errors import ConfigError
from ddpm.files import UNREADABLE, file_sha256, missing_folders, replacing

RECORD = ".ddpm-files.json"
JOB_RECORD = "job.json"  # overrides and result of a job of a sweep, in its folder
_FORMAT = 1
_JOURNAL = ".ddpm-files-"
_ASIDE = ".ddpm-part-"


@dataclass
class Written:
    """Files that one command wrote to a folder.

    Attributes:
        files: name relative to the folder, with ``/``, to the sha256 sums that it may have: two
            where the command was interrupted while it replaced the file.
        samples: names of the files, or of the folders of files, that hold samples, best first.
        complete: False if the command was interrupted.
    """

    files: dict[str, list[str]] = field(default_factory=dict)
    samples: list[str] = field(default_factory=list)
    complete: bool = True

    def owns(self, folder: Path, name: str) -> bool:
        """Return True if the file of that name has the content that the command wrote."""
        path, sums = folder / name, self.files.get(name)
        if sums is None or path.is_symlink() or not path.is_file():
            return False
        try:
            return file_sha256(path) in sums
        except OSError:
            return False


def read_record(folder: Path) -> dict[str, Written]:
    """Return the files that each command wrote to ``folder``; empty without a readable record."""
    result: dict[str, Written] = {}
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if content["format"] == _FORMAT:
            for command, entry in content["commands"].items():
                files = {
                    _inside(name): list(map(str, sums)) for name, sums in entry["files"].items()
                }
                samples = [_inside(name) for name in entry["samples"]]
                result[command] = Written(files, samples, bool(entry["complete"]))
    except UNREADABLE:
        result = {}
    for journal in sorted(folder.glob(f"{_JOURNAL}*.jsonl")):
        _add_journal(journal, result)
    return result


def _inside(name: str) -> str:
    """Return ``name`` if it stays inside the folder; raises ValueError."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{name} is outside of the folder")
    return name


def _add_journal(journal: Path, result: dict[str, Written]) -> None:
    with suppress(OSError, UnicodeDecodeError):
        for line in journal.read_text(encoding="utf-8").splitlines():
            with suppress(*UNREADABLE):  # a line that a crash cut short was followed by no move
                command, name, sha256 = map(str, json.loads(line))
                sums = result.setdefault(command, Written()).files.setdefault(_inside(name), [])
                if sha256 not in sums:
                    sums.append(sha256)


class OutputFolder:
    """The folder that a command writes to, seen from one of its processes.

    ``check`` and ``prepare`` run on the main process, then ``open`` on each process. Write files
    below ``aside`` and move them into the folder with ``publish``, as often as needed. ``finish``
    runs on the main process when all processes have published, ``close`` on each process in any
    case.

    Args:
        path: the folder.
        command: the name under which the record lists the files: ``sample``.
        rank: index of this process.
        owner: id of the main process; None for this one.
        made: folders that were made for the output, innermost first; removed again if they stay
            empty.
        shown: value of the option ``out``, if it is not the folder.
    """

    def __init__(
        self,
        path: Path,
        command: str,
        *,
        rank: int = 0,
        owner: int | None = None,
        made: Iterable[Path] = (),
        shown: str | None = None,
    ) -> None:
        self.path, self.command, self.made = path, command, list(made)
        self._shown = str(path) if shown is None else shown
        owner = os.getpid() if owner is None else owner
        self.aside = path / f"{_ASIDE}{owner}-{rank}"
        self._main = rank == 0
        self._journals = f"{_JOURNAL}{owner}-"
        self._journal = path / f"{self._journals}{rank}.jsonl"
        self._own = Written()

    def check(self, names: Iterable[str]) -> None:
        """Raise ConfigError if the command may not write one of ``names``; changes nothing."""
        record = read_record(self.path)
        own = record.get(self.command, Written())
        self._reject(own, record, [self._in_the_way(own, name) for name in dict.fromkeys(names)])

    def _in_the_way(self, own: Written, name: str) -> str | None:
        """Return the name of what the command may not replace by a file ``name``, or None."""
        for parent in list(PurePosixPath(name).parents)[:-1]:
            if os.path.lexists(self.path / parent) and not (self.path / parent).is_dir():
                return str(parent)
        taken = os.path.lexists(self.path / name) and not own.owns(self.path, name)
        return name if taken else None

    def _reject(
        self, own: Written, record: Mapping[str, Written], conflicts: Iterable[str | None]
    ) -> None:
        names = list(dict.fromkeys(name for name in conflicts if name is not None))
        if not names:
            return
        one = len(names) == 1
        were, them = (" was", "it") if one else (f" and {len(names) - 1} more were", "them")
        others = [each for each, written in record.items() if names[0] in written.files]
        if names[0] in own.files:
            reason = f"changed since ddpm-{self.command} wrote {them}"
        elif others:
            reason = f"written by ddpm-{others[0]}"
        else:
            reason = f"not written by ddpm-{self.command}"
        remedy = f"choose another place with out=, or move {them} away"
        problem = f"{self.path / names[0]}{were} {reason}"
        raise ConfigError("out", self._shown, problem, remedy)

    def prepare(self, samples: Iterable[str] = ()) -> None:
        """Create the folder, delete files of crashed commands, and record the start of the command.

        Args:
            samples: see :class:`Written`.

        Raises:
            OSError: the folder cannot be written.
        """
        self.made = self.made or missing_folders(self.path)
        self.aside.mkdir(parents=True, exist_ok=True)
        for left in self.path.glob(f"{_ASIDE}*"):
            if left != self.aside and not _is_alive(left):
                shutil.rmtree(left, ignore_errors=True)
        with _locked(self.path):
            record = read_record(self.path)
            own = record.setdefault(self.command, Written())
            own.samples, own.complete = list(samples), False
            self._write(record)

    def _write(self, record: Mapping[str, Written]) -> None:
        """Write the record, and delete the journals that no process writes any more."""
        commands = {command: asdict(written) for command, written in record.items()}
        with replacing(self.path / RECORD) as aside:
            aside.write_text(json.dumps({"format": _FORMAT, "commands": commands}), "utf-8")
        for journal in self.path.glob(f"{_JOURNAL}*.jsonl"):
            if journal.name.startswith(self._journals) or not _is_alive(journal):
                journal.unlink(missing_ok=True)

    def open(self) -> None:
        """Create the folder ``aside`` of this process; raises OSError if it cannot be written."""
        self.aside.mkdir(parents=True, exist_ok=True)
        self._own = read_record(self.path).get(self.command, Written())

    def free_name(self, name: str) -> str:
        """Return ``name``, or the first of ``name-2``, ``name-3``, ... that may be written."""
        free, number = name, 1
        while self._in_the_way(self._own, free) is not None:
            number += 1
            free = f"{PurePosixPath(name).stem}-{number}{PurePosixPath(name).suffix}"
        return free

    def adopt(self, name: str) -> bool:
        """Treat an existing file as written by the command; returns True."""
        with suppress(OSError):
            self._own.files.setdefault(name, []).append(file_sha256(self.path / name))
        return True

    def publish(self) -> None:
        """Move all files below ``aside`` into the folder.

        Raises:
            ConfigError: a file of the user, which appeared after ``check``, would be replaced.
        """
        files = sorted(path for path in self.aside.rglob("*") if path.is_file())
        names = {path: path.relative_to(self.aside).as_posix() for path in files}
        self._reject(self._own, {}, [self._in_the_way(self._own, name) for name in names.values()])
        lines = []
        for path, name in names.items():
            sha256 = file_sha256(path)
            self._own.files.setdefault(name, []).append(sha256)
            lines.append(json.dumps([self.command, name, sha256]) + "\n")
        with self._journal.open("a", encoding="utf-8") as journal:
            journal.writelines(lines)
        for path, name in names.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, self.path / name)

    def finish(self, *, keep: bool = False) -> None:
        """Delete files of earlier calls that were not replaced, and complete the record.

        Args:
            keep: leave the other files of the command in the folder and in the record.
        """
        new: dict[str, Written] = {}
        for journal in sorted(self.path.glob(f"{self._journals}*.jsonl")):
            _add_journal(journal, new)
        with _locked(self.path):
            self._complete(new.get(self.command, Written()).files, keep)

    def _complete(self, written: Mapping[str, list[str]], keep: bool) -> None:
        record = read_record(self.path)
        own = record.setdefault(self.command, Written())
        stale = [] if keep else [name for name in own.files if name not in written]
        for name in stale:
            if own.owns(self.path, name):
                (self.path / name).unlink(missing_ok=True)
        for folder in {(self.path / name).parent for name in stale} - {self.path}:
            with suppress(OSError):  # it holds other files
                folder.rmdir()
        own.files = {name: sums for name, sums in own.files.items() if name not in stale}
        own.files |= {name: sums[-1:] for name, sums in written.items()}
        own.complete = True
        self._write(record)

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Replace paths below ``aside`` by their final places in errors of the block."""
        try:
            yield
        except ConfigError as error:
            written = Path(str(error.value))
            if error.key not in ("path", "out") or not written.is_relative_to(self.aside):
                raise
            place = self.path / written.relative_to(self.aside)
            raise error.renamed("out", str(place)) from error

    def has_files(self) -> bool:
        """Return True if the folder holds a file that is in the record."""
        names = (name for each in read_record(self.path).values() for name in each.files)
        return any(os.path.lexists(self.path / name) for name in names)

    def close(self) -> None:
        """Delete ``aside``, and the record and new folders if no file was written."""
        shutil.rmtree(self.aside, ignore_errors=True)
        with suppress(OSError):
            if self._main and not self.has_files():
                for path in (RECORD, f"{self._journals}*.jsonl"):
                    for left in self.path.glob(path):
                        left.unlink(missing_ok=True)
            for folder in self.made:
                folder.rmdir()  # fails where it is not empty


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the record of a folder, on file systems with locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_alive(path: Path) -> bool:
    """Return True if the process of a folder ``aside`` or a journal is running on this machine."""
    number = path.name.removeprefix(_ASIDE).removeprefix(_JOURNAL).partition("-")[0]
    if not number.isdecimal() or int(number) == os.getpid():
        return False
    try:
        return psutil.pid_exists(int(number))
    except OverflowError:
        return False


def unwritable(folder: Path, error: OSError) -> ConfigError:
    """Return the error of an output folder that cannot be written."""
    problem = f"cannot be written ({error.strerror})"
    return ConfigError("out", str(folder), problem, "choose another folder with out=")


def new_folder(parent: Path, name: str) -> Path:
    """Create the folder ``name``, or the first free one of ``name-2``, ``name-3``, ...

    Raises:
        ConfigError: the parent folder cannot be written.
    """
    folder, number = parent / name, 1
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                folder.mkdir()
                return folder
            except FileExistsError:  # of an earlier run, or of a run that starts now
                number += 1
                folder = parent / f"{name}-{number}"
    except OSError as error:
        raise unwritable(folder, error) from error
