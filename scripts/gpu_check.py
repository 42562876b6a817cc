"""Check in minutes that this software works on the GPU of this machine, and measure its speed.

    python scripts/gpu_check.py [--minutes 8]

Runs from a checkout; the package need not be installed. Prints a line for each check as it ends,
and writes the table so far to ``gpu_check.md`` and ``gpu_check.json``. A check that fails, crashes
or hangs does not stop the others. Checks that no longer fit into the minutes are skipped. Without a
GPU the same checks run in miniature on the CPU. Exit status 0 if nothing failed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.gpu.machine import describe  # noqa: E402
from scripts.gpu.report import Report  # noqa: E402
from scripts.gpu.runner import python, run_all  # noqa: E402

SLOWER = 8.0  # factor on the time limits for the miniature checks on a busy CPU


def parts(text: str) -> set[int]:
    """Parse the numbers of parts, such as ``1,3``."""
    named = {int(part) for part in text.split(",")}
    if not named <= {1, 2, 3, 4, 5}:
        raise ValueError(text)
    return named


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="budget for all checks")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    named = "1 as the CPU, 2 commands, 3 speed, 4 resuming, 5 options; such as 1,3"
    parser.add_argument("--parts", type=parts, default={1, 2, 3, 4, 5}, help=named)
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_check"))
    return parser.parse_args()


def main() -> None:
    """Run the checks and exit with 0 if none failed."""
    options, began = arguments(), time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and end the worker
    try:
        import torch

        from scripts.gpu.catalog import CHECKS
    except ImportError as error:
        sys.exit(f"gpu_check: {error}; install the dependencies that pyproject.toml lists")
    available = torch.cuda.is_available()
    device = options.device
    if device == "auto":
        device = "cuda" if available else "cpu"
    if device == "cuda" and not available:
        sys.exit("gpu_check: --device cuda: torch finds no GPU; use --device cpu")
    note = "On the GPU."
    if device == "cpu":
        note = "No GPU: the checks run in miniature on the CPU and say nothing of speed."
    folder = options.out.resolve()
    report = Report(folder, describe(device), note)
    report.begin()
    numbers = [number for number, check in enumerate(CHECKS) if check.part in options.parts]
    command = python("-m", "scripts.gpu.worker", device, str(folder / "runs"))
    run_all(
        {number: CHECKS[number] for number in numbers},
        report,
        command,
        until=began + 60 * options.minutes,
        folder=folder,
        scale=1.0 if device == "cuda" else SLOWER,
    )
    print(f"{report.summary()}; {folder / 'gpu_check.md'}", flush=True)
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
