"""A scheduler signals every process of a job: launcher, trainers and data workers."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.cli.conftest import TINY


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda n: n.name)
def test_all_processes_are_signalled_at_once(tmp_path, processes, number):
    options = (
        "name=s",
        f"launch.processes={processes}",
        "trainer.num_workers=2",
        "trainer.max_steps=100000",
        *TINY,
    )
    started = subprocess.Popen(
        [sys.executable, "-m", "ddpm.cli.train", *options],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    run = Path(tmp_path, "outputs/s")
    try:
        end = time.monotonic() + 90
        while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
            assert time.monotonic() < end and started.poll() is None
            time.sleep(0.1)
        family = psutil.Process(started.pid).children(recursive=True)
        # two data workers each, and with launch.processes a resource tracker each
        assert len(family) >= processes * 2 + (processes > 1) * processes
        for each in [psutil.Process(started.pid), *family]:
            # Python's resource tracker ignores SIGTERM; other signals cause a warning.
            if "resource_tracker" not in " ".join(each.cmdline()) or number == signal.SIGTERM:
                each.send_signal(number)
        _, output = started.communicate(timeout=60)
    finally:
        for each in psutil.Process().children(recursive=True):
            each.kill()
    assert started.returncode == 75, output
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [each["event"] for each in events] == ["started", "stopped"]
    (folder,) = (run / "checkpoints").iterdir()
    assert folder.name == f"step-{events[1]['step']:08d}"
    assert "Traceback" not in output and output.count("stopping after this step") == 1
