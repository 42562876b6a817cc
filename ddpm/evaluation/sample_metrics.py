"""Features of generated or existing images, and the metrics computed from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpm import metrics
from ddpm.console import progress
from ddpm.distributed.consensus import broadcast
from ddpm.distributed.main_process import (
    attended,
    features_to_main,
    moments_to_main,
    on_main,
    to_main,
)
from ddpm.distributed.processes import Processes
from ddpm.distributed.sharding import Shard
from ddpm.distributed.stopping import NEVER, Stopping
from ddpm.evaluation.partial_results import EvaluationRecord, PartialResults
from ddpm.evaluation.results import EvaluationResult
from ddpm.generation import SamplingPipeline, generate
from ddpm.samplers.base import OnStep
from ddpm.trajectory import GRID, Trajectory, on_step

_SNAPSHOTS, _SNAPSHOT_SAMPLES = 10, 16  # grids of the trajectory in a report, and samples per grid
NUM_NEIGHBOURS = 24
"""Samples that a report shows beside their nearest neighbours."""
LARGEST_GATHERED = 2**26
"""Bytes of features above which fid alone adds up moments instead of gathering features."""
SAMPLES = "samples"
"""Name of the partial results of samples."""
NUMBERS = {"prc": ("precision", "recall", "f_score")}
"""Names of the numbers of a metric that has several."""


class CollectedFeatures(NamedTuple):
    """Features of all images; those of other processes than the main one are None.

    Attributes:
        features: of all images, or of the first ones if there are moments.
        moments: mean and covariance of all images, if only these are needed.
        num_features: features per image.
    """

    features: metrics.Features | None
    moments: metrics.Moments | None
    num_features: int


class GeneratedSamples(NamedTuple):
    """Samples of a model; the tensors of other processes than the main one are empty.

    Attributes:
        collected: features of all samples.
        raw: uint8 (n, C, H, W) the first samples.
        snapshots: uint8 (m, C, H, W) each, the first samples on their way from noise to data.
    """

    collected: CollectedFeatures
    raw: Tensor
    snapshots: list[Tensor]


class FeatureCollector:
    """Collects the features of this process batch by batch, and gathers them at the end.

    Args:
        processes: share the images.
        count: number of images of all processes.
        num_features: features per image.
        has_logits: True if the extractor returns logits.
        statistics_only: True if mean and covariance are enough.
        limit: bytes of features up to which they are gathered nevertheless.
    """

    def __init__(
        self,
        processes: Processes,
        count: int,
        num_features: int,
        *,
        has_logits: bool,
        statistics_only: bool,
        limit: int,
    ) -> None:
        self.processes, self.num_features = processes, num_features
        self.has_logits = has_logits
        large = processes.num_processes > 1 and count * num_features * 4 > limit
        self.moments = metrics.Moments(num_features) if statistics_only and large else None
        self.batches: list[metrics.Features] = []

    def add(self, batch: metrics.Features) -> None:
        """Add the features of a batch."""
        if self.moments is None:
            self.batches.append(batch)
            return
        self.moments.add(batch.features)
        if len(batch) and int(batch.indices[0]) < NUM_NEIGHBOURS:
            self.batches.append(batch)

    def collect(self) -> CollectedFeatures:
        """Gather features or moments on the main process; all processes must call this."""
        own = metrics.concatenate(self.batches)
        self.batches = []
        features = features_to_main(self.processes, own, has_logits=self.has_logits)
        moments = self.moments and moments_to_main(self.processes, self.moments)
        return CollectedFeatures(features, moments, self.num_features)


def generate_samples(
    pipeline: SamplingPipeline,
    extractor: metrics.Extractor,
    processes: Processes,
    collector: FeatureCollector,
    *,
    count: int,
    batch_size: int,
    seed: int,
    classes: Sequence[int] | None,
    record_trajectory: bool = True,
    stopping: Stopping = NEVER,
    partial_results: PartialResults | None = None,
) -> GeneratedSamples:
    """Draw samples, each process its shard, and extract their features batch by batch.

    Args:
        pipeline: denoiser and sampler.
        extractor: must be prepared.
        processes: share the samples.
        collector: collects the features.
        count: number of samples.
        batch_size: samples per batch.
        seed: of the samples.
        classes: sample i is of ``classes[i % len(classes)]``; None for an unconditional model.
        record_trajectory: record snapshots of the first batch.
        stopping: the stop check after each network call.
        partial_results: finished batches are read from it and saved to it.

    Raises:
        GivenUpError: the stop check returned True.
    """
    calls, stored = pipeline.num_calls(), partial_results or PartialResults()
    shard = Shard(processes, count, batch_size, calls=calls, stopping=stopping)
    recorded = record_trajectory and 0 in shard.indices
    trajectory = Trajectory(pipeline.codec, calls) if recorded else None
    left = [batch for batch in shard.batches() if not stored.has(SAMPLES, batch)]
    first, snapshots = [torch.zeros(0, dtype=torch.uint8)], torch.zeros(0, dtype=torch.uint8)
    main, done = processes.is_main_process, shard.calls - len(left) * calls
    with progress(shard.calls, "sampling", "call", initial=done, shown=main) as bar:
        after = _each(on_step(bar, trajectory), shard)

        def compute(batch: list[int]) -> dict[str, Tensor]:
            ((raw, _),) = generate(
                pipeline, batch, seed=seed, batch_size=batch_size, classes=classes, on_step=after
            )
            raw = pipeline.codec.pixels(raw)
            tensors = _extract(extractor, raw.to(processes.device), batch)
            return {**tensors, **_figure_tensors(pipeline, raw, batch, trajectory)}

        for batch in shard.batches():
            tensors = stored.load_or_compute(SAMPLES, batch, compute)
            collector.add(_features(batch, tensors))
            if "raw" in tensors:
                first.append(tensors["raw"])
            snapshots = tensors.get("frames", snapshots)
        shard.finish()
    raw, snapshots = _gather_figures(processes, pipeline, first, snapshots)
    return GeneratedSamples(collector.collect(), raw, snapshots)


def _each(advance: OnStep, shard: Shard) -> OnStep:
    """Return the function to call after each network call, with the stop check."""

    def after(done: int, total: int, x: Tensor) -> None:
        advance(done, total, x)
        shard.tick()

    return after


def _gather_figures(
    processes: Processes, pipeline: SamplingPipeline, first: list[Tensor], snapshots: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Return the first samples and the snapshots of all processes, on the main process."""
    raw = to_main(processes, torch.cat([each for each in first if len(each)] or first))
    frames = to_main(processes, snapshots)
    raw = torch.zeros(0, *pipeline.codec.shape, dtype=torch.uint8) if raw is None else raw[:GRID]
    return raw, [] if frames is None else list(frames)


def _figure_tensors(
    pipeline: SamplingPipeline, raw: Tensor, batch: list[int], trajectory: Trajectory | None
) -> dict[str, Tensor]:
    """Return the tensors of a batch that the figures of a report show."""
    tensors = {"raw": raw} if batch[0] < GRID else {}
    if trajectory is not None and batch[0] == 0:
        frames = [pipeline.codec.pixels(frame) for frame in trajectory.frames]
        tensors["frames"] = _select_snapshots(frames)
    return tensors


def _select_snapshots(frames: Sequence[Tensor]) -> Tensor:
    """Return the snapshots that a report shows, uint8 (snapshots, samples, C, H, W)."""
    last = len(frames) - 1
    chosen = sorted({round(n * last / (_SNAPSHOTS - 1)) for n in range(_SNAPSHOTS)})
    return torch.stack([frames[n][:_SNAPSHOT_SAMPLES] for n in chosen])


def _extract(extractor: metrics.Extractor, raw: Tensor, batch: Sequence[int]) -> dict[str, Tensor]:
    """Return features and logits of a batch.

    One call of a slow extractor may take longer than a signal should wait, so it runs in a thread.
    """
    result = attended(lambda: metrics.extract_batch(extractor, raw, batch))
    tensors = {"features": result.features}
    return tensors if result.logits is None else {**tensors, "logits": result.logits}


def _features(batch: Sequence[int], tensors: Mapping[str, Tensor]) -> metrics.Features:
    return metrics.Features(torch.tensor(batch), tensors["features"], tensors.get("logits"))


def extract_images(
    extractor: metrics.Extractor,
    images: metrics.Images,
    processes: Processes,
    collector: FeatureCollector,
    count: int,
    batch_size: int,
    description: str,
    partial_results: PartialResults | None = None,
) -> CollectedFeatures:
    """Return the features of the first ``count`` images; each process extracts its shard.

    Args:
        extractor: must be prepared.
        images: the images.
        processes: share the images.
        collector: collects the features.
        count: number of images.
        batch_size: images per batch.
        description: of the progress bar.
        partial_results: finished batches are read from it and saved to it.
    """
    shard, stored = Shard(processes, count, batch_size), partial_results or PartialResults()
    done = sum(len(batch) for batch in shard.batches() if stored.has(SAMPLES, batch))
    main = processes.is_main_process
    with progress(len(shard.indices), description, "img", initial=done, shown=main) as bar:

        def compute(batch: list[int]) -> dict[str, Tensor]:
            return _extract(extractor, images.read(batch).to(processes.device), batch)

        for batch in shard.batches():
            new = not stored.has(SAMPLES, batch)
            collector.add(_features(batch, stored.load_or_compute(SAMPLES, batch, compute)))
            bar.update(len(batch) if new else 0)
    return collector.collect()


def compute_scores(
    requested: Sequence[str],
    samples: CollectedFeatures,
    reference: metrics.Reference | None,
    provenance: Mapping[str, Any],
    result: EvaluationResult,
    processes: Processes,
    record: EvaluationRecord,
    stopping: Stopping = NEVER,
) -> None:
    """Compute metrics of samples on the main process, and add them to the result on all processes.

    Args:
        requested: names of metrics.
        samples: features of the samples.
        reference: to compare with; None if only the Inception score is requested.
        provenance: everything but the reference that the numbers depend on.
        result: receives numbers and warnings.
        processes: share the numbers.
        record: finished metrics are read from it and saved to it.
        stopping: the stop check.

    Raises:
        GivenUpError: the stop check returned True.
    """
    for metric in requested:
        recalled = record.main and record.recall(result, NUMBERS.get(metric, (metric,)))
        if not broadcast(processes, recalled):
            score = on_main(processes, _score_function(metric, samples, reference), stopping)
            _add_score(metric, score, reference, provenance, result)
        record.save(result)
    result.metrics, result.warnings = broadcast(processes, (result.metrics, result.warnings))


def _score_function(
    metric: str, samples: CollectedFeatures, reference: metrics.Reference | None
) -> Callable[[], metrics.Score]:
    """Return the function that computes a metric on the main process."""

    def compute() -> metrics.Score:
        features = samples.features
        assert features is not None
        if metric == "isc":
            return metrics.isc(features.logits)
        assert reference is not None
        if metric == "fid":
            moments = samples.moments
            values = features.features if moments is None else moments.statistics()
            return metrics.fid(values, reference.require_statistics())
        assert reference.features is not None
        function = {"kid": metrics.kid, "prc": metrics.prc}[metric]
        return function(features.features, reference.features)

    return compute


def _add_score(
    metric: str,
    score: metrics.Score,
    reference: metrics.Reference | None,
    provenance: Mapping[str, Any],
    result: EvaluationResult,
) -> None:
    """Add the numbers of a score to a result."""
    provenance = dict(provenance)
    if metric != "isc":
        assert reference is not None
        provenance |= reference.provenance
    result.warn(*score.warnings)
    if score.settings:
        provenance["settings"] = score.settings
    for name, value in score.values.items():
        if not name.endswith("_std"):
            error = score.values.get(f"{name}_std")
            result.add(name, value, error, provenance, num_samples=score.num_samples)
