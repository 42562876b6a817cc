"""Commands of the package, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.gpu.machine import ROOT

TRAIN, SAMPLE, EVALUATE = "ddpm.cli.train", "ddpm.cli.sample", "ddpm.cli.evaluate"


def environment() -> dict[str, str]:
    """Return the environment of a user: with this version of ddpm, whose bytecode is cached."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    return variables


def command_line(module: str, arguments: Sequence[str]) -> list[str]:
    """Return the command line of a command, which imports it as its console script does."""
    code = f"import sys; from {module} import main; sys.exit(main())"
    return [sys.executable, "-c", code, *arguments]


def seconds_of(module: str, arguments: Sequence[str], folder: Path, status: int = 0) -> float:
    """Run a command in a folder and return the seconds from its start to its exit.

    Raises:
        RuntimeError: another exit status.
    """
    began = time.perf_counter()
    command = command_line(module, arguments)
    ended = subprocess.run(command, cwd=folder, env=environment(), capture_output=True)
    seconds = time.perf_counter() - began
    if ended.returncode != status:
        raise RuntimeError(f"{' '.join(command)}: {ended.stderr.decode()[-2000:]}")
    return seconds
