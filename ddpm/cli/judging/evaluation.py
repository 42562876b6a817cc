"""``ddpm-evaluate`` of one model, or of images: measured, written down, shown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ddpm import __version__
from ddpm.cli import app, places
from ddpm.cli.drawing import Trained, label
from ddpm.cli.judging import likelihood, unfinished
from ddpm.cli.judging.against import Against, hash_once, images
from ddpm.cli.judging.findings import Findings
from ddpm.cli.judging.judge import Judge
from ddpm.cli.judging.measure import FIDELITY, Measure
from ddpm.cli.judging.unfinished import Unfinished
from ddpm.errors import Stopped, require
from ddpm.fidelity.report import Report, write_report
from ddpm.files import replacing
from ddpm.progress import warn
from ddpm.training import checkpoint
from ddpm.training.lock import Lock
from ddpm.training.run import Run, new_folder, unwritable

SAMPLES = "samples.png"
Weights = Literal["ema", "raw"]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Attributes:
        measure: what, and how.
        steps: network calls a sample; None = the sampler's own.
        cache: the folder of reference statistics, or None.
        out: the folder to write, or None for a new one.
    """

    measure: Measure
    steps: int | None
    cache: str | None
    out: str | None

    def of_images(self, path: str, accelerator: Accelerator) -> Findings:
        """Judge images that exist already, a folder or an .npz."""
        for name in self.measure.metrics:
            require(name in FIDELITY, "metrics", name, "needs a model; give ckpt= with it")
        problem = "is missing: name what the images are compared with"
        needed = set(self.measure.metrics) != {"isc"}
        require(not needed or self.measure.reference is not None, "reference", None, problem)
        found = images(path, "samples", self.measure.of_folders)
        app.warn_once(accelerator, found.warnings)
        judge = Judge(self.measure, accelerator, self._against(None), found.shape, found)
        problem = "is what is judged; write elsewhere"
        require(self.out != path, "out", self.out, problem)
        assert judge.images is not None
        hash_once(judge.images, accelerator)
        ours = {"ddpm": __version__}
        request = {**vars(self.measure), **ours, "compared": judge.told()}
        request["samples"] = judge.images.described()
        with self._folder(accelerator, Path("outputs"), "evaluation", request) as record:
            findings, folder = judge.of_images(ours, record), record.place
            if accelerator.is_main_process:
                near = f"reference={self.measure.reference}"
                report = Report("Evaluation", folder.name, near=near)
                self._write(folder, findings, report, {"request": request})
        return findings

    def judge(self, trained: Trained) -> Judge:
        """What judges a checkpoint, made ready; refuses what cannot be done."""
        found = trained.checkpoint
        against = self._against(places.located(found.config, found.run).get("data"))
        judge = Judge(self.measure, trained.accelerator, against, trained.facts.shape)
        judge.check(trained, self.steps)
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
            findings = judge.of_model(trained, told, steps=self.steps, estimate=True, record=record)
            if accelerator.is_main_process:
                run = Run(found.run)
                run.evaluated(found.step, findings.numbers, str(folder))
                near = self.measure.reference
                near = "the training data" if near in (None, "train") else f"reference={near}"
                report = replace(reported(run, found.step, found.config), near=near)
                self._write(folder, findings, report, {"request": request})
        return folder, findings

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
        asked = {**measure, "steps": self.steps, "compared": judge.told()}
        asked |= judge.classes_of(trained)
        return {**asked, **{k: told[k] for k in ("ddpm", "weights", "weights_sha256", "precision")}}

    def _against(self, node: Mapping[str, Any] | None) -> Against:
        cache = None if self.cache is None else Path(self.cache)
        options = self.measure.of_folders
        return Against(self.measure.reference, node, cache=cache, options=options)

    @contextmanager
    def _folder(
        self, accelerator: Accelerator, parent: Path, name: str, request: Mapping[str, Any]
    ) -> Iterator[Unfinished]:
        """The record of an unfinished evaluation of this request, or a new one.

        The main process makes its folder, and deletes it again if nothing was finished.

        Raises:
            ConfigError: the folder cannot be written, or another process writes to it.
            Stopped: names the folder.
        """
        main, chosen = accelerator.is_main_process, None
        if main:
            chosen = self._chosen(parent, name, request)
        lock = None if chosen is None else chosen[2]
        told: list[Any] = [None if chosen is None else chosen[:2]]
        folder, continued = broadcast_object_list(told)[0]
        if continued:
            app.say(accelerator, f"continuing the unfinished evaluation in {folder}")
        else:
            app.say(accelerator, f"results go to {folder}")
        record = Unfinished(folder, unfinished.plain(request), main=main)
        try:
            yield record
            accelerator.wait_for_everyone()
            if main:
                record.parts.clear()
        except Stopped as stopped:
            if not record.abandon():
                raise
            kept = f"{folder} contains what is finished; the same command continues the evaluation"
            raise Stopped(f"{stopped}; {kept}") from None
        except BaseException:
            record.abandon()
            raise
        finally:
            if lock is not None:
                lock.release()
            if main:
                with suppress(OSError):
                    folder.rmdir()

    def _chosen(
        self, parent: Path, name: str, request: Mapping[str, Any]
    ) -> tuple[Path, bool, Lock]:
        """The folder, True if it has an unfinished evaluation to continue, and its lock."""
        if self.out is None:
            found = unfinished.find(parent, request)
            if found is not None:
                return found[0], True, found[1]
        folder = new_folder(parent, name) if self.out is None else Path(self.out)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from error
        lock = Lock(folder / unfinished.FOLDER)
        lock.acquire("out", app.tell)
        continued = unfinished.is_unfinished(folder, unfinished.plain(request))
        if not continued:
            unfinished.Parts(folder / unfinished.FOLDER).clear(lock=False)
        return folder, continued, lock

    def _write(
        self, folder: Path, findings: Findings, report: Report, beside: Mapping[str, Any]
    ) -> None:
        """Write everything, and print the numbers."""
        for warning in findings.warnings:
            warn(warning)
        findings.write(folder, **beside, seed=self.measure.seed)
        if findings.samples is not None:
            with replacing(folder / SAMPLES) as aside:
                findings.samples.save(aside, format="png")
        if findings.bound is not None:
            likelihood.save_bound(folder, findings.bound)
        else:  # of an earlier call
            for stale in ("bound.png", "bound.npz"):
                (folder / stale).unlink(missing_ok=True)
        write_report(folder / "report.html", findings.reported(report, self.measure.seed, folder))
        for metric in findings.metrics:
            error = "" if metric.error is None else f" +- {metric.error:.4g}"
            print(f"{metric.name:12} {metric.value:.6g}{error}")
        print(f"done: {folder} (report.html, evaluation.json)", flush=True)


def reported(run: Run, step: int, config: Mapping[str, Any]) -> Report:
    """A report of what a run logged, without any evaluation yet."""
    curves = run.curves()
    loss = curves.pop("loss", [])
    name = run.path.name
    return Report("Evaluation", name, step=step, config=config, loss=loss, curves=curves)
