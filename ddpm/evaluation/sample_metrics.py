"""Samples, or images that exist already, and how near they come to a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from ddpm import metrics
from ddpm.console import progress
from ddpm.distributed.batches import Share
from ddpm.distributed.main_process import (
    attended,
    features_to_main,
    moments_to_main,
    on_main,
    to_main,
)
from ddpm.distributed.stopping import NEVER, Stopping
from ddpm.evaluation.partial_results import Parts, Unfinished
from ddpm.evaluation.results import Findings
from ddpm.generation import SamplingPipeline, generate
from ddpm.trajectory import GRID, Trajectory, on_step

_FRAMES, _FILMED = 10, 16  # pictures of a trajectory, and samples in each
SHOWN = 24  # samples beside their nearest neighbours
LARGEST_GATHERED = 2**26  # bytes of features that fid alone gathers; of more it adds up moments
DRAWN = "samples"  # the name of their parts
NUMBERS = {"prc": ("precision", "recall", "f_score")}  # of a metric, where it has several


class Collected(NamedTuple):
    """Features of all samples, on the main process alone.

    Attributes:
        features: of all of them, or of the first ones if there are moments; None elsewhere.
        moments: mean and covariance of all, where only these are needed.
        dim: features per image.
    """

    features: metrics.Features | None
    moments: metrics.Moments | None
    dim: int


class Drawn(NamedTuple):
    """Samples of a model; the tensors are empty on other processes than the main one.

    Attributes:
        collected: their features.
        raw: the first ones, uint8 (n, C, H, W).
        frames: the first ones on their way from noise to data.
    """

    collected: Collected
    raw: Tensor
    frames: list[Tensor]


class Collector:
    """Takes the features of one process batch by batch.

    Args:
        accelerator: whose processes share the images.
        count: images in all.
        dim: features per image.
        has_logits: True if the extractor gives logits.
        statistics_only: True if mean and covariance are enough.
        limit: bytes of features that are gathered all the same.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        count: int,
        dim: int,
        *,
        has_logits: bool,
        statistics_only: bool,
        limit: int,
    ) -> None:
        self.accelerator, self.dim, self.has_logits = accelerator, dim, has_logits
        many = accelerator.num_processes > 1 and count * dim * 4 > limit
        self.moments = metrics.Moments(dim) if statistics_only and many else None
        self.parts: list[metrics.Features] = []

    def add(self, part: metrics.Features) -> None:
        """Take the features of a batch."""
        if self.moments is None:
            self.parts.append(part)
            return
        self.moments.add(part.features)
        if len(part) and int(part.indices[0]) < SHOWN:
            self.parts.append(part)

    def collect(self) -> Collected:
        """Gather what is needed on the main process."""
        own = metrics.joined(self.parts)
        self.parts = []
        features = features_to_main(self.accelerator, own, has_logits=self.has_logits)
        moments = self.moments and moments_to_main(self.accelerator, self.moments)
        return Collected(features, moments, self.dim)


def drawn(
    pipeline: SamplingPipeline,
    extractor: metrics.Extractor,
    accelerator: Accelerator,
    collector: Collector,
    *,
    count: int,
    batch_size: int,
    seed: int,
    classes: Sequence[int] | None,
    filmed: bool = True,
    stopping: Stopping = NEVER,
    parts: Parts | None = None,
) -> Drawn:
    """Draw samples, each process its share, and take their features at once.

    Raises:
        GivenUpError: it was told to stop.
    """
    calls, parts = pipeline.num_calls(), parts or Parts()
    share = Share(accelerator, count, batch_size, calls, stopping)
    film = Trajectory(pipeline.codec, calls) if filmed and 0 in share.indices else None
    first, frames = [torch.zeros(0, dtype=torch.uint8)], torch.zeros(0, dtype=torch.uint8)
    left = [batch for batch in share.batches() if not parts.has(DRAWN, batch)]
    main, done = accelerator.is_main_process, share.calls - len(left) * calls
    with progress(share.calls, "sampling", "call", initial=done, shown=main) as bar:
        shown = on_step(bar, film)

        def after(done: int, total: int, x: Tensor) -> None:
            shown(done, total, x)
            share.tick()

        for indices in share.batches():
            held = parts.load(DRAWN, indices)
            if held is None:
                named: dict[str, Any] = {"seed": seed, "batch_size": batch_size}
                ((raw, _),) = generate(pipeline, indices, classes=classes, on_step=after, **named)
                raw = pipeline.codec.pixels(raw)
                found = _extracted(extractor, raw.to(accelerator.device), indices)
                held = {"features": found.features}
                if found.logits is not None:
                    held["logits"] = found.logits
                if indices[0] < GRID:
                    held["raw"] = raw
                if film is not None and indices[0] == 0:
                    held["frames"] = _shown(list(map(pipeline.codec.pixels, film.frames)))
                parts.save(DRAWN, indices, held)
            where = torch.tensor(indices)
            collector.add(metrics.Features(where, held["features"], held.get("logits")))
            if "raw" in held:
                first.append(held["raw"])
            frames = held.get("frames", frames)
        share.finish()
    raw = to_main(accelerator, torch.cat([each for each in first if len(each)] or first))
    frames = to_main(accelerator, frames)
    raw = torch.zeros(0, *pipeline.codec.shape, dtype=torch.uint8) if raw is None else raw[:GRID]
    return Drawn(collector.collect(), raw, [] if frames is None else list(frames))


def _shown(frames: Sequence[Tensor]) -> Tensor:
    """The frames that a report shows, (frames, samples, C, H, W)."""
    last = len(frames) - 1
    chosen = sorted({round(n * last / (_FRAMES - 1)) for n in range(_FRAMES)})
    return torch.stack([frames[n][:_FILMED] for n in chosen])


def _extracted(
    extractor: metrics.Extractor, raw: Tensor, indices: Sequence[int]
) -> metrics.Features:
    """The features of a batch; one call of a slow extractor takes longer than a signal may wait."""
    return attended(lambda: metrics.of_batch(extractor, raw, indices))


def of_images(
    extractor: metrics.Extractor,
    images: metrics.Images,
    accelerator: Accelerator,
    collector: Collector,
    count: int,
    batch_size: int,
    what: str,
    parts: Parts | None = None,
) -> Collected:
    """Features of the first ``count`` images, of all processes."""
    share, parts = Share(accelerator, count, batch_size), parts or Parts()
    done = sum(len(batch) for batch in share.batches() if parts.has(DRAWN, batch))
    main = accelerator.is_main_process
    with progress(len(share.indices), what, "img", initial=done, shown=main) as bar:
        for indices in share.batches():
            held = parts.load(DRAWN, indices)
            if held is None:
                raw = images.read(indices).to(accelerator.device)
                found = _extracted(extractor, raw, indices)
                held = {"features": found.features}
                if found.logits is not None:
                    held["logits"] = found.logits
                parts.save(DRAWN, indices, held)
                bar.update(len(indices))
            where = torch.tensor(indices)
            collector.add(metrics.Features(where, held["features"], held.get("logits")))
    return collector.collect()


def scores(
    metrics: Sequence[str],
    samples: Collected,
    reference: metrics.Reference | None,
    told: Mapping[str, Any],
    findings: Findings,
    accelerator: Accelerator,
    record: Unfinished,
    stopping: Stopping = NEVER,
) -> None:
    """Take the requested fidelity metrics, on the main process; all processes get the numbers.

    Raises:
        GivenUpError: it was told to stop.
    """
    for metric in metrics:
        recalled = record.main and record.recall(findings, NUMBERS.get(metric, (metric,)))
        if not broadcast_object_list([recalled])[0]:
            work = _Scoring(metric, samples, reference)
            score: metrics.Score = on_main(accelerator, work, stopping)
            _take(metric, score, reference, told, findings)
        record.save(findings)
    findings.metrics, findings.warnings = broadcast_object_list(
        [(findings.metrics, findings.warnings)]
    )[0]


class _Scoring(NamedTuple):
    """A metric to compute on the main process."""

    metric: str
    samples: Collected
    reference: metrics.Reference | None

    def __call__(self) -> metrics.Score:
        features = self.samples.features
        assert features is not None
        if self.metric == "isc":
            return metrics.isc(features.logits)
        assert self.reference is not None
        if self.metric == "fid":
            moments = self.samples.moments
            ours = features.features if moments is None else moments.statistics()
            return metrics.fid(ours, self.reference.held())
        assert self.reference.features is not None
        compare = {"kid": metrics.kid, "prc": metrics.prc}[self.metric]
        return compare(features.features, self.reference.features)


def _take(
    metric: str,
    score: metrics.Score,
    reference: metrics.Reference | None,
    told: Mapping[str, Any],
    findings: Findings,
) -> None:
    """Add the numbers of a score to findings."""
    depends = dict(told)
    if metric != "isc":
        assert reference is not None
        depends |= reference.provenance
    findings.warn(*score.warnings)
    if score.settings:
        depends["settings"] = score.settings
    for name, value in score.values.items():
        if not name.endswith("_std"):
            error = score.values.get(f"{name}_std")
            findings.add(name, value, error, depends, num_samples=score.num_samples)
