"""``ddpm-evaluate`` of one model, or of images: measured, written down, shown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator

from ddpm import __version__
from ddpm.config import paths
from ddpm.console import echo, say, tell, warn, warn_once
from ddpm.distributed import cpu_threads
from ddpm.distributed.consensus import wait_for_all
from ddpm.distributed.output import agreed, check, writing
from ddpm.drawing import Trained, label
from ddpm.errors import Stopped, require
from ddpm.evaluation import likelihood_metrics, partial_results
from ddpm.evaluation.evaluator import Judge
from ddpm.evaluation.options import FIDELITY, Measure
from ddpm.evaluation.partial_results import Unfinished
from ddpm.evaluation.reference_data import MOST, Against, hash_once, images
from ddpm.evaluation.results import FILE, Findings
from ddpm.outputs import OutputFolder
from ddpm.report.pages import Report, write_report
from ddpm.training import checkpoint
from ddpm.training.lock import Lock
from ddpm.training.run import Run

SAMPLES, COMMAND = "samples.png", "evaluate"
Weights = Literal["ema", "raw"]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Attributes:
        measure: what, and how.
        cache: the folder of reference statistics, or None.
        out: the folder to write, or None for a new one.
        threads: see :func:`ddpm.distributed.cpu_threads.use`.
    """

    measure: Measure
    cache: str | None
    out: str | None
    threads: cpu_threads.Threads

    def of_images(self, path: str, accelerator: Accelerator) -> Findings:
        """Judge images that exist already, a folder or an .npz."""
        for name in self.measure.metrics:
            require(name in FIDELITY, "metrics", name, "needs a model; give ckpt= with it")
        problem = "is missing: name what the images are compared with"
        needed = set(self.measure.metrics) != {"isc"}
        require(not needed or self.measure.reference is not None, "reference", None, problem)
        check(accelerator, COMMAND, self._files, self.out)
        found = images(path, "samples", self.measure.of_folders)
        warn_once(accelerator, found.warnings)
        judge = Judge(self.measure, accelerator, self._against(None), found.shape, found)
        problem = "is what is judged; write elsewhere"
        require(self.out != path, "out", self.out, problem)
        assert judge.images is not None
        cpu_threads.use(self.threads, accelerator, trial=judge.trial)
        hash_once(judge.images, accelerator)
        ours = {"ddpm": __version__}
        request = {**vars(self.measure), **ours, "compared": judge.told()}
        request["samples"] = judge.images.described()
        with self._folder(accelerator, Path("outputs"), "evaluation", request) as record:
            findings, folder = judge.of_images(ours, record), record.place
            if accelerator.is_main_process:
                near = f"reference={self.measure.reference}"
                report = Report("Evaluation", folder.path.name, near=near)
                self._write(folder, findings, report, {"request": request})
        return findings

    def use_threads(self, trained: Trained) -> None:
        """Set the number of threads, before anything is computed for a checkpoint."""
        asked, facts = self.measure, trained.facts

        def trial() -> cpu_threads.Trial:
            pipeline = trained.pipeline(
                asked.sampler, guidance=asked.guidance, guidance_rescale=asked.guidance_rescale
            )
            calls, count = pipeline.num_calls(), asked.num_samples or MOST
            if not asked.fidelity:
                calls = asked.bound_steps or pipeline.diffusion.num_steps
                calls = calls if "bpd" in asked.metrics else likelihood_metrics.QUARTERS_OF_T
                count = asked.num_images
            batches = -(-count // (asked.batch_size * trained.accelerator.num_processes))
            classes = None if facts.num_classes is None else [0]
            return trained.trial(pipeline, batches * calls, min(asked.batch_size, count), classes)

        trained.use_threads(self.threads, trial)

    def judge(self, trained: Trained) -> Judge:
        """What judges a checkpoint, made ready; refuses what cannot be done."""
        check(trained.accelerator, COMMAND, self._files, self.out)
        found = trained.checkpoint
        against = self._against(paths.located(found.config, found.run).get("data"))
        judge = Judge(self.measure, trained.accelerator, against, trained.facts.shape)
        judge.check(trained)
        judge.ready(trained.facts)
        return judge

    def of_model(self, judge: Judge, trained: Trained, weights: Weights) -> tuple[Path, Findings]:
        """Judge a checkpoint; returns also the folder that was written."""
        found, accelerator = trained.checkpoint, trained.accelerator
        name = f"step-{found.step:08d}-{label(self.measure.sampler)}"
        told = self.told(trained, weights)
        request, parent = self.request(judge, trained, told), found.run / "evaluations"
        with self._folder(accelerator, parent, name, request) as record:
            folder = record.place
            findings = judge.of_model(trained, told, estimate=True, record=record)
            if accelerator.is_main_process:
                run = Run(found.run)
                run.evaluated(found.step, findings.numbers, str(folder.path))
                near = self.measure.reference
                near = "the training data" if near in (None, "train") else f"reference={near}"
                report = replace(reported(run, found.step, found.config), near=near)
                self._write(folder, findings, report, {"request": request})
        return folder.path, findings

    def told(self, trained: Trained, weights: Weights) -> dict[str, Any]:
        """What every number of a checkpoint depends on."""
        found = trained.checkpoint
        manifest = json.loads((found.folder / checkpoint.MANIFEST).read_text(encoding="utf-8"))
        return {
            "ddpm": __version__,
            "checkpoint": str(found.folder),
            "step": found.step,
            "weights": weights,
            "weights_sha256": manifest["files"][checkpoint.WEIGHTS[weights]]["sha256"],
            "precision": trained.accelerator.mixed_precision,
        }

    def request(self, judge: Judge, trained: Trained, told: Mapping[str, Any]) -> dict[str, Any]:
        """All that decides what an evaluation finds: of equal ones one is enough."""
        defaults = {"image_size", "color", "low", "high"} - self.measure.of_folders.keys()
        measure = {k: v for k, v in vars(self.measure).items() if k not in defaults}
        asked = {**measure, "compared": judge.told()}
        asked |= judge.classes_of(trained)
        return {**asked, **{k: told[k] for k in ("ddpm", "weights", "weights_sha256", "precision")}}

    def _against(self, node: Mapping[str, Any] | None) -> Against:
        cache = None if self.cache is None else Path(self.cache)
        options = self.measure.of_folders
        return Against(self.measure.reference, node, cache=cache, options=options)

    @property
    def _files(self) -> list[str]:
        """Names of the files that this evaluation may write."""
        names = [FILE, "report.html"]
        names += [SAMPLES] if self.measure.fidelity else []
        return names + list(likelihood_metrics.BOUND if "bpd" in self.measure.metrics else ())

    @contextmanager
    def _folder(
        self, accelerator: Accelerator, parent: Path, name: str, request: Mapping[str, Any]
    ) -> Iterator[Unfinished]:
        """Give the record of an unfinished evaluation of this request, or a new one.

        The results go to ``out``, or to the folder of the unfinished evaluation, or to a new one;
        see :func:`writing`.

        Raises:
            ConfigError: the folder cannot be written, or another process writes to it.
            Stopped: names the folder.
        """
        locks: list[Lock] = []  # of the main process
        request = partial_results.plain(request)

        def find() -> str | None:
            found = None if self.out is not None else partial_results.find(parent, request)
            locks.extend(found[1:] if found else [])
            return self.out if found is None else str(found[0])

        def claim() -> bool:
            if not locks:
                locks.append(Lock(folder.path / partial_results.FOLDER))
                locks[0].acquire("out", tell)
            continued = partial_results.is_unfinished(folder.path, request)
            if not continued:
                partial_results.Parts(folder.path / partial_results.FOLDER).clear(lock=False)
            return continued

        try:
            out, default = agreed(accelerator, find), parent / name
            with writing(accelerator, COMMAND, self._files, out=out, default=default) as folder:
                continued = agreed(accelerator, claim)
                said = "continuing the unfinished evaluation in" if continued else "results go to"
                say(accelerator, f"{said} {folder.path}")
                record = Unfinished(folder, request, main=accelerator.is_main_process)
                with _kept(record, accelerator):
                    yield record
        finally:
            for lock in locks:
                lock.release()

    def _write(
        self, folder: OutputFolder, findings: Findings, report: Report, beside: Mapping[str, Any]
    ) -> None:
        """Write everything, and print the numbers."""
        for warning in findings.warnings:
            warn(warning)
        findings.write(folder.aside, **beside, seed=self.measure.seed)
        if findings.samples is not None:
            findings.samples.save(folder.aside / SAMPLES, format="png")
        if findings.bound is not None:
            likelihood_metrics.save_bound(folder.aside, findings.bound)
        reported = findings.reported(report, self.measure.seed, folder.path)
        write_report(folder.aside / "report.html", reported)
        folder.publish()
        for metric in findings.metrics:
            error = "" if metric.error is None else f" +- {metric.error:.4g}"
            echo(f"{metric.name:12} {metric.value:.6g}{error}")
        echo(f"done: {folder.path} (report.html, evaluation.json)")


@contextmanager
def _kept(record: Unfinished, accelerator: Accelerator) -> Iterator[Unfinished]:
    """Give a record whose parts are deleted at the end; after a signal, name its folder.

    Raises:
        Stopped: names the folder, if it contains anything.
    """
    try:
        yield record
        wait_for_all(accelerator)
        if record.main:
            record.parts.clear()
    except Stopped as stopped:
        if not record.abandon():
            raise
        folder = record.place.path
        kept = f"{folder} contains what is finished; the same command continues the evaluation"
        raise Stopped(f"{stopped}; {kept}") from None
    except BaseException:
        record.abandon()
        raise


def reported(run: Run, step: int, config: Mapping[str, Any]) -> Report:
    """A report of what a run logged, without any evaluation yet."""
    curves = run.curves()
    loss = curves.pop("loss", [])
    name = run.path.name
    return Report("Evaluation", name, step=step, config=config, loss=loss, curves=curves)
