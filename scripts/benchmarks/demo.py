"""Suite that times the demo: the default training of the digits, from its start to its exit."""

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
from scripts.benchmarks.timing import Machine


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
    """Return the table of the demo, a row per round."""
    machine, results = Machine(), []
    with tempfile.TemporaryDirectory() as folder:  # the first start compiles the source
        commands.seconds_of(TRAIN, ["trainer.max_steps=1"], Path(folder))
    for _ in range(rounds):
        machine.probe()
        with tempfile.TemporaryDirectory() as folder:
            results.append(measured(Path(folder)))
    machine.probe()
    rows = [
        [str(number), f"{each.seconds:.1f}", f"{each.speed:.0f}", f"{each.fid:.4f}"]
        for number, each in enumerate(results, 1)
    ]
    header = ["round", "seconds of the command", "images/s of training", "FID in pixels"]
    facts = (
        "`ddpm-train` without options in an empty folder, which trains on the digits: "
        f"{results[0].steps:,} steps, {results[0].images:,} images. The seconds are those from its "
        "start to its exit, with previews and checkpoints; bytecode is cached. The FID is that of "
        "`ddpm-evaluate ckpt=outputs/latest extractor=pixels`, which is not timed."
    )
    return "\n\n".join((facts, table(header, rows), machine.verdict()))
