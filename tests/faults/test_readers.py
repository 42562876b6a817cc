"""Data workers that hang."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import TINY

HANGS = """
import time
from ddpm.data import Digits
from ddpm.training import batch_loader
__all__ = ["Hangs"]
batch_loader._TIMEOUT_SECONDS = 2.0
class Hangs(Digits):
    def fetch(self, indices, keys):
        time.sleep(1000)
"""


@pytest.mark.slow
def test_hanging_worker_ends_the_run(tmp_path):
    Path(tmp_path, "hang.py").write_text(HANGS)
    options = ("plugins=[hang]", "data._target_=hang.Hangs", "trainer.num_workers=1", "name=h")
    ended = subprocess.run(
        [sys.executable, "-m", "ddpm.cli.train", *options, *TINY],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.strip() == (
        "ddpm-train: trainer.num_workers=1: a data worker died or hangs (out of "
        "memory?): DataLoader timed out after 2.0 seconds; run the same command again, with fewer "
        "workers if needed"
    )
