"""One writer a run folder."""

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
_WAIT_SECONDS = 15.0  # for a run that was just told to stop
_HELD = (errno.EACCES, errno.EAGAIN)
_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Lock:
    """Held by the process that writes a run; whatever ends the process frees it.

    It is a POSIX record lock: forked processes do not inherit it, and it works on NFS. On a file
    system without locks, a file says who writes, and only a process of the same machine that is
    dead is taken over from.

    Args:
        folder: of the run; made if need be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._descriptor: int | None = None

    def acquire(
        self, key: str, tell: Callable[[str], None], seconds: float = _WAIT_SECONDS
    ) -> None:
        """Take the lock, waiting for another process to end.

        Args:
            key: the option to blame.
            tell: told that it waits.
            seconds: how long.

        Raises:
            ConfigError: another process writes into the folder, or it cannot be written.
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
                problem = (
                    f"{self.folder} is being written by {holder}; wait for it, stop it, or choose "
                    "another name"
                )
                raise ConfigError(key, None, problem)
            if not waiting:
                tell(f"{self.folder} is being written by {self._holder()}; waiting for its end")
            waiting = True
            time.sleep(0.2)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()} {socket.gethostname()}".encode(), 0)

    def release(self) -> None:
        """Give the lock back, if it is held."""
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
                return self._dead()
            raise unwritable(self.folder, error) from error
        return True

    def _read(self) -> tuple[int, str] | None:
        """Process and machine of who wrote last, or None."""
        assert self._descriptor is not None
        number, _, host = os.pread(self._descriptor, 300, 0).decode(errors="replace").partition(" ")
        return (int(number), host) if number.isdecimal() and host else None

    def _holder(self) -> str:
        read = self._read()
        return "another process" if read is None else f"process {read[0]} on {read[1]}"

    def _dead(self) -> bool:
        """Whether who wrote last does not live any more, as far as one can see from here."""
        read = self._read()
        if read is None or read[0] == os.getpid():
            return True
        if read[1] != socket.gethostname():
            return False
        return not psutil.pid_exists(read[0])
