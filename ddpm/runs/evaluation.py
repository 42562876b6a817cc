"""``ddpm-evaluate`` of a checkpoint or of images: compute, write and print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator

from ddpm import instantiate
from ddpm.console import info, info_once, note, warn, warn_once
from ddpm.distributed import cpu_threads, devices
from ddpm.distributed.consensus import wait_for_all
from ddpm.distributed.output import agreed, check, writing
from ddpm.errors import Stopped, require
from ddpm.evaluation import likelihood_metrics, partial_results
from ddpm.evaluation.evaluator import Evaluator
from ddpm.evaluation.options import FIDELITY, EvaluationOptions
from ddpm.evaluation.partial_results import EvaluationRecord
from ddpm.evaluation.reference_data import (
    MAX_IMAGES,
    ReferenceResolver,
    hash_once,
    read_images,
)
from ddpm.evaluation.results import FILE, EvaluationResult
from ddpm.model_evaluation import checkpoint_data, checkpoint_provenance
from ddpm.named_data import ConfiguredData
from ddpm.outputs import OutputFolder
from ddpm.report.pages import Report, write_report
from ddpm.runs.session import Session, sampler_name
from ddpm.runs.tuning import (
    Compile,
    Work,
    choose_compilation,
    choose_precision,
    choose_threads,
)
from ddpm.training.lock import Lock
from ddpm.training.run import Run
from ddpm.version import __version__

SAMPLES, COMMAND = "samples.png", "evaluate"
Weights = Literal["ema", "raw"]


@dataclass(frozen=True)
class EvaluationJob:
    """An evaluation as ``ddpm-evaluate`` runs it, with its output folder.

    Attributes:
        options: metrics and their options.
        cache: the folder of reference statistics; None = no cache.
        out: the output folder; None = a new one.
        threads: see :func:`ddpm.distributed.cpu_threads.use`.
        compile: see :func:`ddpm.runs.tuning.choose_compilation`.
    """

    options: EvaluationOptions
    cache: str | None
    out: str | None
    threads: cpu_threads.Threads
    compile: Compile = False

    def evaluate_images(self, path: str, accelerator: Accelerator) -> EvaluationResult:
        """Evaluate existing images and write the results.

        Args:
            path: a folder of images or an .npz.
            accelerator: accelerator of the command.

        Raises:
            ConfigError: images, options or a reference that cannot be used.
        """
        options = self.options
        for name in options.metrics:
            require(name in FIDELITY, "metrics", name, "requires a model; use ckpt= instead")
        problem = "is missing; set it to the images to compare with"
        needed = set(options.metrics) != {"isc"}
        require(not needed or options.reference is not None, "reference", None, problem)
        check(accelerator, COMMAND, self._files, self.out)
        images = read_images(path, "samples", options.folder_options)
        warn_once(accelerator, images.warnings)
        extractor = instantiate.extractor(options.extractor, images.shape)
        references = self._references(ConfiguredData(None))
        evaluator = Evaluator(
            options, accelerator, references, images.shape, extractor=extractor, images=images
        )
        require(self.out != path, "out", self.out, "must differ from samples=")
        fidelity = evaluator.fidelity
        assert fidelity.images is not None
        cpu_threads.use(self.threads, accelerator, trial=fidelity.trial)
        hash_once(fidelity.images, accelerator)
        version = {"ddpm": __version__}
        compared = evaluator.reference_provenance()
        request = {**vars(options), **version, "compared": compared}
        request["samples"] = fidelity.images.provenance()
        with self._record(accelerator, Path("outputs"), "evaluation", request) as record:
            folder = record.output_folder
            result = evaluator.evaluate_images(version, record)
            if accelerator.is_main_process:
                near = f"reference={options.reference}"
                report = Report("Evaluation", folder.path.name, near=near)
                self._write(folder, result, report, {"request": request})
        return result

    def use_threads(self, session: Session) -> None:
        """Set the number of threads, before anything is computed for a checkpoint."""
        count = self.options.num_samples or MAX_IMAGES
        choose_threads(session, lambda: self._work(session, count), self.threads)

    def _work(self, session: Session, num_samples: int) -> Work:
        """Return the network calls of an evaluation that may draw samples."""
        options, spec = self.options, session.model.spec
        pipeline = session.model.pipeline(options.sampler, guidance=options.guidance_options)
        calls, count = pipeline.num_calls(), num_samples
        if not options.fidelity:
            calls = options.bound_steps or pipeline.diffusion.num_steps
            calls = calls if "bpd" in options.metrics else likelihood_metrics.NUM_QUARTERS
            count = options.num_images
        batches = -(-count // (options.batch_size * session.accelerator.num_processes))
        classes = None if spec.num_classes is None else [0]
        return Work(pipeline, batches * calls, min(options.batch_size, count), classes)

    def evaluator(self, session: Session) -> Evaluator:
        """Return the evaluator of a checkpoint, with its reference computed.

        Raises:
            ConfigError: options that the model or its data do not support.
        """
        check(session.accelerator, COMMAND, self._files, self.out)
        shape, extractor = session.model.spec.shape, None
        references = self._references(checkpoint_data(session.checkpoint))
        self.options.check_shape(shape)
        if self.options.fidelity:
            extractor = instantiate.extractor(self.options.extractor, shape)
        evaluator = Evaluator(
            self.options, session.accelerator, references, shape, extractor=extractor
        )
        evaluator.check_model(session.model)
        evaluator.prepare(session.model.spec)
        choose_precision(session, lambda: self._work(session, _num_samples(evaluator)))
        return evaluator

    def evaluate_model(
        self, evaluator: Evaluator, session: Session, weights: Weights
    ) -> tuple[Path, EvaluationResult]:
        """Evaluate a checkpoint and write the results.

        Args:
            evaluator: evaluator of this job.
            session: has the model.
            weights: kind of the weights of the model, for the provenance.

        Returns:
            The folder of the results, and the results.
        """
        source, accelerator = session.checkpoint, session.accelerator
        name = f"step-{source.step:08d}-{sampler_name(self.options.sampler)}"
        provenance = self.provenance(session, weights)
        request = self.request(evaluator, session, provenance)
        with self._record(accelerator, source.run / "evaluations", name, request) as record:
            folder, count = record.output_folder, _num_samples(evaluator)
            choose_compilation(session, lambda: self._work(session, count), self.compile)
            result = evaluator.evaluate_model(
                session.model, provenance, estimate=True, record=record
            )
            if accelerator.is_main_process:
                run, reference = Run(source.run), self.options.reference
                run.log_evaluation(source.step, result.numbers, str(folder.path))
                own = reference in (None, "train")
                near = "the training data" if own else f"reference={reference}"
                report = replace(training_report(run, source.step, source.config), near=near)
                self._write(folder, result, report, {"request": request})
        return folder.path, result

    def provenance(self, session: Session, weights: Weights) -> dict[str, Any]:
        """Return the provenance that all numbers of a checkpoint share."""
        precision = devices.precision_of(session.model.autocast, session.accelerator.device)
        return checkpoint_provenance(session.checkpoint, weights, precision)

    def request(
        self, evaluator: Evaluator, session: Session, provenance: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return everything that determines the results; equal requests have equal results.

        Args:
            evaluator: evaluator of this job.
            session: has the model.
            provenance: provenance of the checkpoint.
        """
        defaults = {"image_size", "color", "low", "high"} - self.options.folder_options.keys()
        options = {k: v for k, v in vars(self.options).items() if k not in defaults}
        return {
            **options,
            "compared": evaluator.reference_provenance(),
            **evaluator.class_provenance(session.model),
            **{k: provenance[k] for k in ("ddpm", "weights", "weights_sha256", "precision")},
        }

    def _references(self, resolve: ConfiguredData) -> ReferenceResolver:
        cache, options = None if self.cache is None else Path(self.cache), self.options
        return ReferenceResolver(options.reference, resolve, cache, options.folder_options)

    @property
    def _files(self) -> list[str]:
        """Names of the files that this evaluation may write."""
        names = [FILE, "report.html"]
        names += [SAMPLES] if self.options.fidelity else []
        return names + list(likelihood_metrics.BOUND_FILES if "bpd" in self.options.metrics else ())

    @contextmanager
    def _record(
        self, accelerator: Accelerator, parent: Path, name: str, request: Mapping[str, Any]
    ) -> Iterator[EvaluationRecord]:
        """Context manager of the record of an unfinished evaluation of this request, or a new one.

        The results are written to ``out``, or to the folder of the unfinished evaluation, or to a
        new one; see :func:`writing`.

        Raises:
            ConfigError: the folder cannot be written, or another process writes to it.
            Stopped: names the folder.
        """
        locks: list[Lock] = []  # on the main process
        request = partial_results.plain(request)

        def choose_folder() -> str | None:
            unfinished = None if self.out is not None else partial_results.find(parent, request)
            locks.extend(unfinished[1:] if unfinished else [])
            return self.out if unfinished is None else str(unfinished[0])

        def claim() -> bool:
            if not locks:
                locks.append(Lock(folder.path / partial_results.FOLDER))
                locks[0].acquire("out", note)
            continued = partial_results.is_unfinished(folder.path, request)
            if not continued:
                stored = partial_results.PartialResults(folder.path / partial_results.FOLDER)
                stored.clear(lock=False)
            return continued

        try:
            out, default = agreed(accelerator, choose_folder), parent / name
            with writing(accelerator, COMMAND, self._files, out=out, default=default) as folder:
                continued = agreed(accelerator, claim)
                line = "continuing the unfinished evaluation in" if continued else "results go to"
                info_once(accelerator, f"{line} {folder.path}")
                record = EvaluationRecord(folder, request, main=accelerator.is_main_process)
                with _cleared_at_end(record, accelerator):
                    yield record
        finally:
            for lock in locks:
                lock.release()

    def _write(
        self,
        folder: OutputFolder,
        result: EvaluationResult,
        report: Report,
        entries: Mapping[str, Any],
    ) -> None:
        """Write all files, and print the numbers."""
        for warning in result.warnings:
            warn(warning)
        result.write(folder.aside, **entries, seed=self.options.seed)
        if result.samples is not None:
            result.samples.save(folder.aside / SAMPLES, format="png")
        if result.bound is not None:
            likelihood_metrics.save_bound(folder.aside, result.bound)
        report = replace(report, provenance=report_provenance(folder.path))
        report = result.to_report(report, self.options.seed)
        write_report(folder.aside / "report.html", report)
        folder.publish()
        for metric in result.metrics:
            error = "" if metric.error is None else f" +- {metric.error:.4g}"
            info(f"{metric.name:12} {metric.value:.6g}{error}")
        info(f"done: {folder.path} (report.html, evaluation.json)")


def _num_samples(evaluator: Evaluator) -> int:
    """Return the number of samples that an evaluator draws."""
    return evaluator.fidelity.num_samples if evaluator.options.fidelity else 0


@contextmanager
def _cleared_at_end(record: EvaluationRecord, accelerator: Accelerator) -> Iterator[None]:
    """Context manager that deletes the partial results at the end, unless a signal stops it.

    Raises:
        Stopped: names the folder of the partial results, if there are any.
    """
    try:
        yield
        wait_for_all(accelerator)
        if record.main:
            record.partial_results.clear()
    except Stopped as stopped:
        if not record.abandon():
            raise
        folder = record.output_folder.path
        hint = f"{folder} contains what is finished; the same command continues the evaluation"
        raise Stopped(f"{stopped}; {hint}") from None
    except BaseException:
        record.abandon()
        raise


def training_report(run: Run, step: int, config: Mapping[str, Any]) -> Report:
    """Return a report of what a run logged, without the results of an evaluation.

    Args:
        run: the run.
        step: step of the checkpoint.
        config: config of the run.
    """
    curves = run.curves()
    loss = curves.pop("loss", [])
    name = run.path.name
    return Report("Evaluation", name, step=step, config=config, loss=loss, curves=curves)


def report_provenance(folder: Path) -> dict[str, str]:
    """Return the provenance of a report of the evaluation in a folder."""
    return {"made by": f"ddpm {__version__}", "evaluation": str(folder)}
