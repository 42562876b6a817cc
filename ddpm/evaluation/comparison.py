"""``ddpm-evaluate runs=...``: several models measured alike, in one table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from PIL import Image

from ddpm import __version__
from ddpm.console import echo, say, warn
from ddpm.distributed import devices
from ddpm.distributed.consensus import wait_for_all
from ddpm.distributed.output import writing
from ddpm.drawing import Trained
from ddpm.errors import ConfigError, require
from ddpm.evaluation import results
from ddpm.evaluation.evaluate import SAMPLES, Evaluation, Weights, reported
from ddpm.evaluation.options import answers
from ddpm.evaluation.partial_results import stored_request
from ddpm.files import UNREADABLE
from ddpm.instantiate import completed_if_known
from ddpm.outputs import JOB_RECORD, OutputFolder
from ddpm.report.pages import Report, comparability_warnings, write_comparison
from ddpm.report.run_table import Column, as_text, metric_columns
from ddpm.training import checkpoint
from ddpm.training.run import Run


@dataclass(frozen=True)
class Comparison:
    """Several runs, each evaluated, or found to have been evaluated in the same way.

    Attributes:
        todo: the evaluation; its ``out`` is that of the comparison.
        weights: which of each run.
        device: where.
        precision: of the arithmetic.
    """

    todo: Evaluation
    weights: Weights
    device: devices.Device
    precision: devices.Precision

    def of(self, named: Sequence[str]) -> float:
        """Evaluate and compare; returns the best value of the first metric.

        Raises:
            ConfigError: there are no such runs, or one cannot be evaluated; those before it are,
                and are not evaluated again.
        """
        accelerator = devices.accelerator(self.device, self.precision, key="precision")
        places = [place for one in named for place in _runs(one)]
        places = list({place.resolve(): place for place in places}.values())
        require(bool(places), "runs", list(named), "names no run; name one or more")
        with writing(
            accelerator,
            "evaluate runs=",
            ["report.html"],
            out=self.todo.out,
            default=Path("outputs/comparison"),
        ) as folder:
            best = self._compared(accelerator, places, folder)
        accelerator.end_training()
        return best

    def _compared(
        self, accelerator: Accelerator, places: Sequence[Path], folder: OutputFolder
    ) -> float:
        """Evaluate the runs, and write what they came to into a folder."""
        names, reports = _names(places), []
        for number, place in enumerate(places, 1):
            say(accelerator, f"run {number} of {len(places)}: {place}")
            evaluated, trained = self._evaluated(place, first=number == 1)
            if accelerator.is_main_process:
                reports.append(replace(_read_back(evaluated, trained), run=names[place]))
            wait_for_all(accelerator)
        return self._write(reports, folder) if accelerator.is_main_process else 0.0

    def _evaluated(self, place: Path, *, first: bool) -> tuple[Path, Trained]:
        """The folder of an evaluation of this kind, an old one or a new one."""
        trained = Trained.load(str(place), self.weights, self.device, self.precision)
        found, main = trained.checkpoint, trained.accelerator.is_main_process
        todo = replace(self.todo, out=None)
        if first:  # one number of threads for all, by the first run
            todo.use_threads(trained)
        try:
            judge = todo.judge(trained)
        except ConfigError as error:
            raise ConfigError("runs", str(place), f"cannot be evaluated: {error}") from error
        wanted = todo.request(judge, trained, todo.told(trained, self.weights))
        (there,) = broadcast_object_list([_earlier(found.run, wanted) if main else None])
        if there is None:
            folder, _ = todo.of_model(judge, trained, self.weights)
            return folder, trained
        said = f"was evaluated in this way, see {there} (delete it to have it done again)"
        say(trained.accelerator, said)
        return there, trained

    def _write(self, reports: list[Report], folder: OutputFolder) -> float:
        asked = self.todo.measure.metrics[0]
        metric = next(m.name for m in reports[0].metrics if answers(m.provenance["metric"], asked))
        ranked = write_comparison(folder.aside / "report.html", reports, sort_by=metric)
        for warning in comparability_warnings(reports):
            warn(warning)
        echo(_table(ranked))
        echo(f"done: {folder.path} (report.html)")
        return next(m.value for m in ranked[0].metrics if m.name == metric)


def _runs(named: str) -> list[Path]:
    """The runs in a folder: of one run or checkpoint, of a sweep, or a parent of several."""
    place = Path(named)
    problem = "there is no such folder; give runs, or the folder of a sweep"
    require(place.is_dir(), "runs", named, problem)
    if checkpoint.listed(place) or (place / checkpoint.MANIFEST).is_file():
        return [place]
    inside = [each for each in place.iterdir() if each.is_dir() and not each.is_symlink()]
    inside.sort(key=lambda each: (not each.name.isdigit(), each.name.zfill(9)))
    found = []
    for each in inside:
        if checkpoint.listed(each):
            found.append(each)
        elif (each / JOB_RECORD).is_file():  # a job of a sweep, which came to nothing
            warn(f"{each} has no checkpoint; it is left out")
    problem = "holds no run with a checkpoint; give runs, or the folder of a sweep"
    require(bool(found), "runs", named, problem)
    return found


def _names(places: Sequence[Path]) -> dict[Path, str]:
    """What the runs are called: the names of their folders where these tell them apart."""
    count = Counter(place.name for place in places)
    return {place: place.name if count[place.name] == 1 else str(place) for place in places}


def _earlier(run: Path, wanted: Mapping[str, Any]) -> Path | None:
    """The newest evaluation of a run that answers the same request."""
    plain = json.loads(json.dumps(wanted, default=str))
    folders = sorted((run / "evaluations").glob(f"*/{results.FILE}"), key=_written, reverse=True)
    for file in folders:
        try:
            _, _, content = results.read(file.parent)
            if stored_request(content) == plain and content.get("complete") is not False:
                return file.parent
        except UNREADABLE:
            continue
    return None


def _written(file: Path) -> int:
    return file.stat().st_mtime_ns


def _read_back(folder: Path, trained: Trained) -> Report:
    """What a comparison shows of an evaluation."""
    found = trained.checkpoint
    try:
        metrics, warnings, content = results.read(folder)
    except UNREADABLE as error:
        raise ConfigError("runs", str(folder), "was changed meanwhile; run this again") from error
    try:
        picture = Image.open(folder / SAMPLES).copy()
    except OSError:  # none was drawn, or it is damaged
        picture = None
    return replace(
        reported(Run(found.run), found.step, completed_if_known(found.config)),
        metrics=metrics,
        warnings=warnings,
        provenance={"made by": f"ddpm {__version__}", "evaluation": str(folder)},
        samples=picture,
        seed=seed if isinstance(seed := content.get("seed"), int) else None,
    )


def _table(ranked: Sequence[Report]) -> str:
    """Return the steps and metrics of runs as text, best first."""
    runs = Column("run", [report.run for report in ranked])
    steps = Column("step", [report.step for report in ranked])
    return as_text([runs, steps, *metric_columns([report.metrics for report in ranked])])
