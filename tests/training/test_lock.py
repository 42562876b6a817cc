"""The lock that allows one writer per run folder."""

import errno
import os
import socket
import subprocess
import sys
import time
from threading import Timer

import pytest

from ddpm.errors import ConfigError
from ddpm.training import lock
from ddpm.training.lock import Lock

HOLDS = """
import sys, time
from pathlib import Path
from ddpm.training.lock import Lock
Lock(Path(sys.argv[1])).acquire("name", print)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_second_writer_is_rejected_with_the_name_of_the_first(tmp_path, holder):
    messages = []
    with pytest.raises(ConfigError) as caught:
        Lock(tmp_path).acquire("name", messages.append, seconds=0.3)
    who = f"process {holder.pid} on {socket.gethostname()}"
    assert str(caught.value) == (
        f"name: {tmp_path} is being written by {who}; wait for it, stop it, or choose another name"
    )
    assert messages == [f"{tmp_path} is being written by {who}; waiting for its end"]


def test_it_waits_for_a_writer_that_ends(tmp_path, holder):
    Timer(0.5, holder.kill).start()
    messages = []
    began = time.monotonic()
    Lock(tmp_path).acquire("name", messages.append, seconds=10)
    assert 0.5 < time.monotonic() - began < 5 and len(messages) == 1


def test_a_killed_writer_is_taken_over_at_once(tmp_path, holder):
    holder.kill()
    holder.wait()
    began = time.monotonic()
    Lock(tmp_path).acquire("name", pytest.fail)
    assert time.monotonic() - began < 1
    assert (tmp_path / ".lock").read_text().split()[0] == str(os.getpid())


def test_released_lock_can_be_acquired_again(tmp_path):
    first = Lock(tmp_path)
    first.acquire("name", pytest.fail)
    first.release()
    first.release()
    ended = subprocess.run(
        [sys.executable, "-c", HOLDS.replace("60", "0"), str(tmp_path)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.stdout == "held\n", ended.stderr


def test_processes_that_read_data_do_not_inherit_it(tmp_path):
    """A fork that outlives a killed trainer must not keep the folder locked."""
    held = Lock(tmp_path)
    held.acquire("name", pytest.fail)
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        held.release()
        ended = subprocess.run(
            [sys.executable, "-c", HOLDS.replace("60", "0"), str(tmp_path)],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert ended.stdout == "held\n", ended.stderr
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("text", "free"),
    [
        ("", True),
        ("1 {host}", False),
        (str(2**22 + 1) + " {host}", True),  # above the highest number of a process
        ("1 elsewhere", False),
    ],
)
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_systems_without_locks(tmp_path, monkeypatch, number, text, free):
    """The guarantee that ``filelock`` lacks."""

    def unsupported(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "lockf", unsupported)
    (tmp_path / ".lock").write_text(text.format(host=socket.gethostname()))
    if free:
        Lock(tmp_path).acquire("name", pytest.fail, seconds=0)
    else:
        with pytest.raises(ConfigError, match="is being written by process 1 on"):
            Lock(tmp_path).acquire("name", lambda _: None, seconds=0)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be written \(File exists\)"):
        Lock(tmp_path / "file").acquire("name", pytest.fail)
