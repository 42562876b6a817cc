"""The evaluator of models and images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddpm import metrics
from ddpm.data.class_rows import cyclic_class_rows
from ddpm.distributed.processes import Processes
from ddpm.distributed.sharding import Shard
from ddpm.distributed.stopping import NEVER, Stopping
from ddpm.errors import require
from ddpm.evaluation import class_balance, sample_metrics
from ddpm.evaluation.fidelity import FidelityMetrics
from ddpm.evaluation.likelihood_metrics import (
    NUM_QUARTERS,
    CleanData,
    LikelihoodRun,
    compute_bits_per_dimension,
    compute_losses,
)
from ddpm.evaluation.model import DataSpecProtocol, EvaluatedModel
from ddpm.evaluation.neighbours import image_grid
from ddpm.evaluation.options import EvaluationOptions
from ddpm.evaluation.partial_results import EvaluationRecord
from ddpm.evaluation.reference_data import ReferenceResolver
from ddpm.evaluation.results import EvaluationResult
from ddpm.evaluation.time_estimate import Estimate, Stage
from ddpm.pipeline import SamplingPipeline
from ddpm.samplers import Sampler
from ddpm.trajectory import GRID


class Evaluator:
    """Evaluates models or images; prepared once, it can evaluate the same model repeatedly.

    Args:
        options: metrics and their options. ``options.extractor`` and, with ``sampler``,
            ``options.sampler`` only describe the objects that are used.
        processes: share the work; all of them call the same methods.
        references: finds the reference data.
        shape: (C, *spatial) of samples.
        extractor: of the metrics of samples; None if none are requested. It is prepared here.
        images: existing images, which are evaluated instead of samples of a model.
        sampler: draws samples; None = the one that ``options.sampler`` names.

    Raises:
        ConfigError: metrics or a reference that do not fit these data.
    """

    def __init__(
        self,
        options: EvaluationOptions,
        processes: Processes,
        references: ReferenceResolver,
        shape: tuple[int, ...],
        *,
        extractor: metrics.Extractor | None = None,
        images: metrics.Images | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self.options, self.processes, self.references = options, processes, references
        self._sampler = sampler
        self._clean_data: CleanData | None = None
        self._fidelity: FidelityMetrics | None = None
        self._check_folder_options(images)
        options.check_shape(shape)
        if options.fidelity:
            assert extractor is not None, "metrics of samples need an extractor"
            self._fidelity = FidelityMetrics(
                options, processes, references, shape, extractor, images
            )

    @property
    def fidelity(self) -> FidelityMetrics:
        """The metrics of samples, which must be requested."""
        assert self._fidelity is not None
        return self._fidelity

    def _check_folder_options(self, images: metrics.Images | None) -> None:
        references = self.references
        folder = references.is_folder or isinstance(images, metrics.FolderImages)
        npz = str(references.name).endswith(".npz") or isinstance(images, metrics.NpzImages)
        problem = "has an effect on folders of images only, and none is evaluated; leave it out"
        for name, value in self.options.folder_options.items():
            require(folder or (npz and name in ("low", "high")), name, value, problem)

    def check_model(self, model: EvaluatedModel) -> SamplingPipeline:
        """Return the denoiser and the sampler of a model, after a check of the options.

        Args:
            model: the model to evaluate.

        Raises:
            ConfigError: guidance, classes or steps that the model does not support.
        """
        options, total = self.options, model.diffusion.num_steps
        good = options.bound_steps is None or 1 <= options.bound_steps <= total
        problem = f"the process has {total} steps; use 1 to {total}, or null for all"
        require(good, "bound_steps", options.bound_steps, problem)
        if options.fidelity:
            model.class_numbers(options.classes)
        sampler = self._sampler or options.sampler
        return model.pipeline(sampler, guidance=options.guidance_options)

    def _classes(self, model: EvaluatedModel) -> list[int] | None:
        """Return the classes of the samples, see :func:`ddpm.generation.generate`."""
        requested, counts = self.options.classes, model.spec.class_counts
        if requested is None and model.spec.num_classes is not None and counts is not None:
            return class_balance.balanced(counts, self.fidelity.num_samples)
        return model.class_numbers(requested)

    def class_provenance(self, model: EvaluatedModel) -> dict[str, Any]:
        """Return the provenance of the samples' classes; empty for an unconditional model."""
        if not self.options.fidelity or model.spec.num_classes is None:
            return {}
        requested = self.options.classes
        numbers = None if requested is None else model.class_numbers(requested)
        return class_balance.provenance(numbers, model.spec.class_counts)

    def prepare(self, spec: DataSpecProtocol, part: str | None = None) -> None:
        """Read and compute everything that does not depend on the weights of the model.

        Args:
            spec: shape, classes and codec of the model's data.
            part: of the data for the likelihood, see :meth:`ReferenceResolver.clean_data`.

        Raises:
            ConfigError: data of another shape than the model's.
        """
        if self.options.likelihood and self._clean_data is None:
            count, seed = self.options.num_images, self.options.seed
            self._clean_data = self.references.clean_data(spec, count, seed, part)
        if self._fidelity is not None:
            _ = self._fidelity.reference

    def reference_provenance(self) -> dict[str, Any]:
        """Return the provenance of the reference and of the clean data, by content."""
        reference = None if self._fidelity is None else self._fidelity.reference
        provenance = {} if reference is None else dict(reference.provenance)
        data = self._clean_data
        return provenance | ({} if data is None else {"held_out": data.provenance})

    def evaluate_images(
        self, provenance: Mapping[str, Any], record: EvaluationRecord
    ) -> EvaluationResult:
        """Evaluate existing images.

        Args:
            provenance: what the numbers depend on besides the options.
            record: stores partial results.

        Raises:
            ConfigError: a reference that cannot be computed.
        """
        fidelity = self.fidelity
        images, result = fidelity.images, EvaluationResult(warnings=fidelity.warnings)
        assert images is not None
        record.save(result)
        features = sample_metrics.extract_images(
            fidelity.extractor,
            images,
            self.processes,
            fidelity.collector(),
            fidelity.num_samples,
            self.options.batch_size,
            "samples",
            record.partial_results,
        )
        samples = images.provenance()
        provenance = {"num_samples": fidelity.num_samples, **provenance, "samples": samples}
        fidelity.add_scores(features, provenance, result, record)
        raw = images.read(range(min(GRID, fidelity.num_samples)))
        fidelity.add_figures(result, features, raw)
        return result

    def evaluate_model(
        self,
        model: EvaluatedModel,
        provenance: Mapping[str, Any],
        *,
        stopping: Stopping = NEVER,
        estimate: bool = False,
        figures: bool = True,
        record: EvaluationRecord | None = None,
    ) -> EvaluationResult:
        """Evaluate a model.

        Args:
            model: its network is put into eval mode.
            provenance: what the numbers depend on besides the options, such as the checkpoint.
            stopping: the stop check after each network call.
            estimate: print how long the evaluation will take.
            figures: add the figures of a report to the result.
            record: stores partial results; None = nothing is stored.

        Raises:
            ConfigError: guidance, classes or steps that the model does not support.
            GivenUpError: the stop check returned True.
        """
        options, result = self.options, EvaluationResult()
        self.prepare(model.spec)
        pipeline, record = self.check_model(model), record or EvaluationRecord()
        record.save(result)
        expected = self._estimate(model, pipeline, record if estimate else None)
        provenance = {**provenance, "seed": options.seed}
        if options.fidelity:
            self._evaluate_samples(model, pipeline, provenance, result, stopping, figures, record)
            expected.done(", ".join(options.fidelity))
        for metric in options.likelihood:
            self._evaluate_likelihood(metric, model, pipeline, provenance, result, stopping, record)
            record.save(result)
            expected.done(metric)
        return result

    def _evaluate_samples(
        self,
        model: EvaluatedModel,
        pipeline: SamplingPipeline,
        provenance: Mapping[str, Any],
        result: EvaluationResult,
        stopping: Stopping,
        figures: bool,
        record: EvaluationRecord,
    ) -> None:
        """Draw samples and add their metrics and figures to the result."""
        options, fidelity, classes = self.options, self.fidelity, self._classes(model)
        result.warn(*fidelity.warnings)
        samples = sample_metrics.generate_samples(
            pipeline,
            fidelity.extractor,
            self.processes,
            fidelity.collector(),
            count=fidelity.num_samples,
            batch_size=options.batch_size,
            seed=options.seed,
            classes=classes,
            record_trajectory=figures,
            stopping=stopping,
            partial_results=record.partial_results,
        )
        provenance = {
            "num_samples": fidelity.num_samples,
            **provenance,
            "sampler": dict(options.sampler),
            "steps": pipeline.num_calls(),
            **options.guidance_provenance(),
            **self.class_provenance(model),
        }
        fidelity.add_scores(samples.collected, provenance, result, record, stopping)
        if figures:
            rows = cyclic_class_rows(len(samples.raw), classes, model.spec.names)
            fidelity.add_figures(result, samples.collected, samples.raw, rows)
            result.trajectory = [image_grid(snapshot) for snapshot in samples.snapshots]

    def _evaluate_likelihood(
        self,
        metric: str,
        model: EvaluatedModel,
        pipeline: SamplingPipeline,
        provenance: Mapping[str, Any],
        result: EvaluationResult,
        stopping: Stopping,
        record: EvaluationRecord,
    ) -> None:
        """Add the bits per dimension or the loss of clean data to the result."""
        options, data = self.options, self._clean_data
        assert data is not None
        if metric == "bpd":
            clip, guidance = pipeline.sampler.clip, options.guidance_provenance()
            guidance.pop("guidance_rescale")
            provenance = {**provenance, "clip": clip, **guidance}
        run = LikelihoodRun(
            data=data,
            processes=self.processes,
            seed=options.seed,
            batch_size=options.batch_size,
            provenance=provenance,
            result=result,
            stopping=stopping,
            partial_results=record.partial_results,
        )
        if metric == "bpd":
            compute_bits_per_dimension(pipeline, run, options.bound_steps)
        else:
            compute_losses(model, pipeline, run)

    def _estimate(
        self,
        model: EvaluatedModel,
        pipeline: SamplingPipeline,
        record: EvaluationRecord | None,
    ) -> Estimate:
        """Print the estimated durations of the stages; without a record, print nothing."""
        options, stages = self.options, []
        if record is None:
            return Estimate(main=False)
        if options.fidelity:
            title, calls = ", ".join(options.fidelity), pipeline.num_calls()
            samples = sample_metrics.SAMPLES
            stages.append(Stage(title, samples, "num_samples", self.fidelity.num_samples, calls))
        for metric in options.likelihood:
            assert self._clean_data is not None
            terms = options.bound_steps or pipeline.diffusion.num_steps
            calls = terms if metric == "bpd" else NUM_QUARTERS
            stages.append(Stage(metric, metric, "num_images", len(self._clean_data.x0), calls))
        estimate = Estimate(self.processes.is_main_process)
        for stage in stages:
            shard = Shard(self.processes, stage.count, options.batch_size)
            estimate.add(stage, shard, record.partial_results)
        classes = None if model.spec.num_classes is None else [0]
        estimate.begin(pipeline, classes, options.batch_size)
        return estimate
