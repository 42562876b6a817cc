"""The process that runs checks: ``python -m scripts.gpu.worker DEVICE FOLDER NUMBER...``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before the first product on the GPU; only what asks for deterministic algorithms looks at it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

from scripts.gpu.catalog import CHECKS
from scripts.gpu.check import Setting
from scripts.gpu.runner import work


def main() -> None:
    """Run the checks of these numbers."""
    device, folder, *numbers = sys.argv[1:]
    setting = Setting(device, small=device == "cpu", folder=Path(folder))
    work([CHECKS[int(number)] for number in numbers], setting)


if __name__ == "__main__":
    main()
