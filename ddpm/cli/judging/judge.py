"""Measures models and images; made ready once, so that a training can ask many times."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ddpm import fidelity, generation, instantiate
from ddpm.cli.drawing import Model
from ddpm.cli.judging import likelihood, samples
from ddpm.cli.judging.against import MOST, Against, Compared
from ddpm.cli.judging.batches import Stopping, never
from ddpm.cli.judging.findings import Findings
from ddpm.cli.judging.measure import Measure
from ddpm.data import ImageCodec
from ddpm.errors import require
from ddpm.fidelity.report import Neighbour
from ddpm.instantiate import Facts

_SHOWN = 24  # samples beside their nearest neighbours
_FRAMES, _FILMED = 10, 16  # pictures of a trajectory, and samples in each


class Judge:
    """What it takes to measure, checked before any work.

    Args:
        measure: what, and how.
        accelerator: whose processes share the work.
        against: what to compare with.
        shape: (C, *spatial) of samples.
        images: to be judged in place of a model.

    Raises:
        ConfigError: what cannot be measured, or not of these data.
    """

    def __init__(
        self,
        measure: Measure,
        accelerator: Accelerator,
        against: Against,
        shape: tuple[int, ...],
        images: fidelity.Images | None = None,
    ) -> None:
        self.measure, self.accelerator, self.against = measure, accelerator, against
        self.images, self._clean = images, None
        if measure.fidelity:
            self._prepare(measure.fidelity, shape)

    def _prepare(self, metrics: list[str], shape: tuple[int, ...]) -> None:
        """Load the extractor and find the reference; refuse what these cannot do."""
        problem = "fidelity is of images; take metrics=[bpd,loss]"
        require(len(shape) == 3, "metrics", metrics, problem)
        device = self.accelerator.device
        self.extractor = instantiate.extractor(self.measure.extractor, shape)
        self.extractor.prepare(device)
        dim, classes = self.extractor.widths(shape, device)
        self.compared: Compared = self.against.judged(
            self.extractor, dim, metrics, self.accelerator
        )
        self.count = self._count(self.compared.size)
        for metric in metrics:
            fidelity.check(metric, self.count, self.compared.size, dim, classes)

    def _count(self, size: int | None) -> int:
        """How many samples are judged."""
        asked = self.measure.num_samples
        have = None if self.images is None else len(self.images)
        if asked is None:
            return min(have or size or MOST, MOST)
        problem = f"there are {have} images; ask for fewer"
        require(have is None or asked <= have, "num_samples", asked, problem)
        return asked

    def check(self, model: Model, steps: int | None = None) -> generation.Source:
        """What to draw from a model with.

        Raises:
            ConfigError: guidance, classes or steps that it does not have.
        """
        asked, most = self.measure, model.diffusion.num_steps
        good = asked.bound_steps is None or 1 <= asked.bound_steps <= most
        problem = f"the process has {most} steps; take 1 to {most}, or null for all"
        require(good, "bound_steps", asked.bound_steps, problem)
        if asked.fidelity:
            model.classes(asked.classes)
        return model.source(asked.sampler, steps, asked.guidance, asked.guidance_rescale)

    def ready(self, facts: Facts, part: str | None = None) -> None:
        """Read, and compute, what does not depend on the model's weights.

        Args:
            facts: of the model's data.
            part: see :meth:`Against.clean`.

        Raises:
            ConfigError: data that are not of the model's shape.
        """
        if self.measure.likelihood and self._clean is None:
            count, seed = self.measure.num_images, self.measure.seed
            self._clean = self.against.clean(facts, count, seed, part)
        if self.measure.fidelity:
            _ = self.reference

    @cached_property
    def reference(self) -> fidelity.Reference:
        """What samples are compared with."""
        return self.compared.reference(self.measure.batch_size)

    def of_images(self, told: Mapping[str, Any]) -> Findings:
        """Judge the images that were given."""
        assert self.images is not None
        images, batch_size = self.images, self.measure.batch_size
        found = samples.of_images(
            self.extractor, images, self.accelerator, self.count, batch_size, "samples"
        )
        findings = Findings(warnings=list(self.compared.warnings))
        told = {"num_samples": self.count, **told, "samples": images.described()}
        samples.scores(self.measure.fidelity, found, self.reference, told, findings)
        raw = images.read(range(min(samples.GRID, self.count)))
        self._show(findings, found, raw)
        return findings

    def of_model(
        self,
        model: Model,
        told: Mapping[str, Any],
        *,
        steps: int | None = None,
        stopping: Stopping = never,
        estimate: bool = False,
    ) -> Findings:
        """Judge a model.

        Args:
            model: its network is put into eval mode.
            told: what its numbers depend on.
            steps: network calls a sample; None = the sampler's own.
            stopping: see :class:`Share`.
            estimate: say first how long it will take.

        Raises:
            ConfigError: guidance or classes that the model does not have.
            GivenUpError: it was told to stop.
        """
        asked, accelerator, findings = self.measure, self.accelerator, Findings()
        self.ready(model.facts)
        source = self.check(model, steps)
        if estimate:
            self._estimate(model, source)
        common: dict[str, Any] = {"seed": asked.seed, "batch_size": asked.batch_size}
        shared = {**told, "seed": asked.seed}
        if asked.fidelity:
            findings.warn(*self.compared.warnings)
            classes = model.classes(asked.classes)
            drawn = samples.drawn(
                source,
                self.extractor,
                accelerator,
                count=self.count,
                classes=classes,
                stopping=stopping,
                **common,
            )
            depends = {
                "num_samples": self.count,
                **shared,
                "sampler": dict(asked.sampler),
                "steps": source.calls(),
                "guidance": asked.guidance,
                "guidance_rescale": asked.guidance_rescale,
                **({} if asked.classes is None else {"classes": classes}),
            }
            samples.scores(asked.fidelity, drawn.features, self.reference, depends, findings)
            self._show(findings, drawn.features, drawn.raw)
            last = len(drawn.frames) - 1
            chosen = sorted({round(n * last / (_FRAMES - 1)) for n in range(_FRAMES)})
            findings.trajectory = [picture(drawn.frames[n][:_FILMED]) for n in chosen]
        clean, rest = self._clean, {"findings": findings, "stopping": stopping, **common}
        for metric in asked.likelihood:
            assert clean is not None
            if metric == "loss":
                likelihood.losses(model, clean, told=shared, **rest)
            else:
                told_of_bound = {**shared, "clip": source.sampler.clip, "guidance": asked.guidance}
                likelihood.likelihood(
                    source, clean, accelerator, steps=asked.bound_steps, told=told_of_bound, **rest
                )
        return findings

    def _estimate(self, model: Model, source: generation.Source) -> None:
        work = {}
        if self.measure.fidelity:
            work["num_samples"] = self.count, source.calls()
        if "bpd" in self.measure.metrics and self._clean is not None:
            terms = self.measure.bound_steps or source.diffusion.num_steps
            work["num_images"] = len(self._clean.x0), terms
        known = model.facts.num_classes
        classes = None if known is None else [0]
        samples.estimate(self.accelerator, source, classes, self.measure.batch_size, **work)

    def _show(self, findings: Findings, found: fidelity.Features, raw: Tensor) -> None:
        """Take the grid of samples, and each beside what is nearest to it in the reference."""
        findings.samples = picture(raw)
        theirs, images = self.reference.features, self.compared.images
        if theirs is None or images is None:
            return
        mine = found.features[:_SHOWN].float()[: len(raw)]
        apart, where = torch.cdist(mine, theirs.float()).min(dim=1)
        near = images.read(where.tolist())
        findings.nearest = [
            Neighbour(picture(raw[i : i + 1]), picture(near[i : i + 1]), float(apart[i]))
            for i in range(len(mine))
        ]


def picture(raw: Tensor) -> Any:
    """A grid of uint8 images (n, C, H, W)."""
    return ImageCodec(tuple(raw.shape[1:])).picture(raw)
