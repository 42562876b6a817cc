"""Samples, or images that exist already, and how near they come to a reference."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ddpm import fidelity
from ddpm.cli import app
from ddpm.cli.drawing import GRID, Trajectory, on_step
from ddpm.cli.judging.batches import Share, Stopping, never
from ddpm.cli.judging.findings import Findings
from ddpm.generation import SampleNoise, Source, generate
from ddpm.progress import progress

_TRIAL_SECONDS = 0.3
_WORTH_TELLING = 200  # network calls, below which nobody waits long


class Drawn(NamedTuple):
    """Samples of a model.

    Attributes:
        features: of all of them.
        raw: the first ones, uint8 (n, C, H, W).
        frames: the first ones on their way from noise to data.
    """

    features: fidelity.Features
    raw: Tensor
    frames: list[Tensor]


def drawn(
    source: Source,
    extractor: fidelity.Extractor,
    accelerator: Accelerator,
    *,
    count: int,
    batch_size: int,
    seed: int,
    classes: Sequence[int] | None,
    filmed: bool = True,
    stopping: Stopping = never,
) -> Drawn:
    """Draw samples, each process its share, and take their features at once.

    Raises:
        GivenUpError: it was told to stop.
    """
    share = Share(accelerator, count, batch_size, source.calls(), stopping)
    film = Trajectory(source.codec, source.calls()) if filmed and 0 in share.indices else None
    parts, first = [], []
    with progress(share.calls, "sampling", "call", shown=accelerator.is_main_process) as bar:
        shown = on_step(bar, film)

        def after(done: int, total: int, x: Tensor) -> None:
            shown(done, total, x)
            share.tick()

        batches = generate(
            source,
            share.indices,
            seed=seed,
            batch_size=batch_size,
            classes=classes,
            on_step=after,
        )
        for (raw, _), indices in zip(batches, share.batches(), strict=True):
            pixels = source.codec.pixels(raw)
            parts.append(fidelity.of_batch(extractor, pixels.to(accelerator.device), indices))
            if indices[0] < GRID:
                first.append(pixels)
        share.finish()
    frames = [] if film is None else [source.codec.pixels(raw) for raw in film.frames]
    own = fidelity.joined(parts), first, frames
    everyone = gather_object([own])
    features = fidelity.joined([each for each, _, _ in everyone], count)
    raw = torch.cat([each for _, found, _ in everyone for each in found])[:GRID]
    return Drawn(features, raw, next((frames for _, _, frames in everyone if frames), []))


def estimate(
    accelerator: Accelerator,
    source: Source,
    classes: Sequence[int] | None,
    batch_size: int,
    **work: tuple[int, int],
) -> None:
    """Say how long the work will take, after some calls of the network that count for nothing.

    Args:
        accelerator: whose processes share it.
        source: the model.
        classes: of samples.
        batch_size: items at once.
        work: by the option that says how many: their number, and network calls for each.
    """
    calls = {
        key: Share(accelerator, count, batch_size).most * each
        for key, (count, each) in work.items()
    }
    long = [key for key in work if calls[key] >= _WORTH_TELLING]
    if not long:
        return
    seconds = _seconds_a_call(source, min(batch_size, work[long[0]][0]), classes)
    for key in long:
        (count, each), took = work[key], seconds * calls[key]
        fewer = max(count // 10, 2)
        app.say(
            accelerator,
            f"{key}={count} of {each} network calls: about {_duration(took)} on this machine; "
            f"{key}={fewer} takes {_duration(took * fewer / count)}",
        )


def _seconds_a_call(source: Source, size: int, classes: Sequence[int] | None) -> float:
    noise = SampleNoise(range(size)).draw(source.codec.shape).to(source.device)
    y = None if classes is None else torch.full((size,), classes[0], device=source.device)
    took, until = [], time.perf_counter() + _TRIAL_SECONDS
    while len(took) < 3 or time.perf_counter() < until:  # the first one is slower than the others
        began = time.perf_counter()
        with torch.inference_mode(), source.autocast():
            float(source.denoiser(noise, source.diffusion.num_steps - 1, y=y).x0.sum())
        took.append(time.perf_counter() - began)
    return min(took)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def of_images(
    extractor: fidelity.Extractor,
    images: fidelity.Images,
    accelerator: Accelerator,
    count: int,
    batch_size: int,
    what: str,
) -> fidelity.Features:
    """Features of the first ``count`` images, of all processes."""
    share = Share(accelerator, count, batch_size)
    with progress(len(share.indices), what, "img", shown=accelerator.is_main_process) as bar:
        found = fidelity.extract(
            extractor,
            images,
            share.indices,
            batch_size=batch_size,
            device=accelerator.device,
            on_batch=bar.update,
        )
    return fidelity.joined(gather_object([found]), count)


def scores(
    metrics: Sequence[str],
    samples: fidelity.Features,
    reference: fidelity.Reference | None,
    told: Mapping[str, Any],
    findings: Findings,
) -> None:
    """Take the fidelity metrics that are asked for."""
    for metric in metrics:
        depends = dict(told)
        if metric == "isc":
            score = fidelity.isc(samples.logits)
        else:
            assert reference is not None
            depends |= reference.provenance
            if metric == "fid":
                score = fidelity.fid(samples.features, reference.statistics)
            else:
                assert reference.features is not None
                compare = {"kid": fidelity.kid, "prc": fidelity.prc}[metric]
                score = compare(samples.features, reference.features)
        findings.warn(*score.warnings)
        if score.settings:
            depends["settings"] = score.settings
        for name, value in score.values.items():
            if not name.endswith("_std"):
                error = score.values.get(f"{name}_std")
                findings.add(name, value, error, depends, num_samples=len(samples))
