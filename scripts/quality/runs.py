"""The runs of ``scripts/showcase.py``: data, options of training, and cells of the table."""

from __future__ import annotations

import json
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ddpm
from ddpm.data import Dataset, Digits, Folder
from ddpm.errors import require
from ddpm.files import replacing
from scripts.quality.images import FeatureSpace, codec_bits, labelled_parts, memorised

VAL_FRACTION = 0.2


@dataclass(frozen=True)
class Cell:
    """A way to draw samples: a sampler, its number of steps, and the guidance scale."""

    sampler: str
    steps: int
    guidance: float = 1.0


@dataclass(frozen=True)
class Task:
    """Runs on the same data, whose numbers are comparable.

    Attributes:
        name: of the folder of the runs.
        data: reads the data, with classes.
        options: of ``ddpm-train``, shared by the runs.
        variants: options of each run by its name in the table.
        cells: ways to draw samples of each run.
        num_samples: samples per cell.
        num_images: held-out images of the likelihood.
        classifier_steps: optimizer steps of the classifier.
    """

    name: str
    data: Callable[[], Dataset]
    options: tuple[str, ...]
    variants: dict[str, tuple[str, ...]]
    cells: tuple[Cell, ...]
    num_samples: int = 1000
    num_images: int = 32
    classifier_steps: int = 400

    @staticmethod
    def folder(variant: str) -> str:
        """Return the name of the run of a variant."""
        return variant.replace(", ", "_")


@dataclass
class Row:
    """Measurements of one cell of one run; None where a quantity is not defined.

    Attributes:
        seconds: of CPU time of all threads for the samples. Unlike wall time, it does not grow
            with other work on the machine.
    """

    task: str
    run: str
    sampler: str
    steps: int
    guidance: float
    fid: float
    accuracy: float | None
    memorised: float
    seconds: float
    val_loss: float
    bpd: float


def digits(max_steps: int | None = None) -> Task:
    """Return the sweep over objectives and schedules on the embedded digits."""
    short = () if max_steps is None else (f"trainer.max_steps={max_steps}",)
    names = ("pred_noise", "pred_x0", "pred_v")
    variants: dict[str, tuple[str, ...]] = {
        f"{objective}, {schedule}": (f"objective={objective}", f"schedule={schedule}")
        for objective in names
        for schedule in ("linear", "cosine")
    }
    variants["pred_flow, rectified"] = ("objective=pred_flow",)
    variants["edm, edm"] = ("objective=edm",)
    cells = Cell("ddpm", 100), Cell("ddim", 20), Cell("unipc", 10), Cell("unipc", 20)
    return Task(
        "digits", lambda: Digits(class_cond=True), ("data=digits", *short), variants,
        (*cells, Cell("dpmpp", 20), Cell("heun", 10)),
    )  # fmt: skip


def unpacked(source: Path, out: Path) -> Path:
    """Return the folder of a folder, or of a .tar.gz that is unpacked into ``out`` once.

    Raises:
        ConfigError: (key ``mnist``) the path does not exist, or is not an archive of one folder.
    """
    if source.is_dir():
        return source
    problem = "no such folder or .tar.gz; it has pictures in a folder per digit"
    require(source.is_file() and tarfile.is_tarfile(source), "mnist", str(source), problem)
    target = out / source.name.split(".")[0]
    if not target.is_dir():
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out) as aside, tarfile.open(source) as archive:
            archive.extractall(aside, filter="data")
            folders = list(Path(aside).iterdir())
            require(len(folders) == 1, "mnist", str(source), "has more than one folder")
            folders[0].rename(target)
    return target


def mnist(folder: Path, max_steps: int | None = None) -> Task:
    """Return the class-conditional run of ``experiment=mnist``.

    Args:
        folder: pictures in a folder per class.
        max_steps: optimizer steps; None = 2000, half of those of the recipe on two cores.
    """
    options = (
        "experiment=mnist", "data=folder", f"data.path={folder}", "trainer.max_minutes=null",
        f"trainer.max_steps={max_steps or 2000}",
    )  # fmt: skip
    cells = Cell("ddim", 20), Cell("unipc", 10), Cell("unipc", 20), Cell("unipc", 20, 2.0)
    return Task(
        "mnist", lambda: Folder(path=str(folder), class_cond=True), options,
        {"pred_v, cosine": ()}, (*cells, Cell("unipc", 20, 4.0)),
    )  # fmt: skip


class Measured:
    """Runs of a task and their measurements.

    Args:
        task: the task.
        out: folder of the runs.
        on_row: called after each finished row.
    """

    def __init__(self, task: Task, out: Path, on_row: Callable[[Row], None]) -> None:
        self.task, self.out, self._on_row = task, out, on_row
        training, held_out = labelled_parts(task.data(), VAL_FRACTION)
        self.features = FeatureSpace(training, held_out, steps=task.classifier_steps)
        self.training = training
        self.context: dict[str, Any] = {
            "floors": self.features.floors(),
            "classifier_accuracy": self.features.accuracy,
            "classifier_sha256": self.features.sha256,
            "codecs": codec_bits(held_out.images),
            "memorised_held_out": memorised(held_out.images, training.images),
            "num_training": len(training),
            "num_held_out": len(held_out),
            "options": [*map(_without_path, task.options), f"data.val_fraction={VAL_FRACTION}"],
        }

    def rows(self) -> list[Row]:
        """Train what is not trained yet, and return the rows of all runs."""
        return [row for name in self.task.variants for row in self._run(name)]

    def _run(self, name: str) -> list[Row]:
        """Return the rows of a run, which are stored beside it: a later command reads them."""
        stored = self.out / self.task.name / f"{self.task.folder(name)}.json"
        if stored.exists():
            return [self._shown(Row(**each)) for each in json.loads(stored.read_text())]
        rows = self._measured(name)
        with replacing(stored) as aside:
            aside.write_text(json.dumps([asdict(row) for row in rows], indent=1))
        return rows

    def _measured(self, name: str) -> list[Row]:
        options, task = self.task.variants[name], self.task
        model = ddpm.train(
            [
                *task.options, *options, f"data.val_fraction={VAL_FRACTION}",
                f"out={self.out / task.name}", f"name={task.folder(name)}",
            ]
        )  # fmt: skip
        numbers = model.evaluate(
            ["bpd", "loss"], reference="val", num_images=task.num_images, cache=None
        ).numbers
        return [self._row(model, name, cell, numbers) for cell in task.cells]

    def _row(self, model: ddpm.TrainedModel, name: str, cell: Cell, numbers: Any) -> Row:
        """Return the measurements of one cell."""
        count, classes = self.task.num_samples, model.spec.num_classes
        labels = None if classes is None else torch.arange(count) % classes
        began = time.process_time()
        images = model.sample(
            count, sampler=cell.sampler, steps=cell.steps, guidance=cell.guidance,
            classes=None if labels is None else list(range(classes or 0)),
        ).data  # fmt: skip
        seconds = time.process_time() - began
        row = Row(
            self.task.name, name, **asdict(cell),
            fid=self.features.fid(images),
            accuracy=None if labels is None else self._accuracy(images, labels),
            memorised=memorised(images, self.training.images),
            seconds=seconds,
            val_loss=numbers["val_loss"],
            bpd=numbers["val_bpd"],
        )  # fmt: skip
        return self._shown(row)

    def _shown(self, row: Row) -> Row:
        self._on_row(row)
        return row

    @torch.inference_mode()
    def _accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Return the share of samples that the classifier takes for the requested class."""
        logits = torch.cat([self.features.network(some)[1] for some in images.split(500)])
        return float((logits.argmax(1).cpu() == labels).double().mean())


def _without_path(option: str) -> str:
    """Return an option of training without a path of this machine."""
    return "data.path=FOLDER" if option.startswith("data.path=") else option
