"""Commands in processes of their own, injected faults, and checks of the resulting runs."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
import torch

from ddpm.training import checkpoint
from tests.cli.conftest import TINY

ROOT = Path(__file__).resolve().parents[2]
STEPS = {1: 30, 2: 200}  # of the uninterrupted runs, by number of processes; a checkpoint every ten
_MARK = "DDPM_FAULT_TEST"  # in the environment of a command and of its child processes
_HURT = """\
import os, signal, sys, time
from pathlib import Path

import torch

from ddpm.training import Trainer, checkpoint

__all__ = []
RANK = int(os.environ.get("RANK", "0"))
Path(f"pid-{RANK}").write_text(str(os.getpid()))


def at_losses(change):
    real = Trainer._losses

    def losses(self, *arguments):
        values, *others = real(self, *arguments)
        return change(self.step + 1, values), *others

    Trainer._losses = losses


def at_save(change, owner=checkpoint, name="save"):
    real = getattr(owner, name)
    calls = []

    def patched(*arguments, **options):
        calls.append(arguments)
        change(len(calls))
        return real(*arguments, **options)

    setattr(owner, name, patched)


"""


@dataclass
class Started:
    """A command that is running or has ended."""

    shell: "Shell"
    popen: subprocess.Popen
    out_file: Path
    err_file: Path

    @property
    def out(self) -> str:
        return self.out_file.read_text()

    @property
    def err(self) -> str:
        return self.err_file.read_text()

    @property
    def line(self) -> str:
        """Return the line of the error stream that reports the end of the command."""
        (line,) = [x for x in self.err.splitlines() if x.startswith("ddpm-")]
        return line

    def end(self, seconds: float = 120) -> int:
        """Return the exit status, after all processes of the command have ended."""
        try:
            status = self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"not ended after {seconds} s: {self.err}")
        self.until(lambda: not self.shell.living(), 30, living=False)
        return status

    def until(self, condition, seconds: float = 90, *, living: bool = True) -> None:
        """Wait for a condition; fail after ``seconds``, or if the command ends first."""
        end = time.monotonic() + seconds
        while not condition():
            if living and self.popen.poll() is not None and not condition():
                pytest.fail(f"ended with {self.popen.returncode}: {self.err}")
            if time.monotonic() > end:
                pytest.fail(f"condition not met after {seconds} s: {self.err}")
            time.sleep(0.01)

    def signal(self, number: int, rank: int | None = None) -> None:
        """Send a signal to the started process, or to the worker of a rank."""
        os.kill(self.popen.pid if rank is None else self.shell.pid(rank), number)

    def kill_all(self) -> None:
        """Send SIGKILL to all processes."""
        self.shell.kill_all()
        assert self.popen.wait(30) == -signal.SIGKILL


@dataclass
class Shell:
    """A folder in which commands run as processes, with a module ``hurt`` that injects faults."""

    folder: Path
    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid4().hex)
    count: int = 0

    def hurt(self, body: str) -> None:
        """Set the code that all later commands run in each process at their start."""
        (self.folder / "hurt.py").write_text(_HURT + body)

    def heal(self) -> None:
        self.hurt("")

    def start(
        self, *arguments: str, command: str = "train", launcher: tuple[str, ...] = (), **popen
    ) -> Started:
        """Start ``python -m ddpm.cli.COMMAND`` in this folder, possibly by a launcher."""
        self.count += 1
        out, err = (self.folder / f"{self.count}.{name}" for name in ("out", "err"))
        words = [sys.executable, *launcher, "-m", f"ddpm.cli.{command}", *arguments]
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("HYDRA_", "DDPM_"))},
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            **self.environment,
            _MARK: self.mark,
        }
        for path in self.folder.glob("pid-*"):
            path.unlink()
        with out.open("w") as to_out, err.open("w") as to_err:
            process = subprocess.Popen(
                words, cwd=self.folder, env=environment, stdout=to_out, stderr=to_err, **popen
            )
        return Started(self, process, out, err)

    def train(self, *arguments: str, **popen) -> Started:
        """Start the tiny run ``outputs/x``, with the code of :meth:`hurt`."""
        if not (self.folder / "hurt.py").exists():
            self.heal()
        return self.start("name=x", "plugins=[hurt]", *TINY, *self.options, *arguments, **popen)

    def ended(self, *arguments: str, status: int = 0, **popen) -> Started:
        """Run the tiny run to its end, and check the exit status."""
        started = self.train(*arguments, **popen)
        assert started.end() == status, started.err
        return started

    @property
    def run(self) -> Path:
        return self.folder / "outputs/x"

    def step(self) -> int:
        """Return the last logged step of the run."""
        try:
            lines = (self.run / "metrics.jsonl").read_text().splitlines()
            return json.loads(lines[-1])["step"] if lines else 0
        except (OSError, ValueError):
            return 0

    def good_steps(self) -> list[int]:
        """Return the steps of the checkpoints, newest first; fail if one is damaged."""
        return [checkpoint.load(folder).step for folder in checkpoint.listed(self.run)]

    def writing(self) -> bool:
        """Return True while a checkpoint is being written."""
        return any((self.run / "checkpoints").glob(".tmp-*"))

    def leftovers(self) -> list[str]:
        """Return the names of partial files."""
        return [path.name for path in self.run.rglob("*") if ".tmp" in path.name]

    def pid(self, rank: int) -> int:
        """Return the process id of a rank, which must have imported the module ``hurt``."""
        return int((self.folder / f"pid-{rank}").read_text())

    def living(self) -> list[psutil.Process]:
        """Return the running processes of this shell, including children."""
        processes = []
        for process in psutil.process_iter():
            try:
                marked = process.environ().get(_MARK) == self.mark
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    processes.append(process)
            except psutil.Error:
                continue
        return processes

    def kill_all(self) -> None:
        for process in self.living():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue


@pytest.fixture
def shell(tmp_path):
    instance = Shell(tmp_path)
    yield instance
    instance.kill_all()


_references: dict[int, Path] = {}


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """Return a function of a number of processes that returns an uninterrupted run; cached."""

    def run_folder(processes: int) -> Path:
        if processes not in _references:
            shell = Shell(tmp_path_factory.mktemp(f"reference-{processes}"))
            every = ("trainer.checkpoint_every=10", "trainer.keep_every=10")
            steps = f"trainer.max_steps={STEPS[processes]}"
            try:
                shell.ended(steps, f"launch.processes={processes}", *every)
            finally:
                shell.kill_all()
            _references[processes] = shell.run
        return _references[processes]

    return run_folder


def assert_as(reference: Path, run: Path, step: int) -> None:
    """Check that the newest checkpoint of a run has this step and the bits of the reference."""
    newest = checkpoint.newest(run, pytest.fail)
    assert newest is not None and newest.step == step
    expected = checkpoint.load(reference / f"checkpoints/step-{step:08d}")
    for which in ("raw", "ema"):
        _assert_equal(newest.weights(which), expected.weights(which), which)
    actual_state, expected_state = newest.state(), expected.state()
    for state in (actual_state, expected_state):
        state.pop("pace")  # seconds of the run and of its previews
    _assert_equal(actual_state, expected_state, "state")
    steps = [json.loads(x)["step"] for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, step + 1))


def _assert_equal(one, other, where) -> None:
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            _assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for place, pair in enumerate(zip(one, other, strict=True)):
            _assert_equal(*pair, f"{where}[{place}]")
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, where
