"""A trained model: a checkpoint made ready to draw samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ddpm import generation, instantiate
from ddpm.arguments import checked
from ddpm.arithmetic import Arithmetic, PrecisionOption, of_evaluation
from ddpm.config.registry import load_plugins
from ddpm.console import warn
from ddpm.data import Codec
from ddpm.data.spec import DataSpec
from ddpm.diffusion import Conditioning, Denoiser, DenoiserProtocol, GaussianDiffusion, Schedule
from ddpm.distributed import devices
from ddpm.errors import reported_as, require
from ddpm.evaluation.results import EvaluationResult
from ddpm.files import expand
from ddpm.generation import Mode, Samples
from ddpm.guidance import NO_GUIDANCE, Guidance, Guide, as_guidance, check_guide
from ddpm.inputs import Classes, ModelInputs, as_list
from ddpm.metrics import Extractor
from ddpm.pipeline import Autocast, CheckedDenoiser, SamplingPipeline, build_pipeline, placed
from ddpm.sample_files import save_samples
from ddpm.samplers import Sampler
from ddpm.samplers.grids import Steps
from ddpm.training.checkpoint import Checkpoint, find

Weights = Literal["ema", "raw"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedModel:
    """A network with all that drawing samples requires.

    Attributes:
        network: in eval mode, on ``device``.
        diffusion: the process that it was trained for.
        spec: shape, classes and codec of its data.
        autocast: returns the context in which the network runs in half precision.
        checkpoint: that the weights are from; None for a network that is still being trained.
        weights: ``ema`` or ``raw``, those of the checkpoint that the network has.
    """

    network: nn.Module
    diffusion: GaussianDiffusion
    spec: DataSpec
    device: torch.device
    autocast: Autocast = nullcontext
    checkpoint: Checkpoint | None
    weights: Weights = "ema"

    def __repr__(self) -> str:
        source = None if self.checkpoint is None else str(self.checkpoint.folder)
        return f"TrainedModel({type(self.network).__name__}, {self.spec.shape}, {source!r})"

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        weights: Weights,
        device: torch.device,
        autocast: Autocast = nullcontext,
    ) -> TrainedModel:
        """Return the model of a checkpoint.

        Args:
            checkpoint: the checkpoint.
            weights: ``ema`` for the average, ``raw`` for the weights of the last step.
            device: of the network.
            autocast: see the attribute.

        Raises:
            ConfigError: classes in the config that are not exported, or weights that do not fit.
        """
        network, diffusion, spec = instantiate.trained(checkpoint, weights)
        return cls(
            network=placed(network, device, len(spec.shape) - 1).eval(),
            diffusion=diffusion,
            spec=spec,
            device=device,
            autocast=autocast,
            checkpoint=checkpoint,
            weights=weights,
        )

    @property
    def codec(self) -> Codec:
        """Conversion between raw data and model space."""
        return self.spec.codec

    @property
    def inputs(self) -> ModelInputs:
        """Checks and readers of classes, conditioning data and ends of interpolations."""
        return ModelInputs(self.spec, self.diffusion.num_steps)

    @property
    def schedule(self) -> Schedule:
        """The noise schedule."""
        return self.diffusion.schedule

    @property
    def denoiser(self) -> DenoiserProtocol:
        """Prediction of x0 and noise from x_t.

        Call it as ``x0, eps, variance = model.denoiser(x_t, t)``, of a class-conditional model with
        ``conditioning=model.conditioning(classes)``. x_t is (B, C, *spatial) in model space,
        float32 on ``device``, t a real number from 0 to T-1 (else ConfigError) for the whole batch.
        x0 is clipped to the range of the data; the variance is None unless it is learned. Gradients
        flow, in float32: use ``torch.no_grad()`` and ``autocast()`` where you need them.
        """
        return CheckedDenoiser(self.pipeline().denoiser)

    @checked
    def conditioning(
        self, classes: Classes | Tensor = None, count: int | None = None
    ) -> Conditioning:
        """Return the conditioning of a batch by classes, on ``device``; empty without classes.

        Args:
            classes: numbers or names, or labels as :meth:`sample` returns them; None = all.
            count: B, where sample i is of ``classes[i % len(classes)]``; None = one per class.

        Raises:
            ConfigError: classes of an unconditional model, or an unknown class.
        """
        return self.pipeline().conditioning(self.inputs.labels(classes, count))

    def sample(
        self,
        n: int,
        *,
        sampler: str | Sampler = "unipc",
        steps: Steps = None,
        seed: int = 0,
        classes: Classes | Tensor = None,
        guidance: float | Guidance = 1.0,
        guidance_rescale: float = 0.0,
        batch_size: int = 64,
        condition: str | Path | Tensor | None = None,
    ) -> Samples:
        """Return ``n`` samples, those that ``ddpm-sample`` draws with the same seed.

        Args:
            n: number of samples, at least 1.
            sampler: a name, such as ``ddim``, with its default options; or an instance.
            steps: network calls, 1 to T, or in improved-diffusion's notation; None = the sampler's
                default. An instance has steps of its own.
            seed: sample i is a function of (seed, i) and its class, whatever the batch size.
            classes: numbers, also as a tensor, or names; sample i is of
                ``classes[i % len(classes)]``. None = all.
            guidance: scale of classifier-free guidance, 1 = off; or all options of guidance, see
                :class:`ddpm.Guidance`.
            guidance_rescale: 0 (off) to 1, see :class:`ddpm.Guidance`.
            batch_size: samples at once.
            condition: raw data (N, C, *spatial) or a file of them, for a model that was trained
                with ``data.condition``.

        Raises:
            ConfigError: an option that the model does not support; names it and a remedy.
        """
        batches = list(
            self.samples(
                n, sampler=sampler, steps=steps, seed=seed, classes=classes, guidance=guidance,
                guidance_rescale=guidance_rescale, batch_size=batch_size, condition=condition,
            )
        )  # fmt: skip
        data = torch.cat([batch.data for batch in batches])
        labels = [batch.labels for batch in batches if batch.labels is not None]
        return Samples(data, torch.cat(labels) if labels else None)

    @checked
    def samples(
        self,
        n: int,
        *,
        sampler: str | Sampler = "unipc",
        steps: Steps = None,
        seed: int = 0,
        classes: Classes | Tensor = None,
        guidance: float | Guidance = 1.0,
        guidance_rescale: float = 0.0,
        batch_size: int = 64,
        condition: str | Path | Tensor | None = None,
    ) -> Iterator[Samples]:
        """Draw samples batch by batch; the options are those of :meth:`sample`."""
        require(n >= 1, "n", n, "must be at least 1")
        require(batch_size >= 1, "batch_size", batch_size, "must be at least 1")
        guided = as_guidance(guidance, guidance_rescale)
        pipeline = self.pipeline(sampler, steps, guided)
        numbers, clean = self.class_numbers(classes, guided), self.inputs.condition(condition)
        batches = generation.generate(
            pipeline,
            range(n),
            seed=seed,
            batch_size=batch_size,
            classes=numbers,
            condition=clean,
        )
        return (Samples(data, self.spec.values(labels)) for data, labels in batches)

    @checked
    def interpolate(
        self,
        a: int | str | Path | Tensor,
        b: int | str | Path | Tensor,
        *,
        t: int | None = None,
        num_frames: int = 9,
        mode: Mode = "slerp",
        sampler: str | Sampler = "ddim",
        steps: Steps = None,
        seed: int = 0,
        classes: Classes | Tensor = None,
        guidance: float | Guidance = 1.0,
        guidance_rescale: float = 0.0,
        batch_size: int = 64,
    ) -> Tensor:
        """Return the frames from one end to the other, raw data (num_frames, C, *spatial).

        Args:
            a: the first end: the seed of a sample, a file, or raw data (C, *spatial).
            b: the last end.
            t: timestep to which both are noised, 0 to T-1; None = T-1 between two
                seeds and for ``ddim``, else (T-1) // 2.
            num_frames: at least 2, with the ends.
            mode: ``slerp``, ``linear`` or ``ddim``, see :func:`ddpm.generation.interpolate`.
            sampler: see :meth:`sample`.
            steps: see :meth:`sample`.
            seed: of the noise.
            classes: of a class-conditional model: one, or one per end.
            guidance: see :meth:`sample`.
            guidance_rescale: see :meth:`sample`.
            batch_size: frames at once.

        Raises:
            ConfigError: an option that the model does not support; names it and a remedy.
        """
        require(num_frames >= 2, "num_frames", num_frames, "must be at least 2, the two ends")
        require(batch_size >= 1, "batch_size", batch_size, "must be at least 1")
        ends = self.inputs.end("a", a), self.inputs.end("b", b)
        t, pair = self.inputs.timestep(t, ends, mode), self.inputs.class_pair(classes)
        return generation.interpolate(
            self.pipeline(sampler, steps, as_guidance(guidance, guidance_rescale)),
            ends,
            t=t,
            num_frames=num_frames,
            mode=mode,
            seed=seed,
            batch_size=batch_size,
            classes=pair,
        )

    @checked
    def evaluate(
        self,
        metrics: Sequence[str] | str = ("fid",),
        *,
        reference: str | Path | None = None,
        num_samples: int | None = None,
        num_images: int = 256,
        bound_steps: int | None = None,
        sampler: str | Sampler = "unipc",
        steps: Steps = None,
        seed: int = 0,
        classes: Classes | Tensor = None,
        guidance: float | Guidance = 1.0,
        guidance_rescale: float = 0.0,
        extractor: str | Extractor = "auto",
        batch_size: int = 64,
        cache: str | Path | None = "outputs/references",
    ) -> EvaluationResult:
        """Return metrics with their provenance, with the numbers of ``ddpm-evaluate``.

        ``result.numbers`` has the values by name, such as ``fid_5k``, ``result.metrics`` also their
        standard errors and everything that they depend on. The samples are drawn by this process
        alone.

        Args:
            metrics: ``fid``, ``kid``, ``isc`` and ``prc`` of samples of images; ``bpd`` (bits per
                dimension) and ``loss`` of clean data.
            reference: ``train`` or ``val``, parts of the model's data; a data group, such as
                ``cifar``; a folder or an .npz of images; a file of statistics. None = ``train`` for
                samples, ``val`` for clean data if it exists.
            num_samples: number of samples; None = as many as the reference has, at most 50000.
            num_images: number of clean data.
            bound_steps: terms of the bound for ``bpd``, 1 to T; None = all T.
            sampler: see :meth:`sample`.
            steps: see :meth:`sample`.
            seed: of samples and noise.
            classes: see :meth:`sample`; None = by the frequencies of the training data.
            guidance: see :meth:`sample`.
            guidance_rescale: see :meth:`sample`.
            extractor: ``auto``, ``clip``, ``dinov2``, ``inception``, ``pixels``, or an instance.
            batch_size: samples at once.
            cache: the folder of reference statistics; None = no cache.

        Raises:
            ConfigError: an option that the model or its data do not support.
        """
        from ddpm import model_evaluation

        names = [metrics] if isinstance(metrics, str) else list(metrics)
        return model_evaluation.evaluate(
            replace(self, autocast=of_evaluation(self.autocast, names)),
            names,
            sampler=instantiate.sampler(sampler, steps), extractor=extractor,
            cache=None if cache is None else expand("cache", str(cache)),
            reference=None if reference is None else expand("reference", str(reference)),
            num_samples=num_samples, num_images=num_images, bound_steps=bound_steps,
            classes=as_list(classes), batch_size=batch_size, seed=seed,
            **as_guidance(guidance, guidance_rescale).evaluation_options(),
        )  # fmt: skip

    @checked
    def save_images(self, data: Tensor, folder: str | Path) -> Path:
        """Write raw data (N, C, *spatial) as ``ddpm-sample`` does, and return the path of the grid.

        Each item is a file in its default format; ``grid.png`` shows all of them. The files that an
        earlier call or ``ddpm-sample`` wrote to the folder are replaced.

        Raises:
            ConfigError: data of another shape or type, a folder that cannot be written, or files
                in the way that were not written by ddpm.
        """
        self.inputs.check_data("data", data, batch=True)
        return save_samples(self.codec, data, Path(expand("folder", str(folder))))

    def pipeline(
        self,
        sampler: str | Sampler | Mapping[str, Any] = "unipc",
        steps: Steps | list[int] = None,
        guidance: Guidance = NO_GUIDANCE,
    ) -> SamplingPipeline:
        """Return the denoiser and the sampler to draw from.

        Args:
            sampler: a name, an instance, or a config node.
            steps: see :meth:`sample`.
            guidance: options of guidance.
        """
        typed = {} if isinstance(sampler, Mapping) else {"sampler.steps": "steps"}
        with reported_as(typed):
            pipeline = build_pipeline(
                self.network,
                self.diffusion,
                instantiate.sampler(sampler, steps),
                self.codec,
                device=self.device,
                guidance=guidance.resolved(self._guide),
                num_classes=self.spec.num_classes,
                autocast=self.autocast,
            )
        if isinstance(self.autocast, Arithmetic):
            self.autocast.check(pipeline, None if self.spec.num_classes is None else [0])
        return pipeline

    def _guide(self, path: str) -> Guide:
        """Return the model of a run or a checkpoint as a guide for this one.

        Raises:
            ConfigError: no checkpoint, or a model of other data.
        """
        checkpoint = find(expand("guide", path), warn)
        guide = TrainedModel.from_checkpoint(checkpoint, "ema", self.device, self.autocast)
        check_guide(path, guide.spec, self.spec)
        return Guide(Denoiser(guide.network, guide.diffusion), guide.spec.num_classes is not None)

    def class_numbers(
        self, classes: Classes | Tensor, guidance: Guidance = NO_GUIDANCE
    ) -> list[int] | None:
        """Return the numbers of classes named by number or name; by default all.

        Raises:
            ConfigError: an unconditional model, or an unknown class.
        """
        return self.inputs.class_numbers(classes, guidance)


@checked
def load(
    path: str | Path,
    weights: Weights = "ema",
    device: devices.Device = "auto",
    precision: PrecisionOption = "auto",
    plugins: Sequence[str] | str = (),
) -> TrainedModel:
    """Read a model from a run folder or a checkpoint; see :func:`ddpm.load`."""
    place = devices.device_of(device, precision, key="precision")
    if plugins:
        load_plugins([plugins] if isinstance(plugins, str) else list(plugins))
    checkpoint = find(expand("path", str(path)), warn)
    return TrainedModel.from_checkpoint(checkpoint, weights, place, Arithmetic(place, precision))
