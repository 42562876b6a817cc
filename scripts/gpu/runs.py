"""Parts 4 and 5: kill -9 and resume to the same bits; processes, compile, memory."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from scripts.gpu.check import Check, Result, Setting, SkippedError, require
from scripts.gpu.commands import environment, metrics, run, start, tiny
from scripts.gpu.numerics import CASES, GRADIENT, distance, network, passes
from scripts.gpu.runner import python

NETWORKS = {
    "unet": ["model=unet"],
    "iddpm_unet, importance sampling": ["model=iddpm_unet", "diffusion=iddpm_vlb"],
    "simple_unet": ["model=simple_unet", "model.width=16"],
}


def _fresh(setting: Setting, name: str) -> Path:
    folder = setting.folder / "outputs" / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def killed(which: str, setting: Setting) -> Result:
    """Train twice: uninterrupted, and killed after a checkpoint and resumed."""
    steps = setting.size(120, 12)
    options = [
        *tiny(setting),
        *NETWORKS[which],
        "trainer.precision=bf16",
        "trainer.deterministic=true",
        f"trainer.max_steps={steps}",
        f"trainer.checkpoint_every={steps // 4}",
        "trainer.preview_every=0",
    ]
    if "unet" != which:
        options = [each for each in options if not each.startswith("model.dim")]
    if setting.small and "model=iddpm_unet" in options:
        options += ["trainer.batch_size=4"]
    whole, parts = _fresh(setting, "whole"), _fresh(setting, "parts")
    other = start(setting, "train", "name=whole", *options)
    victim = start(setting, "train", "name=parts", *options)
    first = parts / "checkpoints" / f"step-{steps // 4:08d}" / "manifest.json"
    while not first.exists() and victim.poll() is None:
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    left = len(list((parts / "checkpoints").glob("step-*"))) if first.exists() else 0
    printed, _ = other.communicate()
    last_line = (printed.strip().splitlines() or ["nothing"])[-1]
    require(other.returncode == 0, f"the uninterrupted run failed: {last_line}")
    require(left > 0, "the other run ended before its first checkpoint")
    last = f"step-{steps:08d}"
    require(not (parts / "checkpoints" / last).exists(), "the run had ended before it was killed")
    printed = run(setting, "train", "name=parts", *options)
    require("from step" in printed, "the run did not resume")
    names = ("model.safetensors", "ema.safetensors")
    hashes = [[_sha256(f / "checkpoints" / last / name) for name in names] for f in (whole, parts)]
    states = [_state(folder / "checkpoints" / last / "state.pt") for folder in (whole, parts)]
    require(hashes[0] == hashes[1], f"weights {hashes[0][0][:12]} and {hashes[1][0][:12]}")
    require(states[0] == states[1], "the optimizer's state differs")
    return Result(f"killed after {left} checkpoint(s); weights {hashes[0][0][:12]} in both")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _state(path: Path) -> str:
    """Return a hash of the optimizer's tensors."""
    state = torch.load(path, map_location="cpu", weights_only=True)["optimizer"]["state"]
    digest = hashlib.sha256()
    for index in sorted(state):
        for name in sorted(state[index]):
            digest.update(state[index][name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def processes(setting: Setting) -> Result:
    """Train and sample with two processes."""
    _fresh(setting, "two")
    options = ["launch.processes=2", f"device={setting.device}"]
    rest = [each for each in tiny(setting) if not each.startswith("device")]
    printed = run(setting, "train", "name=two", "trainer.precision=bf16", *options, *rest)
    require("2 processes" in printed, "the run does not report two processes")
    records = metrics(setting, "two")
    detail = f"loss {records[0]['loss']:.3f} to {records[-1]['loss']:.3f}"
    require(records[-1]["loss"] < records[0]["loss"], detail)
    shutil.rmtree(setting.folder / "two-samples", ignore_errors=True)
    drawing = ["ckpt=outputs/two", "num_samples=5", "steps=2", "out=two-samples"]
    run(setting, "sample", *drawing, *options)
    count = len(list((setting.folder / "two-samples" / "images").glob("*.png")))
    require(count == 5, f"{count} of 5 samples")
    gpus = torch.cuda.device_count() if setting.device == "cuda" else 0
    return Result(f"{detail}, {'NCCL' if gpus > 1 else 'gloo'} on {gpus or 'no'} GPU(s)")


def same_loss(option: str, setting: Setting) -> Result:
    """Train with and without an option; compare the losses."""
    if setting.small and option == "trainer.compile=true":
        raise SkippedError("compiling takes minutes on a CPU")
    results, took = [], []
    for name, extra in (("plain", []), ("option", [option])):
        _fresh(setting, name)
        options = [f"trainer.max_steps={setting.size(100, 8)}", "trainer.log_every=4"]
        options += ["trainer.preview_every=0", "trainer.precision=bf16"]
        began = time.monotonic()
        run(setting, "train", f"name={name}", *tiny(setting), *options, *extra)
        took.append(time.monotonic() - began)
        results.append(metrics(setting, name)[-1])
    far = abs(results[1]["loss"] / results[0]["loss"] - 1)
    speeds = [record["samples_per_second"] for record in results]
    detail = f"loss {results[0]['loss']:.4f} and {results[1]['loss']:.4f}, "
    detail += f"{speeds[0]:.0f} and {speeds[1]:.0f} img/s, {took[0]:.0f} and {took[1]:.0f} s"
    require(far < 0.1, detail)
    return Result(detail, {"distance": far, "images_per_second": speeds, "seconds": took})


def checkpointing(setting: Setting) -> Result:
    """Compare the gradient and the peak of memory with and without recomputed activations."""
    case = CASES["iddpm_unet (checkpointing)"]
    batch, results = setting.size(256, 2), []
    for enabled in (True, False):
        made = network(case).to(setting.device)
        for module in made.modules():
            if hasattr(module, "use_checkpoint"):
                module.use_checkpoint = enabled  # pyright: ignore
        if setting.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        gradient = passes(made, case, batch, setting.device)[1]
        peak = torch.cuda.max_memory_allocated() if setting.device == "cuda" else 0
        results.append((gradient, peak))
    far = distance(results[0][0], results[1][0])
    detail = f"gradient {far:.1e}"
    if setting.device == "cuda":
        detail += f", {results[0][1] / 2**20:.0f} in place of {results[1][1] / 2**20:.0f} MiB"
        require(results[0][1] < results[1][1], detail)
    require(far <= GRADIENT, detail)
    return Result(detail)


def out_of_memory(setting: Setting) -> Result:
    """Exceed the memory; require a one-line error with the remedy."""
    _fresh(setting, "large")
    options = ["name=large", f"device={setting.device}", "data.image_size=512", "model.dim=512"]
    options += ["trainer.batch_size=512", "trainer.preview_every=0"]
    program = f"import resource as r; r.setrlimit(r.RLIMIT_AS, ({10 * 2**30},) * 2); "
    program += "from ddpm.cli.train import main; main()"
    if setting.device == "cpu":  # a limit, so that no machine is large enough
        options += ["model.dim=64", "trainer.batch_size=128"]
        printed = _run_program(setting, program, options)
    else:
        printed = run(setting, "train", *options, status=1)
    errors = [line for line in printed.splitlines() if line.startswith("ddpm-train: ")]
    require("Traceback" not in printed, "a traceback in place of a line")
    require(len(errors) == 1 and "ran out of memory" in errors[0], f"printed {errors}")
    require("trainer.accumulate=" in errors[0], errors[0])
    return Result(errors[0])


def accumulation(setting: Setting) -> Result:
    """Train with ``accumulate=auto`` in little memory, then resume; require one trial."""
    _fresh(setting, "divided")
    batch_size = setting.size(16384, 16)
    options = ["name=divided", *tiny(setting), "trainer.accumulate=auto"]
    options += [f"trainer.batch_size={batch_size}", "trainer.preview_every=0"]
    occupied = _occupied(setting)
    printed = run(setting, "train", *options, "trainer.max_steps=2")
    again = run(setting, "train", *options, "trainer.max_steps=3")
    del occupied
    lines = [line for line in printed.splitlines() if line.startswith("accumulate: ")]
    require(len(lines) == 1, f"printed {lines}")
    numbers = [int(number) for number in re.findall(r"\d+", lines[0])]
    if setting.device == "cuda":  # 8 (a micro-batch of 2048 items fits ..., one of 4096 does not)
        steps, size, larger = numbers
        require(steps > 1 and steps * size == batch_size and larger == 2 * size, lines[0])
    stored = (setting.folder / "outputs" / "divided" / "config.yaml").read_text(encoding="utf-8")
    require(f"  accumulate: {numbers[0]}\n" in stored, "the run does not store the choice")
    require("from step 2" in again and "accumulate: " not in again, "the resumed run tried again")
    return Result(lines[0])


def _occupied(setting: Setting) -> torch.Tensor:
    """Return a tensor that leaves little memory on the GPU: for a process, its margin and 2 GiB."""
    if setting.device == "cpu":
        return torch.empty(0)
    free, total = torch.cuda.mem_get_info()
    size = max(free - total // 20 - 3 * 2**30, 0)
    return torch.empty(size, dtype=torch.uint8, device="cuda")


def _run_program(setting: Setting, program: str, options: list[str]) -> str:
    """Run a program that ends with status 1, and return what it printed."""
    done = subprocess.run(
        python("-c", program, *options),
        cwd=setting.folder,
        env={**environment(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    require(done.returncode == 1, f"status {done.returncode}")
    return done.stdout


def _with(option: str) -> Callable[[Setting], Result]:
    return partial(same_loss, option)


KILLS = [
    Check(
        4,
        f"kill -9 and resume, bf16 and deterministic, {name}: the same bits",
        partial(killed, name),
        seconds=25.0,
        limit=150.0,
    )
    for name in NETWORKS
]
OPTIONS = [
    Check(5, "out of memory: one line with the remedy", out_of_memory, 15.0),
    Check(5, "trainer.accumulate=auto: divides a batch that does not fit", accumulation, 25.0),
    Check(5, "launch.processes=2: training and sampling", processes, 30.0, limit=180.0),
    Check(5, "use_checkpoint: the same gradient, less memory", checkpointing, 5.0),
    Check(
        5,
        "trainer.channels_last=true: loss within 10 %",
        _with("trainer.channels_last=true"),
        seconds=25.0,
    ),
    Check(
        5,
        "trainer.compile=true: loss within 10 %",
        _with("trainer.compile=true"),
        seconds=60.0,
        limit=240.0,
    ),
]
