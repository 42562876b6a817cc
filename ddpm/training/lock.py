"""A lock that allows one writer per run folder."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from ddpm.errors import ConfigError
from ddpm.outputs import unwritable

FILE = ".lock"
_WAIT_SECONDS = 15.0  # for a run that is stopping
_HELD = (errno.EACCES, errno.EAGAIN)
_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Lock:
    """Lock of the process that writes a run; the system releases it when the process ends.

    It is a POSIX record lock: forked processes do not inherit it, and it works on NFS. On a file
    system without locks, the file names the writer, and a new process takes over only from a dead
    process of the same machine.

    The package ``filelock`` is not used, because it raises ENOLCK and EOPNOTSUPP of such file
    systems (release 4.3), where a run has to start, and does not name the writer.

    Args:
        folder: the run folder; created if needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._descriptor: int | None = None

    def acquire(
        self, key: str, report: Callable[[str], None], seconds: float = _WAIT_SECONDS
    ) -> None:
        """Acquire the lock; wait if another process holds it.

        Args:
            key: the option that names the folder, for the error.
            report: called with a message before waiting.
            seconds: maximum time to wait.

        Raises:
            ConfigError: another process still holds the lock, or the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            mode = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(self.folder / FILE, mode, 0o666)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        end, waiting = time.monotonic() + seconds, False
        while not self._try():
            if time.monotonic() > end:
                holder = self._holder()
                self.release()
                problem = f"{self.folder} is being written by {holder}"
                remedy = "wait for it, stop it, or choose another name"
                raise ConfigError(key, None, problem, remedy)
            if not waiting:
                report(f"{self.folder} is being written by {self._holder()}; waiting for its end")
            waiting = True
            time.sleep(0.2)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()} {socket.gethostname()}".encode(), 0)

    def release(self) -> None:
        """Release the lock if it is held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _try(self) -> bool:
        assert self._descriptor is not None
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                return False
            if error.errno in _UNKNOWN:
                return self._is_writer_dead()
            raise unwritable(self.folder, error) from error
        return True

    def _read(self) -> tuple[int, str] | None:
        """Return id and machine of the last writer, or None."""
        assert self._descriptor is not None
        number, _, host = os.pread(self._descriptor, 300, 0).decode(errors="replace").partition(" ")
        return (int(number), host) if number.isdecimal() and host else None

    def _holder(self) -> str:
        writer = self._read()
        return "another process" if writer is None else f"process {writer[0]} on {writer[1]}"

    def _is_writer_dead(self) -> bool:
        """Return True if the last writer is known to have ended."""
        writer = self._read()
        if writer is None or writer[0] == os.getpid():
            return True
        if writer[1] != socket.gethostname():
            return False
        return not psutil.pid_exists(writer[0])
