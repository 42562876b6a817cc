"""GPU check: its table, its worker, and small versions of its parts on the CPU."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ddpm.diffusion import DiffusionLoss
from scripts.gpu import machine, numerics, scaler, speed
from scripts.gpu.catalog import CHECKS
from scripts.gpu.check import Check, Result, Setting
from scripts.gpu.improved_style import ImprovedStyle
from scripts.gpu.report import Line, Report
from scripts.gpu.runner import run_all

ROOT = Path(__file__).parents[1]
# Script of the worker process in the tests.
WORKER = """
import os, signal, sys, time
from scripts.gpu.check import Check, Result, SkippedError
from scripts.gpu.runner import work

def passes(_): return Result("0.5 of 1", {"share": 0.5})
def fails(_): raise AssertionError("2 is not 1")
def breaks(_): raise RuntimeError("CUDA error: an illegal\\nmemory access")
def crashes(_): os._exit(3)
def dies(_): os.kill(os.getpid(), signal.SIGKILL)
def hangs(_): time.sleep(600)
def skips(_): raise SkippedError("there is one GPU")
def talks(_): print("noise"); print("gpu", file=sys.stderr); return Result()

all = [passes, fails, skips, breaks, crashes, dies, hangs, talks]
work([Check(1, "", all[int(number)]) for number in sys.argv[1:]], None)
"""


@pytest.fixture
def report(tmp_path):
    return Report(tmp_path, {"card": "H100", "commit": "abc"}, "In a test.")


def outcomes(report):
    return [(line.outcome, line.detail) for line in report.lines]


def test_failures_of_a_check_do_not_stop_the_others(report, tmp_path):
    numbers = (0, 1, 2, 3, 4, 5, 7)
    checks = {n: Check(1, f"check {n}", lambda _: Result(), 0.0, 30.0) for n in numbers}
    worker, log = [sys.executable, "-c", WORKER], tmp_path / "worker.log"
    run_all(checks, report, worker, until=time.monotonic() + 300, folder=tmp_path)
    assert outcomes(report) == [
        ("pass", "0.5 of 1"),
        ("FAIL", "2 is not 1"),
        ("skip", "there is one GPU"),
        ("FAIL", "RuntimeError: CUDA error: an illegal memory access"),
        ("FAIL", f"its process ended with status 3; see {log}"),
        ("FAIL", f"its process ended with SIGKILL; see {log}"),
        ("pass", ""),
    ]
    assert report.failed == 4 and report.summary() == "2 passed, 4 failed, 1 skipped"
    assert report.lines[0].data == {"share": 0.5}
    assert "noise\n" in log.read_text() and "2 is not 1" in log.read_text()


def test_a_check_that_hangs_is_killed(report, tmp_path):
    checks = {n: Check(1, f"check {n}", lambda _: Result(), 0.0, 2.0) for n in (0, 6, 7)}
    worker = [sys.executable, "-c", WORKER]
    run_all(checks, report, worker, until=time.monotonic() + 300, folder=tmp_path)
    assert outcomes(report) == [("pass", "0.5 of 1"), ("FAIL", "no answer after 2 s"), ("pass", "")]


def test_checks_that_exceed_the_time_are_skipped(report, tmp_path):
    checks = {
        0: Check(1, "short", lambda _: Result(), 0.0, 9.0),
        1: Check(2, "long", lambda _: Result(), 1000.0, 2000.0),
        7: Check(3, "short again", lambda _: Result(), 0.0, 9.0),
    }
    worker = [sys.executable, "-c", WORKER]
    run_all(checks, report, worker, until=time.monotonic() + 500, folder=tmp_path)
    skip = "does not fit into the time that is left; use a larger --minutes"
    assert outcomes(report) == [("pass", "0.5 of 1"), ("skip", skip), ("pass", "")]


def test_the_table_is_written_after_each_line(report, tmp_path, capsys):
    report.begin()
    for number, outcome in enumerate(("pass", "FAIL"), start=1):
        report.add(Line(1, f"a|b {number}", outcome, "1e-5\nand more", 1.25, {"x": number}))
        table = json.loads((tmp_path / "gpu_check.json").read_text())
        assert table["machine"] == {"card": "H100", "commit": "abc"}
        assert len(table["lines"]) == number and table["lines"][-1]["data"] == {"x": number}
        text = (tmp_path / "gpu_check.md").read_text()
        assert f"| 1 | a\\|b {number} | {outcome} | 1e-5 and more | 1.2 |\n" in text
    assert text.endswith("\n1 passed, 1 failed, 0 skipped\n") and "- card: H100\n" in text
    printed = capsys.readouterr().out
    assert "card         H100\n" in printed and "   1  FAIL       1.2s  a|b 2: 1e-5" in printed


@pytest.mark.parametrize(
    ("card", "peak"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 311.9),
        ("NVIDIA A10", 125.0),
        ("NVIDIA L40S", 362.1),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("Tesla K80", None),
    ],
)
def test_the_peak_of_a_card(card, peak):
    assert machine.peak(card) == peak


def test_checks_are_ordered_by_part_and_have_unique_names():
    parts = [check.part for check in CHECKS]
    assert parts == sorted(parts) and set(parts) == {1, 2, 3, 4, 5}
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert sum(check.seconds for check in CHECKS if check.part < 4) < 300


def test_small_versions_of_some_parts(tmp_path):
    """Run the parts of up to a second; the slow test below runs all."""
    setting = Setting("cpu", True, tmp_path)
    assert numerics.losses(setting).data == {"distance": 0.0}
    assert numerics.samplers(setting).detail.startswith("at most 0.0e+00; mean 0.3")
    skipped = scaler.overflow(setting).data["skipped"]
    assert 1 <= skipped < scaler.STEPS


def test_a_difference_from_the_cpu_fails():
    x = torch.ones(4)
    assert numerics.distance(x, x) == 0 and numerics.distance(x * 1.5, x) == 0.5
    assert numerics.distance(x * torch.nan, x) == float("inf")


def test_the_reference_training_step_has_the_same_loss():
    """Otherwise, the comparison of speeds would be meaningless."""
    process = speed.process()
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 6, 3, padding=1)
    network.forward = lambda x, t, plain=network.forward: plain(x) + t[:, None, None, None] / 4000
    reference = ImprovedStyle(network, process.schedule, "cpu", None)
    x0, noise = torch.randn(2, 8, 3, 4, 4).clamp(-1, 1).unbind()
    t = torch.tensor([0, 1, 5, 500, 1000, 2000, 3000, 3999])
    losses = reference._losses(x0, t, noise)
    expected = DiffusionLoss(process)(network, x0, t, noise)
    torch.testing.assert_close(losses, expected, rtol=2e-3, atol=1e-5)
    before = [each.clone() for each in reference.average]
    reference.step(torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8))
    assert set(reference.logged) > {"loss", "grad_norm"}
    assert not any(torch.equal(a, b) for a, b in zip(reference.average, before, strict=True))


@pytest.mark.slow
def test_small_version_of_the_whole_check(tmp_path):
    command = [sys.executable, str(ROOT / "scripts/gpu_check.py"), "--device", "cpu"]
    done = subprocess.run(
        [*command, "--minutes", "60", "--out", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the checks run in miniature on the CPU" in done.stdout
    lines = json.loads((tmp_path / "gpu_check.json").read_text())["lines"]
    assert len(lines) == len(CHECKS)
    skipped = [line["name"] for line in lines if line["outcome"] == "skip"]
    assert all("fp16" in name or "compile" in name for name in skipped), skipped
