"""Lost output streams: the program continues, and its exit status does not change."""

import os
import pty
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WORK = """
import sys, threading, warnings
from tqdm import tqdm
from ddpm import streams
streams.protect()
streams.protect()
for number in tqdm(range(3), mininterval=0):
    print("naïve \\udcff" * 5000, flush=True)
    print("é", file=sys.stderr)
warnings.warn("é")
sys.stderr.isatty(), sys.stdout.fileno(), sys.stdout.buffer.write(b"raw")
open("done", "w").close()
{end}
"""
ENDS = {"": 0, "sys.exit(75)": 75, "raise RuntimeError('é')": 1}


@contextmanager
def broken_pipe():
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@contextmanager
def full_disk():
    with open("/dev/full", "w") as file:
        yield file.fileno()


@contextmanager
def closed_terminal():
    ours, theirs = pty.openpty()
    os.close(ours)
    yield theirs
    os.close(theirs)


@contextmanager
def read_only():
    with open(os.devnull) as file:
        yield file.fileno()


LOST = (broken_pipe, full_disk, closed_terminal, read_only)
WHICH = {"stdout": ("stdout",), "stderr": ("stderr",), "both": ("stdout", "stderr")}


def ended(folder, *words, **popen):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **popen.pop("env", {})}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | popen
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, timeout=60, **streams
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full exists on Linux only")
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("lose", LOST, ids=lambda each: each.__name__)
def test_the_program_continues_without_its_streams(tmp_path, lose, which):
    """The other stream has no message about it; the flush at exit does not change the status."""
    end, status = list(ENDS.items())[list(WHICH).index(which)]
    with lose() as number:
        lost = dict.fromkeys(WHICH[which], number)
        result = ended(tmp_path, "-c", WORK.format(end=end), **lost)
    assert result.returncode == status and (tmp_path / "done").exists()
    for other in set(WHICH["both"]) - set(WHICH[which]):
        text = getattr(result, other).decode()
        assert "ï" in text if other == "stdout" else "100%" in text
        assert not any(word in text for word in ("ignored", "Pipe", "space", "Errno"))


@pytest.mark.parametrize(
    ("closed", "end"), list(zip(["1>&-", "2>&-", "1>&- 2>&- 0<&-"], ENDS, strict=True))
)
def test_closed_descriptors_are_not_reused_for_files(tmp_path, closed, end):
    """Output of a library to descriptor 1 or 2 must not be written to a checkpoint."""
    take = "import os; file = open('done', 'w'); assert file.fileno() > 2, file\n"
    take += "for number in (1, 2): os.write(number, b'from a library')\n"
    (tmp_path / "work.py").write_text(WORK.format(end=take + end))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = ["sh", "-c", f'exec "{sys.executable}" work.py {closed}']
    result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    assert result.returncode == ENDS[end], result.stderr
    assert (tmp_path / "done").read_text() == ""


def test_unencodable_characters_are_escaped(tmp_path):
    result = ended(tmp_path, "-c", WORK.format(end=""), env={"PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0
    assert result.stdout.startswith(rb"na\xefve \udcff") and rb"\xe9" in result.stderr


def test_output_is_complete_and_in_order(tmp_path):
    for environment in ({}, {"PYTHONUNBUFFERED": "1"}):
        with (tmp_path / "log").open("w") as log:
            work = "from ddpm import streams; streams.protect(); import os, sys\n"
            work += "for n in range(2000):\n    print(n, 'x' * 50)\nsys.stdout.flush()\n"
            work += "os.write(1, b'library\\n'); print('end', flush=True)\n"
            result = ended(tmp_path, "-c", work, stdout=log, stderr=log, env=environment)
        lines = [f"{number} {'x' * 50}" for number in range(2000)]
        assert result.returncode == 0
        assert (tmp_path / "log").read_text().splitlines() == [*lines, "library", "end"]


def test_a_non_blocking_pipe_is_written_completely(tmp_path):
    """Some parent processes set pipes to non-blocking mode."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    work = "from ddpm import streams; streams.protect(); print('x' * 500_000)"
    with subprocess.Popen(["sh", "-c", "sleep 0.3; wc -c"], stdin=read, stdout=-1) as reader:
        result = ended(tmp_path, "-c", work, stdout=write)
        os.close(read), os.close(write)
        assert reader.communicate()[0].strip() == b"500001"
    assert result.returncode == 0 and result.stderr == b""


def test_replaced_streams_are_not_changed(capsys):
    from ddpm import streams

    before = sys.stdout, sys.stderr
    streams.protect()
    assert (sys.stdout, sys.stderr) == before
