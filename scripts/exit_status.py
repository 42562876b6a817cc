"""Count the short multi-process runs that do not end with status 0 after all their work is done.

    python scripts/exit_status.py --runs 60 --at-once 3
    python scripts/exit_status.py --runs 60 --launcher torchrun
    python scripts/exit_status.py --runs 10 --launcher in-flight
    python scripts/exit_status.py --runs 10 --launcher in-flight-leaving

A run trains two steps in two processes on the CPU; a busy machine makes races at the exit of a
process more likely. "in-flight" trains nothing: its two processes exit while threads of gloo still
hold tensors, which makes the race certain enough to see; "in-flight-leaving" exits as the commands
do. The last lines that an abnormal run has printed are shown.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

TRAIN = (
    "ddpm.cli.train", "device=cpu", "model.dim=8", "trainer.max_steps=2", "trainer.batch_size=8",
)  # fmt: skip
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")
IN_FLIGHT = """
import contextlib, torch, torch.distributed
from ddpm.lifetime import leaving
with {exit}():
    torch.distributed.init_process_group("gloo")
    for _ in range(3000):
        tensor = torch.zeros(3)
        tensor.tag = "has a Python object, so that gloo's thread needs the interpreter to free it"
        torch.distributed.all_reduce(tensor, async_op=True)
    {wait}
"""
ABORT = "terminate called"


def main() -> None:
    """Run the runs, and print how many ended in which way."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--at-once", type=int, default=3)
    launchers = ("own", "torchrun", "in-flight", "in-flight-leaving")
    parser.add_argument("--launcher", choices=launchers, default="own")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.at_once) as pool:
        one = partial(run, Path(folder), options.launcher)
        counts = Counter(pool.map(one, range(options.runs)))
    minutes = (time.monotonic() - began) / 60
    print(f"{options.runs} runs, {options.launcher}, {options.at_once} at once, {minutes:.0f} min")
    for end, count in counts.most_common():
        print(f"{count:5} {end}")


def run(folder: Path, launcher: str, number: int) -> str:
    """Return how one run ended."""
    if launcher.startswith("in-flight"):
        status, errors, saved = in_flight("leaving" in launcher)
    else:
        train = (*TRAIN, f"name=run-{number}")
        words = (*TORCHRUN, *train) if launcher == "torchrun" else (*train, "launch.processes=2")
        command = [sys.executable, "-m", *words]
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        status, errors = ended.returncode, ended.stderr
        saved = (folder / f"outputs/run-{number}/checkpoints/step-00000002").is_dir()
    aborted = ABORT in errors
    if status or aborted:
        print(f"run {number}:", *errors.splitlines()[-20:], sep="\n", flush=True)
    return f"status {status}{', aborted' if aborted else ''}{'' if saved else ', not saved'}"


def in_flight(leave: bool) -> tuple[int, str, bool]:
    """Run two processes that exit while gloo works; return the end of the one that exits first."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    processes = []
    for rank, wait in enumerate(("pass", "__import__('time').sleep(5)")):
        code = IN_FLIGHT.format(exit="leaving" if leave else "contextlib.nullcontext", wait=wait)
        environment = {**os.environ, **place, "RANK": str(rank), "WORLD_SIZE": "2"}
        command = [sys.executable, "-c", code]
        processes.append(
            subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        )
    first, second = processes
    errors = first.communicate()[1]
    second.kill()
    second.communicate()
    return first.returncode, errors, True


if __name__ == "__main__":
    main()
