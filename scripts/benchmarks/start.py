"""Suite that times commands until their first result."""

from __future__ import annotations

import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmarks import commands
from scripts.benchmarks.commands import SAMPLE, TRAIN
from scripts.benchmarks.tables import table
from scripts.benchmarks.timing import Machine

COMMANDS = {
    "`ddpm-train --help`": (TRAIN, ["--help"], 0),
    "an unknown option: `trainer.max_step=5`": (TRAIN, ["trainer.max_step=5"], 1),
    "a value of the wrong type: `trainer.lr=abc`": (TRAIN, ["trainer.lr=abc"], 1),
    "a missing checkpoint: `ddpm-sample ckpt=nowhere`": (SAMPLE, ["ckpt=nowhere"], 1),
}
FIRST_STEP = "first training step of the digits: `ddpm-train`"
TIMEOUT = 300.0


def seconds_of(module: str, arguments: Sequence[str], status: int) -> float:
    """Return the duration of a command in an empty folder in seconds.

    Raises:
        RuntimeError: another exit status.
    """
    with tempfile.TemporaryDirectory() as folder:
        return commands.seconds_of(module, arguments, Path(folder), status)


def seconds_to_first_step() -> float:
    """Return the seconds from the start of a training to the log of its first step.

    Raises:
        RuntimeError: the training ended before, or hangs.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "outputs" / "run" / "metrics.jsonl"
        arguments = ["name=run", "trainer.log_every=1", "device=cpu"]
        began = time.perf_counter()
        process = subprocess.Popen(
            commands.command_line(TRAIN, arguments),
            cwd=folder,
            env=commands.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not (log.is_file() and log.stat().st_size):
                if process.poll() is not None or time.perf_counter() - began > TIMEOUT:
                    raise RuntimeError("the training logged no step")
                time.sleep(0.005)
            return time.perf_counter() - began
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def start(rounds: int) -> str:
    """Return the table of commands."""
    machine = Machine()
    for command in COMMANDS.values():
        seconds_of(*command)  # the first start compiles the source
    seconds_to_first_step()
    seconds: dict[str, list[float]] = {name: [] for name in (*COMMANDS, FIRST_STEP)}
    for _ in range(rounds):
        machine.probe()
        for name, command in COMMANDS.items():
            seconds[name].append(seconds_of(*command))
        seconds[FIRST_STEP].append(seconds_to_first_step())
    rows = [
        [name, f"{statistics.median(each):.2f} [{min(each):.2f}..{max(each):.2f}]"]
        for name, each in seconds.items()
    ]
    facts = "Seconds of whole commands, or until a line is logged. Bytecode is cached."
    return "\n\n".join(
        (facts, table(["command", "seconds, median [min..max]"], rows), machine.verdict())
    )
