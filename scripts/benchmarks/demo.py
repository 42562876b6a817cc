"""Suite that times the demo, the default training of the digits, beside a faster training."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from scripts.benchmarks import commands
from scripts.benchmarks.commands import EVALUATE, TRAIN
from scripts.benchmarks.tables import table
from scripts.benchmarks.timing import Machine, ratio

FASTER = (  # the fastest with the FID of the default: "Fewer images for the digits", BENCHMARKS.md
    "model.dim=16",
    "trainer.lr=3e-3",
    "trainer.lr_decay=cosine",
    "trainer.max_steps=1300",
    "trainer.preview_every=650",
    "trainer.checkpoint_every=650",
)

WHAT = ("seconds", "images/s", "FID in pixels")


@dataclass(frozen=True)
class Demo:
    """A training.

    Attributes:
        seconds: of the whole command.
        steps: optimizer steps.
        images: of all steps.
        speed: images per second of the steps.
        fid: of the samples in pixels.
    """

    seconds: float
    steps: int
    images: int
    speed: float
    fid: float


def measured(folder: Path, training: Sequence[str] = (), evaluation: Sequence[str] = ()) -> Demo:
    """Run a training in an empty folder, then the evaluation of its samples, which is not timed.

    Args:
        folder: an empty folder.
        training: options of the training.
        evaluation: options of the evaluation.

    Raises:
        RuntimeError: a command failed.
    """
    seconds = commands.seconds_of(TRAIN, training, folder)
    lines = (folder / "outputs" / "latest" / "metrics.jsonl").read_text(encoding="utf-8")
    records = [json.loads(line) for line in lines.splitlines()]
    arguments = ["ckpt=outputs/latest", "extractor=pixels", "out=evaluation", *evaluation]
    commands.seconds_of(EVALUATE, arguments, folder)
    report = (folder / "evaluation" / "evaluation.json").read_text(encoding="utf-8")
    (fid,) = (row["value"] for row in json.loads(report)["metrics"])
    step, images = (records[-1][key] for key in ("step", "samples"))
    return Demo(seconds, step, images, speed_of(records), fid)


def speed_of(records: Sequence[dict[str, float]]) -> float:
    """Return the images per second of all steps, without the time between them."""
    ends = [0.0, *(record["samples"] for record in records)]
    speeds = [record["samples_per_second"] for record in records]
    return statistics.harmonic_mean(
        speeds, weights=[stop - start for start, stop in pairwise(ends)]
    )


def demo(rounds: int) -> str:
    """Return the table of the demo: a row per round, of the default and of the faster training."""
    machine, default, faster = Machine(), list[Demo](), list[Demo]()
    with tempfile.TemporaryDirectory() as folder:  # the first start compiles the source
        commands.seconds_of(TRAIN, ["trainer.max_steps=1"], Path(folder))
    pairs = [(default, ()), (faster, FASTER)]
    for number in range(rounds):
        for results, options in pairs if number % 2 == 0 else reversed(pairs):
            machine.probe()
            with tempfile.TemporaryDirectory() as folder:
                results.append(measured(Path(folder), options))
    machine.probe()
    rows = [
        [str(number), *columns(slow), *columns(fast)]
        for number, (slow, fast) in enumerate(zip(default, faster, strict=True), 1)
    ]
    header = ["round", *(f"{which}: {what}" for which in ("default", "faster") for what in WHAT)]
    gain = ratio([each.seconds for each in default], [each.seconds for each in faster])
    facts = (
        "`ddpm-train` without options in an empty folder, which trains on the digits: "
        f"{default[0].steps:,} steps, {default[0].images:,} images. Beside it, in turns, "
        f"`ddpm-train {' '.join(FASTER)}`, {faster[0].images:,} images. The seconds are those from "
        "start to exit, with previews and checkpoints; bytecode is cached. The FID is that of "
        "`ddpm-evaluate ckpt=outputs/latest extractor=pixels`, which is not timed. "
        f"Speed-up over the default: {gain}."
    )
    return "\n\n".join((facts, table(header, rows), machine.verdict()))


def columns(result: Demo) -> list[str]:
    """Return the cells of a training."""
    return [f"{result.seconds:.1f}", f"{result.speed:.0f}", f"{result.fid:.4f}"]
