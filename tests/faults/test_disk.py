"""Full disks, and weights that must not be written."""

import errno
import json
import os
import re
import resource
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from ddpm.training import Trainer, checkpoint
from ddpm.training.checkpoint import CheckpointMetadata
from ddpm.training.ema import EMA
from ddpm.training.saving import Saver
from tests.cli.conftest import TINY
from tests.faults.processes import assert_as, reference, shell

__all__ = ["reference", "shell"]

EVERY = ("trainer.max_steps=20", "trainer.checkpoint_every=2", "name=x", *TINY)
RUN = Path("outputs/x")
RETRY = "; training continues, and the next checkpoint is another attempt"


def steps(run=RUN):
    return [checkpoint.load(folder).step for folder in checkpoint.listed(run)]


def leftovers():
    return [path for path in Path("outputs").rglob("*") if ".tmp" in path.name]


def messages(ended):
    """Return the lines on the error stream of a command, without progress bars."""
    lines = re.sub(r"\r|training: [^]]*]", "\n", ended.err).splitlines()
    return [line for line in map(str.strip, lines) if line]


def failed_steps(ended, reason):
    """Return the steps of failed checkpoints: warnings, and at the end possibly an error."""
    place = r"out=outputs/x/checkpoints/step-(\d+)"
    problem = rf"{place}: cannot be written \([\d.]+ [MG]B free\): {reason}"
    failed = []
    for line in messages(ended):
        kind = "ddpm-train: " if line.startswith("ddpm-train: ") else "warning: "
        end = RETRY if kind == "warning: " else ""
        match = re.fullmatch(kind + problem + end, line)
        assert match, line
        failed.append(int(match[1]))
    assert line.startswith("ddpm-train: ") == (ended.status == 1)
    return failed


@contextmanager
def file_size(limit):
    """Context manager that limits the size of files in bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Large enough for the log; the weights (224 kB) or only the optimizer's state (530 kB) are not.
@pytest.mark.parametrize("limit", [pytest.param(100_000, marks=pytest.mark.slow), 300_000])
def test_third_failure_in_a_row_is_an_error(command, reference, limit):
    command("train", *EVERY, "trainer.max_steps=4")
    with file_size(limit):
        ended = command("train", *EVERY)
    assert ended.status == 1
    assert steps() == [4, 2] and leftovers() == []
    assert failed_steps(ended, r"\S.*") == [6, 8, 10]
    assert command("train", *EVERY).status == 0
    assert_as(reference(1), RUN, 20)


def fails(monkeypatch, *calls):
    """Make the disk full for the given checkpoints, after a part of the file was written."""
    real, count = torch.save, []

    def save(state, path):
        count.append(path)
        if len(count) in calls:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(state, path)

    monkeypatch.setattr(torch, "save", save)


def test_single_failures_are_warnings(command, reference, monkeypatch):
    fails(monkeypatch, 2, 3, 5)
    ended = command("train", *EVERY, "trainer.max_steps=20", "trainer.keep_last=10")
    assert ended.status == 0
    assert steps() == [20, 18, 16, 14, 12, 8, 2] and leftovers() == []
    assert failed_steps(ended, ".*No space left on device") == [4, 6, 10]
    assert_as(reference(1), RUN, 20)


def test_failure_of_the_last_checkpoint_is_an_error(command, reference, monkeypatch):
    with monkeypatch.context() as patch:
        fails(patch, 10)
        ended = command("train", *EVERY)
    assert ended.status == 1
    assert failed_steps(ended, ".*No space left on device") == [20]
    assert steps() == [18, 16, 14] and leftovers() == []
    events = [json.loads(line)["event"] for line in (RUN / "events.jsonl").open()]
    assert events == ["started", "failed"]
    ended = command("train", *EVERY)
    assert ended.status == 0 and "from step 18 to step 20" in ended.out
    assert_as(reference(1), RUN, 20)


def test_failure_is_attributed_to_its_checkpoint(tmp_path, monkeypatch):
    """A save that takes long fails after the next one was requested."""
    warnings = []
    saver = Saver(tmp_path, lambda _: None, warnings.append)
    weights = {"w": torch.zeros(2)}
    fails(monkeypatch, 1)
    for step in (1, 2):
        saver.start(CheckpointMetadata(step=step, config={}), raw=weights, ema=weights, state={})
    assert saver.error(last=True) is None
    assert steps(tmp_path) == [2] and len(warnings) == 1


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk on ``outputs`` with space for the log and two checkpoints of 1 MB."""
    place = tmp_path / "outputs"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=2500k", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("room", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_small_disk(command, reference, small_disk, room):
    """There is space for two checkpoints, or for one, while two are retained; logging continues."""
    filler = small_disk / "filler"
    filler.write_bytes(bytes(room * 1_000_000))
    ended = command("train", *EVERY, "trainer.keep_last=2")
    assert ended.status == 1
    good = steps()
    assert len(good) == 2 - room and leftovers() == []
    first = good[0] + 2
    assert failed_steps(ended, r"\S.*") == [first, first + 2, first + 4]
    free = [float(number) for number in re.findall(r"\(([\d.]+) MB free", ended.err)]
    assert len(free) == 3 and all(0 < number < 1 for number in free)
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    ended = command("train", *EVERY, "trainer.keep_last=2")
    assert ended.status == 0 and f"from step {good[0]} to step 20" in ended.out
    assert_as(reference(1), RUN, 20)


def test_a_disk_without_room_for_a_line_of_the_log(command, reference, small_disk, monkeypatch):
    """Another program fills the disk, and frees it some steps later."""
    filler, losses = small_disk / "filler", Trainer._losses

    def crowded(self, batch, micro):
        if self.step == 11:
            with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as f:
                while True:
                    f.write(bytes(1000) if filler.stat().st_size > 400_000 else bytes(100_000))
        if self.step == 18:
            filler.unlink()
        return losses(self, batch, micro)

    monkeypatch.setattr(Trainer, "_losses", crowded)
    subprocess.run(["mount", "-o", "remount,size=6m", str(small_disk)], check=True)
    ended = command("train", *EVERY, "trainer.checkpoint_every=10")
    assert ended.status == 0, ended.err
    assert steps() == [20, 10] and leftovers() == []


# weights that are not finite


@pytest.mark.parametrize("which", ["raw", pytest.param("ema", marks=pytest.mark.slow)])
def test_weights_that_are_not_finite_are_never_written(command, reference, monkeypatch, which):
    update, calls = EMA.update, []

    def poisoned(self, *buffers):
        update(self, *buffers)
        calls.append(None)
        if len(calls) == 20:  # after the last step: only writing can detect it
            weights = self._current if which == "raw" else self._averaged
            weights[0].data.flatten()[3] = float("inf")

    with monkeypatch.context() as patch:
        patch.setattr(EMA, "update", poisoned)
        ended = command("train", *EVERY)
    assert ended.status == 1
    assert re.fullmatch(
        r"ddpm-train: out=outputs/x/checkpoints/step-00000020: is not written: \S+ of the "
        rf"{which} weights is not finite; resume from the previous checkpoint with a lower "
        r"trainer\.lr or trainer\.precision=bf16 or no",
        ended.line,
    )
    assert steps() == [18, 16, 14] and leftovers() == []
    for folder in checkpoint.listed(RUN):
        for tensors in map(checkpoint.load(folder).weights, ("raw", "ema")):
            assert all(bool(value.isfinite().all()) for value in tensors.values())
    assert command("train", *EVERY).status == 0
    assert_as(reference(1), RUN, 20)
