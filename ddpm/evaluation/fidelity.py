"""Metrics of images: extractor, reference, number of samples, scores and figures."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ddpm import metrics
from ddpm.data.class_rows import Rows
from ddpm.distributed.consensus import main_first
from ddpm.distributed.cpu_threads import Trial
from ddpm.distributed.processes import Processes
from ddpm.distributed.stopping import NEVER, Stopping
from ddpm.errors import render, require
from ddpm.evaluation import sample_metrics
from ddpm.evaluation.neighbours import image_grid, nearest_images
from ddpm.evaluation.options import EvaluationOptions
from ddpm.evaluation.partial_results import EvaluationRecord
from ddpm.evaluation.reference_data import MAX_IMAGES, PreparedReference, ReferenceResolver
from ddpm.evaluation.results import EvaluationResult
from ddpm.training.trial import median_seconds


class FidelityMetrics:
    """Everything that the metrics of samples or existing images need besides the images.

    Args:
        options: metrics and their options.
        processes: share the work.
        references: finds the reference.
        shape: (C, H, W) of the images.
        extractor: is prepared here.
        images: existing images; None = samples of a model.

    Attributes:
        images: existing images, as many as are evaluated; None = samples of a model.
        num_samples: number of images to evaluate.

    Raises:
        ConfigError: metrics or a reference that do not fit these images.
    """

    def __init__(
        self,
        options: EvaluationOptions,
        processes: Processes,
        references: ReferenceResolver,
        shape: tuple[int, ...],
        extractor: metrics.Extractor,
        images: metrics.Images | None,
    ) -> None:
        self.options, self.processes, self.references = options, processes, references
        self.extractor, self.images = extractor, images
        self._prepared: PreparedReference | None = None  # the Inception score needs none
        requested = options.fidelity
        with main_first(processes):  # one process downloads the weights
            self.extractor.prepare(processes.device)
        num_features, num_logits = self.extractor.output_sizes(shape, processes.device)
        self._output_sizes = num_features, num_logits
        size = None
        if set(requested) != {"isc"}:
            reference = self.references.prepare(self.extractor, num_features, requested, processes)
            self._prepared, size = reference, reference.size
            self._check_reference_features(reference, num_features, shape)
        self.num_samples = self._count_samples(size)
        for metric in requested:
            metrics.check_metric(metric, self.num_samples, size, num_features, num_logits)
        if self.images is not None and self.num_samples < len(self.images):
            self.images = metrics.RandomSubset(self.images, self.num_samples)

    def _check_reference_features(
        self, reference: PreparedReference, num_features: int, shape: tuple[int, ...]
    ) -> None:
        """Check that samples and reference images have equally many features."""
        if reference.images is None:
            return
        device = self.processes.device
        reference_features, _ = self.extractor.output_sizes(reference.images.shape, device)
        problem = f"has {reference_features} features per image, the samples have {num_features}"
        remedy = "use images of the same size and colour"
        if self.references.is_folder:
            color, size = "grey" if shape[0] == 1 else "rgb", list(shape[1:])
            remedy = f"set image_size={render(size)} color={color}"
        name = self.options.reference
        require(reference_features == num_features, "reference", name, f"{problem}; {remedy}")

    def _count_samples(self, reference_size: int | None) -> int:
        """Return the number of samples to evaluate."""
        requested = self.options.num_samples
        available = None if self.images is None else len(self.images)
        if requested is None:
            return min(available or reference_size or MAX_IMAGES, MAX_IMAGES)
        problem = f"only {available} images exist; request fewer"
        require(available is None or requested <= available, "num_samples", requested, problem)
        return requested

    def trial(self) -> Trial:
        """Return the extraction of features as work to try numbers of threads with."""
        assert self.images is not None
        device, size = self.processes.device, min(self.options.batch_size, self.num_samples)
        batch = torch.zeros(size, *self.images.shape, dtype=torch.uint8, device=device)

        def extract() -> object:
            return self.extractor.outputs(batch)

        def measure(seconds: float, passes: int) -> float:
            return median_seconds(extract, device, seconds=seconds, passes=passes)

        batches = -(-self.num_samples // (size * self.processes.num_processes))
        return Trial(measure, batches, "batch")

    @property
    def warnings(self) -> list[str]:
        """Warnings about the reference, one line each."""
        return [] if self._prepared is None else list(self._prepared.warnings)

    @cached_property
    def reference(self) -> metrics.Reference | None:
        """The reference of the samples, computed on first use; None if no metric needs one."""
        prepared = self._prepared
        return None if prepared is None else prepared.reference(self.options.batch_size)

    def collector(self) -> sample_metrics.FeatureCollector:
        """Return a new collector of the features of this process."""
        num_features, num_logits = self._output_sizes
        return sample_metrics.FeatureCollector(
            self.processes,
            self.num_samples,
            num_features,
            has_logits=num_logits is not None,
            statistics_only=self.options.fidelity == ["fid"],
            limit=sample_metrics.LARGEST_GATHERED,
        )

    def add_scores(
        self,
        features: sample_metrics.CollectedFeatures,
        provenance: Mapping[str, Any],
        result: EvaluationResult,
        record: EvaluationRecord,
        stopping: Stopping = NEVER,
    ) -> None:
        """Compute the requested metrics, and add them to the result on all processes.

        Args:
            features: of all images.
            provenance: what the numbers depend on besides extractor and reference.
            result: receives numbers and warnings.
            record: finished metrics are read from it and saved to it.
            stopping: the stop check.

        Raises:
            GivenUpError: the stop check returned True.
        """
        extractor = {**self.extractor.provenance(), "features": features.num_features}
        provenance = {**provenance, "extractor": extractor, "resize": self.extractor.resize}
        sample_metrics.compute_scores(
            self.options.fidelity,
            features,
            self.reference,
            provenance,
            result,
            self.processes,
            record,
            stopping,
        )

    def add_figures(
        self,
        result: EvaluationResult,
        collected: sample_metrics.CollectedFeatures,
        raw: Tensor,
        rows: Rows = None,
    ) -> None:
        """Add a grid of images, and images beside the nearest ones of the reference.

        Args:
            result: receives the figures, on the main process.
            collected: features of all images.
            raw: uint8 (n, C, H, W) the first images.
            rows: the rows of classes in the grid.
        """
        if not self.processes.is_main_process:
            return
        result.samples = image_grid(raw, rows)
        reference, prepared = self.reference, self._prepared
        if reference is None or reference.features is None or collected.features is None:
            return
        if prepared is not None and prepared.images is not None:
            first = collected.features.features[: sample_metrics.NUM_NEIGHBOURS][: len(raw)]
            result.nearest = nearest_images(first, raw, reference.features, prepared.images)
