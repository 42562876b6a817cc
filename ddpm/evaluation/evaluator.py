"""Measures models and images; made ready once, so that a training can ask many times."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ddpm import generation, instantiate, metrics
from ddpm.data.class_rows import Rows, cyclic_class_rows
from ddpm.distributed import cpu_threads
from ddpm.distributed.batches import Share
from ddpm.distributed.consensus import main_first
from ddpm.distributed.stopping import NEVER, Stopping
from ddpm.drawing import Model
from ddpm.errors import render, require
from ddpm.evaluation import class_balance, likelihood_metrics, sample_metrics
from ddpm.evaluation.neighbours import neighbours, picture
from ddpm.evaluation.options import Measure
from ddpm.evaluation.partial_results import Unfinished
from ddpm.evaluation.reference_data import MOST, Against, Compared
from ddpm.evaluation.results import Findings
from ddpm.evaluation.time_estimate import Estimate, Stage
from ddpm.instantiate import Facts
from ddpm.training.trial import median_seconds


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
        images: metrics.Images | None = None,
    ) -> None:
        self.measure, self.accelerator, self.against = measure, accelerator, against
        self.images, self._clean = images, None
        self.compared: Compared | None = None  # the Inception score needs none
        folder = against.is_folder or isinstance(images, metrics.FolderImages)
        npz = str(against.named).endswith(".npz") or isinstance(images, metrics.NpzImages)
        for name, value in measure.of_folders.items():
            problem = "has an effect on folders of pictures alone, and none is evaluated; omit it"
            require(folder or (npz and name in ("low", "high")), name, value, problem)
        if measure.fidelity:
            self._prepare(measure.fidelity, shape)

    def _prepare(self, requested: list[str], shape: tuple[int, ...]) -> None:
        """Load the extractor and find the reference; refuse what these cannot do."""
        problem = "fidelity is of images; take metrics=[bpd,loss]"
        require(len(shape) == 3, "metrics", requested, problem)
        accelerator, given = self.accelerator, self.images
        self.extractor = instantiate.extractor(self.measure.extractor, shape)
        with main_first(accelerator):  # one fetches the weights
            self.extractor.prepare(accelerator.device)
        dim, classes = self.extractor.widths(shape, accelerator.device)
        self.widths = dim, classes
        size = None
        if set(requested) != {"isc"}:
            self.compared = self.against.judged(self.extractor, dim, requested, accelerator)
            size = self.compared.size
            if self.compared.images is not None:
                theirs, _ = self.extractor.widths(self.compared.images.shape, accelerator.device)
                problem = f"has {theirs} features an image, the samples have {dim}"
                remedy = "take images of one size and colour"
                if self.against.is_folder:
                    color, size_of = "grey" if shape[0] == 1 else "rgb", list(shape[1:])
                    remedy = f"set image_size={render(size_of)} color={color}"
                named = self.measure.reference
                require(theirs == dim, "reference", named, f"{problem}; {remedy}")
        self.count = self._count(size)
        for metric in requested:
            metrics.check(metric, self.count, size, dim, classes)
        if given is not None and self.count < len(given):
            self.images = metrics.SomeImages(given, self.count)

    def _count(self, size: int | None) -> int:
        """How many samples are judged."""
        asked = self.measure.num_samples
        have = None if self.images is None else len(self.images)
        if asked is None:
            return min(have or size or MOST, MOST)
        problem = f"there are {have} images; ask for fewer"
        require(have is None or asked <= have, "num_samples", asked, problem)
        return asked

    def trial(self) -> cpu_threads.Trial:
        """Return batches of images whose features can be extracted to try it."""
        assert self.images is not None
        device, size = self.accelerator.device, min(self.measure.batch_size, self.count)
        batch = torch.zeros(size, *self.images.shape, dtype=torch.uint8, device=device)

        def measure(seconds: float) -> float:
            return median_seconds(lambda: self.extractor.outputs(batch), device, seconds=seconds)

        batches = -(-self.count // (size * self.accelerator.num_processes))
        return cpu_threads.Trial(measure, batches, "batch")

    def check(self, model: Model) -> generation.SamplingPipeline:
        """What to draw from a model with.

        Raises:
            ConfigError: guidance, classes or steps that it does not have.
        """
        asked, most = self.measure, model.diffusion.num_steps
        good = asked.bound_steps is None or 1 <= asked.bound_steps <= most
        problem = f"the process has {most} steps; use 1 to {most}, or null for all"
        require(good, "bound_steps", asked.bound_steps, problem)
        if asked.fidelity:
            model.class_numbers(asked.classes)
        return model.pipeline(
            asked.sampler, guidance=asked.guidance, guidance_rescale=asked.guidance_rescale
        )

    def classes(self, model: Model) -> list[int] | None:
        """Return the classes of the samples, see :func:`ddpm.generation.generate`.

        Raises:
            ConfigError: classes that the model does not have.
        """
        requested, counts = self.measure.classes, model.facts.class_counts
        if requested is None and model.facts.num_classes is not None and counts is not None:
            return class_balance.balanced(counts, self.count)
        return model.class_numbers(requested)

    def classes_of(self, model: Model) -> dict[str, Any]:
        """Return the provenance of the samples' classes; empty for an unconditional model."""
        if not self.measure.fidelity or model.facts.num_classes is None:
            return {}
        requested = self.measure.classes
        named = None if requested is None else model.class_numbers(requested)
        return class_balance.described(named, model.facts.class_counts)

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
    def reference(self) -> metrics.Reference | None:
        """What samples are compared with, if they are."""
        return None if self.compared is None else self.compared.reference(self.measure.batch_size)

    def of_images(self, told: Mapping[str, Any], record: Unfinished) -> Findings:
        """Judge the images that were given."""
        assert self.images is not None
        images, batch_size = self.images, self.measure.batch_size
        findings = Findings(warnings=self._warnings())
        record.save(findings)
        found = sample_metrics.of_images(
            self.extractor,
            images,
            self.accelerator,
            self._collector(),
            self.count,
            batch_size,
            "samples",
            record.parts,
        )
        told = {"num_samples": self.count, **told, "samples": images.described()}
        self._score(found, told, findings, record)
        raw = images.read(range(min(sample_metrics.GRID, self.count)))
        self._show(findings, found, raw)
        return findings

    def of_model(
        self,
        model: Model,
        told: Mapping[str, Any],
        *,
        stopping: Stopping = NEVER,
        estimate: bool = False,
        pictures: bool = True,
        record: Unfinished | None = None,
    ) -> Findings:
        """Judge a model.

        Args:
            model: its network is put into eval mode.
            told: what its numbers depend on.
            stopping: see :class:`Share`.
            estimate: say first how long it will take.
            pictures: make those of a report.
            record: where what is finished is kept.

        Raises:
            ConfigError: guidance or classes that the model does not have.
            GivenUpError: it was told to stop.
        """
        asked, accelerator, findings = self.measure, self.accelerator, Findings()
        self.ready(model.facts)
        pipeline, record = self.check(model), record or Unfinished()
        record.save(findings)
        expected = self._estimate(model, pipeline, record if estimate else None)
        shared = {**told, "seed": asked.seed}
        if asked.fidelity:
            self._of_samples(model, pipeline, shared, findings, stopping, pictures, record)
            expected.done(", ".join(asked.fidelity))
        clean = self._clean
        rest: dict[str, Any] = {
            "findings": findings,
            "stopping": stopping,
            "seed": asked.seed,
            "batch_size": asked.batch_size,
            "parts": record.parts,
        }
        for metric in asked.likelihood:
            assert clean is not None
            if metric == "loss":
                likelihood_metrics.losses(model, clean, told=shared, **rest)
            else:
                clip = pipeline.sampler.clip
                told_of_bound = {**shared, "clip": clip, "guidance": asked.guidance}
                likelihood_metrics.likelihood(
                    pipeline,
                    clean,
                    accelerator,
                    steps=asked.bound_steps,
                    told=told_of_bound,
                    **rest,
                )
            record.save(findings)
            expected.done(metric)
        return findings

    def _of_samples(
        self,
        model: Model,
        pipeline: generation.SamplingPipeline,
        told: Mapping[str, Any],
        findings: Findings,
        stopping: Stopping,
        pictures: bool,
        record: Unfinished,
    ) -> None:
        """Draw samples, and take the metrics of them."""
        asked, classes = self.measure, self.classes(model)
        findings.warn(*self._warnings())
        drawn = sample_metrics.drawn(
            pipeline,
            self.extractor,
            self.accelerator,
            self._collector(),
            count=self.count,
            batch_size=asked.batch_size,
            seed=asked.seed,
            classes=classes,
            filmed=pictures,
            stopping=stopping,
            parts=record.parts,
        )
        depends = {
            "num_samples": self.count,
            **told,
            "sampler": dict(asked.sampler),
            "steps": pipeline.num_calls(),
            "guidance": asked.guidance,
            "guidance_rescale": asked.guidance_rescale,
            **self.classes_of(model),
        }
        self._score(drawn.collected, depends, findings, record, stopping)
        if pictures:
            rows = cyclic_class_rows(len(drawn.raw), classes, model.facts.names)
            self._show(findings, drawn.collected, drawn.raw, rows)
            findings.trajectory = [picture(frame) for frame in drawn.frames]

    def _collector(self) -> sample_metrics.Collector:
        dim, classes = self.widths
        return sample_metrics.Collector(
            self.accelerator,
            self.count,
            dim,
            has_logits=classes is not None,
            statistics_only=self.measure.fidelity == ["fid"],
            limit=sample_metrics.LARGEST_GATHERED,
        )

    def _estimate(
        self, model: Model, pipeline: generation.SamplingPipeline, record: Unfinished | None
    ) -> Estimate:
        """The expected durations, printed; without a record nothing is expected."""
        asked, work = self.measure, []
        if record is None:
            return Estimate(main=False)
        if asked.fidelity:
            named, calls = ", ".join(asked.fidelity), pipeline.num_calls()
            work.append(Stage(named, sample_metrics.DRAWN, "num_samples", self.count, calls))
        for metric in asked.likelihood:
            assert self._clean is not None
            terms = asked.bound_steps or pipeline.diffusion.num_steps
            calls = terms if metric == "bpd" else likelihood_metrics.QUARTERS_OF_T
            work.append(Stage(metric, metric, "num_images", len(self._clean.x0), calls))
        expected = Estimate(self.accelerator.is_main_process)
        batch_size, classes = asked.batch_size, model.facts.num_classes
        for stage in work:
            expected.add(stage, Share(self.accelerator, stage.count, batch_size), record.parts)
        expected.begin(pipeline, None if classes is None else [0], batch_size)
        return expected

    def told(self) -> dict[str, Any]:
        """What samples and the likelihood are compared with, by content."""
        told = {} if self.reference is None else dict(self.reference.provenance)
        return told | ({} if self._clean is None else {"held_out": self._clean.told})

    def _warnings(self) -> list[str]:
        return [] if self.compared is None else list(self.compared.warnings)

    def _score(
        self,
        found: sample_metrics.Collected,
        told: Mapping[str, Any],
        findings: Findings,
        record: Unfinished,
        stopping: Stopping = NEVER,
    ) -> None:
        extractor = {**self.extractor.described(), "features": found.dim}
        told = {**told, "extractor": extractor, "resize": self.extractor.resize}
        sample_metrics.scores(
            self.measure.fidelity,
            found,
            self.reference,
            told,
            findings,
            self.accelerator,
            record,
            stopping,
        )

    def _show(
        self, findings: Findings, found: sample_metrics.Collected, raw: Tensor, rows: Rows = None
    ) -> None:
        """Take the grid of samples, and each beside what is nearest to it in the reference."""
        if not self.accelerator.is_main_process:
            return
        findings.samples = picture(raw, rows)
        reference, compared = self.reference, self.compared
        if reference is None or reference.features is None or found.features is None:
            return
        if compared is not None and compared.images is not None:
            mine = found.features.features[: sample_metrics.SHOWN][: len(raw)]
            findings.nearest = neighbours(mine, raw, reference.features, compared.images)
