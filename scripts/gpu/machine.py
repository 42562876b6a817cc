"""The card and the versions that a result belongs to, and the speed that the card could have."""

from __future__ import annotations

import platform
import subprocess
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Dense bf16 matrix products with float32 sums, TFLOP/s, from the makers' data sheets; the first
# name that is part of the card's name counts.
PEAKS = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "GH200": 989.4,
    "H200 NVL": 835.5,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.5,
    "H100": 989.4,
    "H800": 989.4,
    "A100": 311.9,
    "A800": 311.9,
    "A40": 149.7,
    "A30": 165.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.1,
    "L40": 181.1,
    "L4": 121.0,
    "RTX 6000 Ada": 364.2,
    "RTX A6000": 154.8,
    "5090": 209.5,
    "4090": 165.2,
    "4080": 97.5,
    "3090": 71.2,
}
MATMUL = 8192  # side of the matrices of the measured peak


def peak(name: str) -> float | None:
    """Return the data sheet's bf16 peak of a card in TFLOP/s; None for an unknown one."""
    return next((value for part, value in PEAKS.items() if part in name), None)


def describe(device: str) -> dict[str, Any]:
    """Return card, driver, versions and commit, by name."""
    import torch

    card = torch.cuda.get_device_name() if device == "cuda" else "none"
    count = torch.cuda.device_count() if device == "cuda" else 0
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = _output(query) if device == "cuda" else ""
    return {
        "card": card if count < 2 else f"{count} x {card}",
        "driver": driver.splitlines()[0] if driver else "unknown",
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "cudnn": str(torch.backends.cudnn.version() or "none"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "commit": commit(40),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def commit(digits: int) -> str:
    """Return the hash of the checkout, marked if tracked files other than the tables changed."""
    head = _output(["git", "-C", str(ROOT), "rev-parse", f"--short={digits}", "HEAD"])
    changed = _output(
        ["git", "-C", str(ROOT), "status", "--porcelain", "-uno", "--", ".", ":!BENCHMARKS.md"]
    )
    return (head or "unknown") + (" with changes" if changed else "")


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
