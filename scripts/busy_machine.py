"""Measure default training beside busy processes, with automatic and with other threads.

    python scripts/busy_machine.py --busy 0 3 --rounds 2

In each round each number of busy processes (endless loops) comes with each setting, one run after
the other: threads=auto, one thread per core, and these without parts of batches. Prints a table:
images per second of training by metrics.jsonl (medians of the rounds, smallest and largest),
seconds of the whole command with its start and trial, and the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOG_EVERY = 20
LOOP = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"  # ends with this one
SETTINGS = {"auto": (), "all cores": (), "all cores, batch_parts=1": ("trainer.batch_parts=1",)}


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep ``count`` other processes busy."""
    others = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(count)]
    try:
        yield
    finally:
        for each in others:
            each.kill()
            each.wait()


def train(folder: Path, setting: str, steps: int) -> tuple[float, float, str]:
    """Return images per second, seconds of the command, and its line about threads."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    if setting != "auto":
        environment["OMP_NUM_THREADS"] = str(os.cpu_count() or 1)
    arguments = (
        f"out={folder}", "name=run", f"trainer.max_steps={steps}", f"trainer.log_every={LOG_EVERY}",
        "trainer.preview_every=0", "device=cpu", *SETTINGS[setting],
    )  # fmt: skip
    began = time.monotonic()
    command = [sys.executable, "-m", "ddpm.cli.train", *arguments]
    ended = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    seconds = time.monotonic() - began
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    speeds = [json.loads(line)["samples_per_second"] for line in lines]
    notices = [line for line in ended.stdout.splitlines() if line.startswith("threads:")]
    return statistics.harmonic_mean(speeds), seconds, notices[0] if notices else ""


def main() -> None:
    """Run all measurements and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 3])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=120)
    options = parser.parse_args()
    results: dict[tuple[int, str], list[tuple[float, float, str]]] = {}
    for _ in range(options.rounds):
        for count in options.busy:
            for setting in SETTINGS:
                with tempfile.TemporaryDirectory() as folder, busy(count):
                    made = train(Path(folder), setting, options.steps)
                results.setdefault((count, setting), []).append(made)
                print(count, setting, *made, file=sys.stderr, flush=True)
    print(f"{os.cpu_count()} cores, {options.steps} steps, load before the end "
          f"{os.getloadavg()[2]:.1f} (15 minutes)\n")  # fmt: skip
    print("| busy processes | threads | images/s | seconds of the command |\n|---|---|---|---|")
    for (count, setting), runs in results.items():
        speeds, seconds = [run[0] for run in runs], [run[1] for run in runs]
        spread = f"{min(speeds):.0f} to {max(speeds):.0f}"
        print(f"| {count} | {setting} | {statistics.median(speeds):.0f} ({spread}) "
              f"| {statistics.median(seconds):.0f} |")  # fmt: skip
    for count in options.busy:
        auto, *others = (statistics.median(run[0] for run in results[count, s]) for s in SETTINGS)
        ratios = " and ".join(f"{auto / other:.1f}" for other in others)
        print(f"\n{count} busy processes: {ratios} times as fast with threads=auto")


if __name__ == "__main__":
    main()
