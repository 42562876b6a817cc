"""Part 2: the commands on the digits, in each precision, and the scaler of fp16."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scripts.gpu.check import Check, Result, Setting, SkippedError, require
from scripts.gpu.machine import ROOT
from scripts.gpu.runner import python

PRECISIONS = {"bf16": "bf16", "fp16": "fp16", "fp32": "no"}
COMMANDS = ("train", "sample", "interpolate", "evaluate")
ALIKE = 2.0  # grey levels between samples of the GPU and of the CPU, on average


def environment() -> dict[str, str]:
    """Return the environment of a command: the checkout's package, whatever is installed."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def start(setting: Setting, name: str, *options: str) -> subprocess.Popen[str]:
    """Start ``ddpm-NAME`` in the folder of the checks."""
    setting.folder.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        python("-m", f"ddpm.cli.{name}", *options),
        cwd=setting.folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(setting: Setting, name: str, *options: str, status: int = 0) -> str:
    """Run a command to its end and return what it printed; fail for another exit status."""
    process = start(setting, name, *options)
    printed, _ = process.communicate()
    lines = [line for line in printed.splitlines() if line.strip()]
    last_line = lines[-1] if lines else "nothing"
    detail = f"ddpm-{name} ended with status {process.returncode}: {last_line}"
    if process.returncode != status:
        print(printed, flush=True)
    require(process.returncode == status, detail)
    return printed


def tiny(setting: Setting) -> list[str]:
    """Return the options of a short training on the digits."""
    steps = setting.size(400, 20)
    options = [
        f"device={setting.device}",
        f"trainer.max_steps={steps}",
        f"trainer.log_every={steps // 10}",
        f"trainer.preview_every={steps // 2}",
        "trainer.preview_samples=8",
        "sampler.steps=4",
        f"trainer.lr_warmup={steps // 20}",
    ]
    return options + (["model.dim=16", "trainer.batch_size=16"] if setting.small else [])


def metrics(setting: Setting, name: str) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl that have a loss."""
    text = (setting.folder / "outputs" / name / "metrics.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines()]
    return [record for record in records if record.get("loss") is not None]


class Chain:
    """The commands of one precision one after the other, on a thread; checks wait for each."""

    def __init__(self, setting: Setting, kind: str) -> None:
        self.setting, self.kind = setting, kind
        self.results: dict[str, Future[Result]] = {name: Future() for name in COMMANDS}

    def __call__(self) -> None:
        """Run all commands; without a trained model the others are not run."""
        trained = False
        for name in COMMANDS:
            future = self.results[name]
            try:
                if name != "train" and not trained:
                    raise SkippedError("no trained model")
                future.set_result(getattr(self, name)())
                trained = True
            except Exception as error:
                future.set_exception(error)

    def train(self) -> Result:
        """Train; require that the loss falls."""
        shutil.rmtree(self.setting.folder / "outputs" / self.kind, ignore_errors=True)
        options = [f"name={self.kind}", f"trainer.precision={PRECISIONS[self.kind]}"]
        held_out = ["data.class_cond=true", "data.val_fraction=0.1"]
        run(self.setting, "train", *options, *held_out, *tiny(self.setting))
        records = metrics(self.setting, self.kind)
        first, last = records[0]["loss"], records[-1]["loss"]
        speed = max(record["samples_per_second"] for record in records)
        detail = f"loss {first:.3f} to {last:.3f}, {speed:.0f} img/s"
        require(last < first * (1.0 if self.setting.small else 0.7), detail)
        return Result(detail, {"first": first, "last": last, "images_per_second": speed})

    def _options(self) -> list[str]:
        return [
            f"ckpt=outputs/{self.kind}",
            f"device={self.setting.device}",
            f"precision={PRECISIONS[self.kind]}",
            f"steps={self.setting.size(20, 3)}",
        ]

    def sample(self) -> Result:
        """Draw samples with classes, stochastically."""
        folder = self._out("samples")
        count = self.setting.size(64, 4)
        options = [f"num_samples={count}", "sampler=ddpm", "classes=[3,7]", f"out={folder.name}"]
        run(self.setting, "sample", *self._options(), *options)
        return Result(f"{self._varied(folder, count)} images")

    def interpolate(self) -> Result:
        """Draw frames between two seeds."""
        folder = self._out("frames")
        options = ["num_frames=5", "classes=[3,7]", f"out={folder.name}"]
        run(self.setting, "interpolate", *self._options(), "a=1", "b=2", *options)
        return Result(f"{self._varied(folder, 5)} frames")

    def evaluate(self) -> Result:
        """Compute FID of pixels, and the held-out loss and bound."""
        folder = self._out("evaluation")
        count = self.setting.size(512, 16)
        options = [f"num_samples={count}", "metrics=[fid,loss,bpd]", "bound_steps=4"]
        options += [f"num_images={count // 4}", "cache=null", f"out={folder.name}"]
        run(self.setting, "evaluate", *self._options(), *options)
        evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        numbers = {each["name"]: each["value"] for each in evaluation["metrics"]}
        require(all(math.isfinite(value) for value in numbers.values()), str(numbers))
        shown = {k: v for k, v in numbers.items() if "_q" not in k}
        return Result(", ".join(f"{k} {v:.4g}" for k, v in shown.items()), numbers)

    def _out(self, what: str) -> Path:
        folder = self.setting.folder / f"{what}-{self.kind}"
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def _varied(self, folder: Path, count: int) -> int:
        images = pixels(folder)
        require(len(images) == count, f"{len(images)} images in place of {count}")
        require(float(images.std(axis=0).max()) > 0, "all images are equal")
        return count


def pixels(folder: Path) -> np.ndarray[Any, Any]:
    """Return the images of a folder of samples, in order."""
    paths = sorted((folder / "images").glob("*.png"))
    return np.stack([np.asarray(Image.open(path)) for path in paths]).astype(float)


def _of_chain(kind: str, name: str, setting: Setting) -> Result:
    """Wait for a command of a chain; the chains of a GPU run beside one another."""
    if kind == "fp16" and setting.device == "cpu":
        raise SkippedError("fp16 needs a GPU")
    if "chains" not in setting.shared:
        kinds = [each for each in PRECISIONS if each != "fp16" or setting.device == "cuda"]
        chains = {each: Chain(setting, each) for each in kinds}
        pool = ThreadPoolExecutor(len(chains) if setting.device == "cuda" else 1)
        for chain in chains.values():
            pool.submit(chain)
        setting.shared["chains"] = chains
    return setting.shared["chains"][kind].results[name].result()


def equal_losses(setting: Setting) -> Result:
    """Compare the last losses of the precisions."""
    kinds = [k for k in PRECISIONS if (setting.folder / "outputs" / k / "metrics.jsonl").exists()]
    if "fp32" not in kinds or len(kinds) < 2:
        raise SkippedError("fewer than two runs to compare")
    last = {kind: metrics(setting, kind)[-1]["loss"] for kind in kinds}
    detail = ", ".join(f"{kind} {loss:.4f}" for kind, loss in last.items())
    require(all(abs(v / last["fp32"] - 1) < 0.15 for v in last.values()), detail)
    return Result(detail, last)


def equal_samples(setting: Setting) -> Result:
    """Compare samples of the same seeds on the two devices, in batches of another size."""
    if not (setting.folder / "outputs" / "fp32" / "checkpoints").exists():
        raise SkippedError("no trained model")
    drawn = []
    for device in ("cpu", setting.device):
        folder = setting.folder / f"alike-{len(drawn)}"
        shutil.rmtree(folder, ignore_errors=True)
        options = ["ckpt=outputs/fp32", "num_samples=8", "sampler=ddpm", f"out={folder.name}"]
        options.append(f"batch_size={8 - 5 * len(drawn)}")
        run(setting, "sample", *options, f"device={device}", f"steps={setting.size(20, 3)}")
        drawn.append(pixels(folder))
    far = np.abs(drawn[0] - drawn[1])
    detail = f"mean {far.mean():.3f}, largest {far.max():.0f} of 255"
    require(far.mean() <= ALIKE, detail)
    return Result(detail, {"mean": float(far.mean()), "largest": float(far.max())})


def _chain(kind: str, name: str) -> Callable[[Setting], Result]:
    return partial(_of_chain, kind, name)


CHECKS = [
    *(
        Check(
            2,
            f"ddpm-{name} in {kind}" + (": the loss falls" if name == "train" else ""),
            _chain(kind, name),
            seconds=12.0 if kind == "bf16" else 2.0,
            limit=150.0,
        )
        for name in COMMANDS
        for kind in PRECISIONS
    ),
    Check(2, "last losses of all precisions within 15 % of fp32", equal_losses, 1.0),
    Check(2, f"samples as the CPU's, within {ALIKE} of 255 on average", equal_samples, 20.0),
]
