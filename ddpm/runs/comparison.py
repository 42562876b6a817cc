"""``ddpm-evaluate runs=...``: several runs evaluated with the same options, in one table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from PIL import Image

from ddpm.arithmetic import PrecisionOption
from ddpm.config.registry import config_with_defaults_if_known
from ddpm.console import info, info_once, warn
from ddpm.distributed import devices
from ddpm.distributed.consensus import broadcast, wait_for_all
from ddpm.distributed.output import writing
from ddpm.errors import ConfigError, require
from ddpm.evaluation import results
from ddpm.evaluation.options import matches_metric
from ddpm.evaluation.partial_results import plain, stored_request
from ddpm.files import UNREADABLE
from ddpm.outputs import JOB_RECORD, OutputFolder
from ddpm.report.pages import Report, comparability_warnings, write_comparison
from ddpm.report.run_table import Column, as_text, metric_columns
from ddpm.runs.evaluation import SAMPLES, EvaluationJob, Weights, report_provenance, training_report
from ddpm.runs.session import Session
from ddpm.training import checkpoint
from ddpm.training.run import Run


@dataclass(frozen=True)
class Comparison:
    """A comparison of runs; evaluations with equal requests are reused.

    Attributes:
        job: the evaluation of each run; its ``out`` is that of the comparison.
        weights: ``ema`` or ``raw``, of each run.
        device: to evaluate on.
        precision: of the arithmetic.
    """

    job: EvaluationJob
    weights: Weights
    device: devices.Device
    precision: PrecisionOption

    def compare(self, paths: Sequence[str]) -> float:
        """Evaluate and compare runs; return the best value of the first metric.

        Args:
            paths: folders of runs, of sweeps, or that contain runs.

        Raises:
            ConfigError: runs that do not exist or cannot be evaluated. The evaluations of earlier
                runs in the list are kept, and reused when the command is repeated.
        """
        accelerator = devices.accelerator(self.device, self.precision, key="precision")
        places = [place for path in paths for place in _runs(path)]
        places = list({place.resolve(): place for place in places}.values())
        require(bool(places), "runs", list(paths), "is empty; name at least one run")
        with writing(
            accelerator,
            "evaluate runs=",
            ["report.html"],
            out=self.job.out,
            default=Path("outputs/comparison"),
        ) as folder:
            best = self._evaluate_all(accelerator, places, folder)
        accelerator.end_training()
        return best

    def _evaluate_all(
        self, accelerator: Accelerator, places: Sequence[Path], folder: OutputFolder
    ) -> float:
        """Evaluate the runs, and write their table into a folder."""
        names, reports = _names(places), []
        for number, place in enumerate(places, 1):
            info_once(accelerator, f"run {number} of {len(places)}: {place}")
            evaluation, session = self._evaluate(place, first=number == 1)
            if accelerator.is_main_process:
                reports.append(replace(_read_report(evaluation, session), run=names[place]))
            wait_for_all(accelerator)
        return self._write(reports, folder) if accelerator.is_main_process else 0.0

    def _evaluate(self, place: Path, *, first: bool) -> tuple[Path, Session]:
        """Return the folder of an evaluation of this request, an earlier one or a new one."""
        session = Session.load(str(place), self.weights, self.device, self.precision)
        main, job = session.accelerator.is_main_process, replace(self.job, out=None)
        if first:  # the first run determines the number of threads for all
            job.use_threads(session)
        try:
            evaluator = job.evaluator(session)
        except ConfigError as error:
            raise ConfigError("runs", str(place), f"cannot be evaluated: {error}") from error
        request = job.request(evaluator, session, job.provenance(session, self.weights))
        earlier = _find_earlier(session.checkpoint.run, request) if main else None
        folder = broadcast(session.accelerator, earlier)
        if folder is None:
            folder, _ = job.evaluate_model(evaluator, session, self.weights)
            return folder, session
        line = f"was evaluated with these options, see {folder} (delete it to evaluate again)"
        info_once(session.accelerator, line)
        return folder, session

    def _write(self, reports: list[Report], folder: OutputFolder) -> float:
        requested, numbers = self.job.options.metrics[0], reports[0].metrics
        metric = next(m.name for m in numbers if matches_metric(m.provenance["metric"], requested))
        ranked = write_comparison(folder.aside / "report.html", reports, sort_by=metric)
        for warning in comparability_warnings(reports):
            warn(warning)
        info(_table(ranked))
        info(f"done: {folder.path} (report.html)")
        return next(m.value for m in ranked[0].metrics if m.name == metric)


def _runs(path: str) -> list[Path]:
    """Return the runs of a folder: itself, the jobs of a sweep, or the runs that it contains."""
    place = Path(path)
    problem = "folder not found; name runs, or the folder of a sweep"
    require(place.is_dir(), "runs", path, problem)
    if checkpoint.listed(place) or (place / checkpoint.MANIFEST).is_file():
        return [place]
    inside = [each for each in place.iterdir() if each.is_dir() and not each.is_symlink()]
    inside.sort(key=lambda each: (not each.name.isdigit(), each.name.zfill(9)))
    runs = []
    for each in inside:
        if checkpoint.listed(each):
            runs.append(each)
        elif (each / JOB_RECORD).is_file():  # a failed job of a sweep
            warn(f"{each} has no checkpoint; it is left out")
    problem = "contains no run with a checkpoint; name runs, or the folder of a sweep"
    require(bool(runs), "runs", path, problem)
    return runs


def _names(places: Sequence[Path]) -> dict[Path, str]:
    """Return the names of the runs: those of their folders if unique, else their paths."""
    count = Counter(place.name for place in places)
    return {place: place.name if count[place.name] == 1 else str(place) for place in places}


def _find_earlier(run: Path, request: Mapping[str, Any]) -> Path | None:
    """Return the folder of the newest complete evaluation of a run with an equal request."""
    request = plain(request)
    folders = sorted((run / "evaluations").glob(f"*/{results.FILE}"), key=_modified, reverse=True)
    for file in folders:
        try:
            _, _, content = results.read(file.parent)
            if stored_request(content) == request and content.get("complete") is not False:
                return file.parent
        except UNREADABLE:
            continue
    return None


def _modified(file: Path) -> int:
    return file.stat().st_mtime_ns


def _read_report(folder: Path, session: Session) -> Report:
    """Return the report of an evaluation in a comparison."""
    source = session.checkpoint
    try:
        metrics, warnings, content = results.read(folder)
    except UNREADABLE as error:
        raise ConfigError(
            "runs", str(folder), "was changed during the comparison; run the same command again"
        ) from error
    try:
        picture = Image.open(folder / SAMPLES).copy()
    except OSError:  # without metrics of samples, or damaged
        picture = None
    return replace(
        training_report(Run(source.run), source.step, config_with_defaults_if_known(source.config)),
        metrics=metrics,
        warnings=warnings,
        provenance=report_provenance(folder),
        samples=picture,
        seed=seed if isinstance(seed := content.get("seed"), int) else None,
    )


def _table(ranked: Sequence[Report]) -> str:
    """Return the steps and metrics of runs as text, best first."""
    runs = Column("run", [report.run for report in ranked])
    steps = Column("step", [report.step for report in ranked])
    return as_text([runs, steps, *metric_columns([report.metrics for report in ranked])])
