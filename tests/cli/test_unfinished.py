"""Interrupted evaluations: finished metrics are stored, and the same command continues."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from ddpm import metrics
from ddpm.errors import Stopped
from ddpm.evaluation import likelihood_metrics, sample_metrics

OPTIONS = (
    "metrics=[fid,kid,bpd,loss]",
    "num_samples=9",
    "steps=2",
    "num_images=6",
    "bound_steps=3",
    "batch_size=4",
)
CALLS = {
    "generate": sample_metrics,
    "bits_per_dimension": likelihood_metrics,
    "kid": metrics,
    "fid": metrics,
}


class Calls(dict):
    stop: dict[str, int]


@pytest.fixture
def calls(monkeypatch):
    """Count calls by name; ``calls.stop[name] = n`` interrupts the n-th call of ``name``."""

    counted = Calls.fromkeys(CALLS, 0)
    counted.stop = {}

    def count(name, real):
        def counting(*arguments, **options):
            counted[name] += 1
            if counted.stop.get(name) == counted[name]:
                raise Stopped("stopped by SIGTERM")
            return real(*arguments, **options)

        return counting

    for name, module in CALLS.items():
        monkeypatch.setattr(module, name, count(name, getattr(module, name)))
    return counted


def content(folder):
    return json.loads(Path(folder, "evaluation.json").read_text())


def numbers(folder):
    return {row["name"]: (row["value"], row["error"]) for row in content(folder)["metrics"]}


def files(folder):
    return {path.name for path in Path(folder).iterdir()}


@pytest.mark.parametrize(
    ("name", "at", "finished", "again"),
    [
        pytest.param(
            "generate",
            2,
            [],
            {"generate": 2, "fid": 1, "kid": 1, "bits_per_dimension": 2},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "kid",
            1,
            ["fid_9"],
            {"generate": 0, "fid": 0, "kid": 1, "bits_per_dimension": 2},
            marks=pytest.mark.slow,
        ),
        (
            "bits_per_dimension",
            2,
            ["fid_9", "kid_9"],
            {"generate": 0, "fid": 0, "kid": 0, "bits_per_dimension": 1},
        ),
    ],
)
def test_finished_metrics_are_stored_and_the_same_command_continues(
    command, trained, calls, name, at, finished, again
):
    options = (f"ckpt={trained}", *OPTIONS)
    assert command("evaluate", *options, "out=whole").status == 0
    calls.update(dict.fromkeys(calls, 0))
    calls.stop = {name: at}
    ended = command("evaluate", *options)
    (folder,) = Path(trained, "evaluations").iterdir()
    hint = f"{folder} contains what is finished; the same command continues the evaluation"
    assert ended.status == 75 and ended.line == f"ddpm-evaluate: stopped by SIGTERM; {hint}"
    assert content(folder)["complete"] is False and list(numbers(folder)) == finished
    calls.update(dict.fromkeys(calls, 0))
    calls.stop = {}
    ended = command("evaluate", *options)
    assert ended.status == 0, ended.err
    assert f"continuing the unfinished evaluation in {folder}\n" in ended.out
    assert dict(calls) == again and numbers(folder) == numbers("whole")
    assert files(folder) == files("whole") and "complete" not in content(folder)
    page, whole = (Path(each, "report.html").read_text() for each in (folder, "whole"))
    assert page.replace(str(folder), "whole") == whole
    assert command("evaluate", *options).status == 0  # a finished one is evaluated again
    assert len(list(Path(trained, "evaluations").iterdir())) == 2


def test_no_folder_without_finished_metrics(command, trained, calls):
    calls.stop = {"generate": 1}
    ended = command("evaluate", f"ckpt={trained}", *OPTIONS)
    assert ended.status == 75 and ended.line == "ddpm-evaluate: stopped by SIGTERM"
    assert not Path(trained, "evaluations").exists()


def test_another_request_does_not_continue_it(command, trained, calls):
    calls.stop = {"kid": 1}
    options = (f"ckpt={trained}", *OPTIONS)
    assert command("evaluate", *options).status == 75
    calls.stop = {}
    ended = command("evaluate", *options, "seed=1")
    assert ended.status == 0 and "continuing" not in ended.out
    complete = [
        content(each).get("complete", True) for each in Path(trained, "evaluations").iterdir()
    ]
    assert sorted(complete) == [False, True]


def test_a_named_folder_is_continued_or_restarted_for_another_request(command, trained, calls):
    options = (f"ckpt={trained}", *OPTIONS, "out=o")
    calls.stop = {"kid": 1}
    assert command("evaluate", *options).status == 75
    stored = sorted(Path("o/.ddpm-unfinished").glob("samples-*.safetensors"))
    assert [path.name for path in stored] == [f"samples-0000000{n}.safetensors" for n in (0, 4, 8)]
    stored[1].unlink()
    calls.stop = {"generate": 4}
    assert command("evaluate", *options).status == 75 and list(numbers("o")) == ["fid_9"]
    calls.stop, calls["generate"] = {"kid": 2}, 0
    assert command("evaluate", *options).status == 75 and calls["generate"] == 1
    calls["generate"] = 0
    calls.stop = {}
    assert command("evaluate", *options, "seed=1").status == 0 and calls["generate"] == 3
    assert content("o")["metrics"][0]["seed"] == 1 and ".ddpm-unfinished" not in files("o")


@pytest.mark.slow
def test_a_damaged_part_is_computed_again(command, trained, calls):
    options = (f"ckpt={trained}", *OPTIONS, "out=o")
    assert command("evaluate", *options).status == 0
    whole = numbers("o")
    calls.update(dict.fromkeys(calls, 0))
    calls.stop = {"kid": 1}
    assert command("evaluate", *options).status == 75
    Path("o/.ddpm-unfinished/samples-00000004.safetensors").write_bytes(b"nothing")
    calls.stop, calls["generate"] = {}, 0
    ended = command("evaluate", *options)
    assert ended.status == 0 and calls["generate"] == 1 and numbers("o") == whole
    assert "samples-00000004.safetensors is damaged" in ended.err


def test_images_and_comparisons_are_continued_too(command, trained, calls):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1)).astype(np.uint8)
    np.savez("s.npz", arr_0=pixels)
    options = ("samples=s.npz", "reference=digits", "metrics=[fid,kid]", "extractor=pixels")
    calls.stop = {"kid": 1}
    assert command("evaluate", *options).status == 75
    calls.stop, calls["fid"] = {"kid": 3}, 0
    ended = command("evaluate", *options)
    assert ended.status == 0 and calls["fid"] == 0
    assert "continuing the unfinished evaluation in outputs/evaluation\n" in ended.out
    assert list(numbers("outputs/evaluation")) == ["fid_20", "kid_20"]
    assert command("evaluate", f"runs=[{trained}]", *OPTIONS).status == 75
    calls["generate"] = 0
    ended = command("evaluate", f"runs=[{trained}]", *OPTIONS)
    assert ended.status == 0 and calls["generate"] == 0 and "continuing" in ended.out


def test_long_work_is_estimated_and_the_estimate_is_corrected(capsys, monkeypatch):
    from ddpm.evaluation import time_estimate

    clock = iter([100.0, 700.0, 1400.0, 1500.0])
    monkeypatch.setattr(time_estimate.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(time_estimate, "median_seconds", lambda *_, **__: 0.5)
    stages = [
        time_estimate.Stage("fid, kid", "samples", "num_samples", 1000, 50, 20),
        time_estimate.Stage("bpd", "bpd", "num_images", 128, 1000, 2),
        time_estimate.Stage("loss", "loss", "num_images", 128, 4, 2),
    ]
    expected = time_estimate.Estimate(main=True)
    expected.stages = stages
    pipeline = SimpleNamespace(benchmark_call=lambda *_: None, device=torch.device("cpu"))
    expected.begin(pipeline, None, 64)
    for name in ("fid, kid", "bpd", "loss"):
        expected.done(name)
    assert capsys.readouterr().out.splitlines() == [
        "fid, kid: num_samples=1000 of 50 network calls each: about 8 min on this machine; "
        "num_samples=100 takes 50 s",
        "bpd: num_images=128 of 1000 network calls each: about 17 min on this machine; "
        "num_images=12 takes 2 min",
        "in all about 25 min",
        "fid, kid: done; about 20 min left",
    ]


class Slow(torch.nn.Module):
    """An extractor that takes minutes for a batch, in one call, if the images are bright."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1).float()
        work, times = torch.rand(64, 64), 1
        if bool(images.max() > 200):
            times = 100_000_000
        for _ in range(times):
            work = work @ work / 64
        return flat + work.sum() * 0


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_stops_a_long_call_of_a_library(command, trained, processes):
    torch.jit.script(Slow()).save("slow.pt")
    np.savez("dark.npz", arr_0=np.arange(20 * 64, dtype=np.uint8).reshape(20, 8, 8, 1) % 100)
    options = ("extractor=custom", "extractor.path=slow.pt", "reference=dark.npz", "metrics=[fid]")
    process = subprocess.Popen(
        [sys.executable, "-m", "ddpm.cli.evaluate", f"ckpt={trained}", *OPTIONS[1:], *options,
         f"launch.processes={processes}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert any(line.startswith("results go to") for line in process.stdout)
    time.sleep(3)
    children = psutil.Process(process.pid).children()
    workers = [each for each in children if "spawn_main" in str(each.cmdline())]
    process.send_signal(signal.SIGTERM)
    if processes == 1:
        process.wait(timeout=5)
    else:  # the launcher's own clean-up is not the work
        assert len(workers) == processes and not psutil.wait_procs(workers, timeout=5)[1]
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "ddpm-evaluate: stopped by SIGTERM" in err
    assert not list(Path(trained, "evaluations").glob("*/report.html"))


LONG = """
import sys, time
from ddpm import metrics
from ddpm.cli import evaluate
def kid(*_):
    import numpy
    print("kid", flush=True)
    numpy.linalg.eigvals(numpy.random.default_rng(0).random((6000, 6000)))
metrics.kid = kid
evaluate.main()
"""


@pytest.mark.slow
def test_a_signal_stops_a_score_and_finished_ones_are_stored(command, trained):
    Path("long.py").write_text(LONG)
    process = subprocess.Popen(
        [sys.executable, "long.py", f"ckpt={trained}", *OPTIONS],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and any(line == "kid\n" for line in process.stdout)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 5 and process.returncode == 75, err
    assert "the same command continues the evaluation" in err
    (folder,) = Path(trained, "evaluations").iterdir()
    assert list(numbers(folder)) == ["fid_9"]
