"""One evaluation: what is judged, against what, and where the answers go."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from ddpm import __version__, fidelity, instantiate
from ddpm.cli import app, judging
from ddpm.cli.drawing import Trained, label
from ddpm.cli.judging import FIDELITY, LIKELIHOOD, Findings
from ddpm.data import Dataset
from ddpm.errors import ConfigError, did_you_mean, require
from ddpm.fidelity.report import Neighbour, Report, write_report
from ddpm.files import replacing
from ddpm.progress import warn
from ddpm.training import launch
from ddpm.training.run import Run, new_folder

Node = Mapping[str, Any]
_MOST = 50_000  # samples, unless more are asked for
_SHOWN = 24  # samples beside their nearest neighbours


@dataclass(frozen=True)
class Asked:
    """The options of ``ddpm-evaluate`` that are numbers and names; see its YAML."""

    metrics: list[str]
    reference: str | None
    num_samples: int | None
    num_images: int
    steps: int | None
    batch_size: int
    seed: int
    guidance: float
    guidance_rescale: float
    weights: Literal["ema", "raw"]
    cache: str | None
    out: str | None

    def __post_init__(self) -> None:
        require(bool(self.metrics), "metrics", [], "name at least one, such as [fid]")
        for name in self.metrics:
            if name not in (*FIDELITY, *LIKELIHOOD):
                hint = did_you_mean(name, (*FIDELITY, *LIKELIHOOD))
                raise ConfigError("metrics", name, f"there is no such metric{hint}")
        for key in ("batch_size", "num_images"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "must be at least 1")

    @property
    def fidelity(self) -> list[str]:
        """The metrics of samples."""
        return [name for name in self.metrics if name in FIDELITY]


@dataclass
class Evaluation:
    """What is judged and how; see :meth:`run`."""

    asked: Asked
    accelerator: Accelerator
    extractor: fidelity.Extractor
    sampler: Node
    trained: Trained | None
    images: fidelity.Images | None
    findings: Findings = field(default_factory=Findings)
    _data: Dataset | None = None

    @classmethod
    def of(
        cls,
        asked: Asked,
        ckpt: str | None,
        samples: str | None,
        extractor: Node,
        sampler: Node,
        device: launch.Device,
        precision: launch.Precision,
    ) -> Evaluation:
        """Read the checkpoint or the images, and refuse what cannot be done."""
        one = (ckpt is None) != (samples is None)
        require(one, "ckpt", ckpt, "give either ckpt=, a model, or samples=, images")
        judge: fidelity.Extractor = instantiate.build(extractor, "extractor")
        if ckpt is not None:
            trained = Trained.load(ckpt, asked.weights, device, precision)
            return cls(asked, trained.accelerator, judge, sampler, trained, None)
        assert samples is not None
        for name in asked.metrics:
            require(name in FIDELITY, "metrics", name, "needs a model; give ckpt= with it")
        problem = "is missing: name what the images are compared with"
        require(asked.reference is not None, "reference", None, problem)
        accelerator = launch.accelerator(device, precision, key="precision")
        return cls(asked, accelerator, judge, sampler, None, _images(samples, "samples"))

    def run(self) -> float:
        """Measure all, write it down, and return the first number."""
        if self.asked.fidelity:
            self._judge_samples()
        if set(self.asked.metrics) & set(LIKELIHOOD):
            self._judge_data()
        if self.accelerator.is_main_process:
            for warning in dict.fromkeys(self.findings.warnings):
                warn(warning)
            self._write(self.folder)
        self.accelerator.wait_for_everyone()
        first = self.findings.metrics[0].value
        self.accelerator.end_training()
        return first

    @cached_property
    def folder(self) -> Path:
        """Where the answers go; made by the main process when all is checked, before the work."""
        folder = None if self.asked.out is None else Path(self.asked.out)
        if folder is None and self.accelerator.is_main_process:
            if self.trained is None:
                folder = new_folder(Path("outputs"), "evaluation")
            else:
                found = self.trained.checkpoint
                name = f"step-{found.step:08d}-{label(self.sampler)}"
                folder = new_folder(found.run / "evaluations", name)
        (folder,) = broadcast_object_list([folder])
        assert isinstance(folder, Path)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    # fidelity

    def _judge_samples(self) -> None:
        extractor, accelerator, asked = self.extractor, self.accelerator, self.asked
        extractor.prepare(accelerator.device)
        reference, source_images = self._reference()
        size = reference.provenance.get("reference", {}).get("num_images")
        count = self._count(size)
        shape = self._shape()
        dim, classes = extractor.widths(shape, accelerator.device)
        for metric in asked.fidelity:
            fidelity.check(metric, count, size, dim, classes)
        app.say(self.accelerator, f"results go to {self.folder}")
        told: dict[str, Any] = {"num_samples": count, **self._provenance()}
        if self.trained is None:
            assert self.images is not None
            images = self.images
            told["samples"] = images.described()
            found = judging.of_images(
                extractor, images, accelerator, count, asked.batch_size, "samples"
            )
            raw = images.read(range(min(64, count)))
        else:
            source = self._source()
            every = self.trained.facts.num_classes
            found, raw = judging.drawn(
                source, extractor, accelerator, count=count, batch_size=asked.batch_size,
                seed=asked.seed, classes=None if every is None else list(range(every)),
            )  # fmt: skip
        judging.scores(asked.fidelity, found, reference, told, self.findings)
        self._pictures = raw, self._nearest(found, reference, raw, source_images)

    def _count(self, size: int | None) -> int:
        asked = self.asked.num_samples
        have = None if self.images is None else len(self.images)
        if asked is None:
            return min(have or size or _MOST, _MOST)
        problem = f"there are {have} images; ask for fewer"
        require(have is None or asked <= have, "num_samples", asked, problem)
        return asked

    def _shape(self) -> tuple[int, ...]:
        if self.images is not None:
            return self.images.shape
        assert self.trained is not None
        shape = self.trained.facts.shape
        problem = "fidelity is of images; leave fid, kid, isc and prc out"
        require(len(shape) == 3, "metrics", self.asked.fidelity, problem)
        return shape

    def _source(self) -> Any:
        assert self.trained is not None
        asked = self.asked
        return self.trained.source(
            self.sampler, asked.steps, asked.guidance, asked.guidance_rescale
        )

    def _reference(self) -> tuple[fidelity.Reference, fidelity.Images | None]:
        """What samples are compared with, and its images where it has some."""
        asked, device = self.asked, self.accelerator.device
        features = bool({"kid", "prc"} & set(asked.metrics))
        if asked.reference is not None and _is_statistics(asked.reference):
            dim, _ = self.extractor.widths(self._shape(), device)
            found, warnings = fidelity.named(
                asked.reference, self.extractor, dim, need_features=features
            )
            self.findings.warnings.extend(warnings)
            return found, None
        images = self._reference_images()
        images.shown = self.accelerator.is_main_process
        count = min(len(images), _MOST)
        wanted = fidelity.provenance(self.extractor, images, count)
        cache = None if asked.cache is None else Path(asked.cache)
        held = None
        if cache is not None and self.accelerator.is_main_process:
            held = fidelity.find(cache, wanted, need_features=features)
        (held,) = broadcast_object_list([held])
        if held is None:
            found = judging.of_images(
                self.extractor, images, self.accelerator, count, asked.batch_size, "reference"
            )
            held = fidelity.make(found, wanted)
            if cache is not None and self.accelerator.is_main_process:
                fidelity.keep(cache, held)
        assert isinstance(held, fidelity.Reference)
        return held, images

    def _reference_images(self) -> fidelity.Images:
        named = self.asked.reference
        if named is not None and not _is_data_group(named):
            return _images(named, "reference")
        data, node = self._dataset()
        told = {key: node[key] for key in ("_target_", "path", "split") if key in node}
        return fidelity.DatasetImages(data, told, key="reference")

    def _dataset(self) -> tuple[Dataset, Node]:
        """The data that the model was trained on, or those of the data group that is named."""
        named = self.asked.reference
        if named is not None and _is_data_group(named):
            file = app.config_dir() / "data" / f"{named}.yaml"
            node = instantiate.from_yaml(file.read_text(encoding="utf-8"), str(file))
        else:
            assert self.trained is not None
            config = self.trained.checkpoint.config
            problem = "is missing: the model was imported without data; name a data group"
            require("data" in config, "reference", None, problem)
            node = config["data"]
        if self._data is None:
            self._data = instantiate.dataset({"data": node})
        return self._data, node

    def _nearest(
        self,
        found: fidelity.Features,
        reference: fidelity.Reference,
        raw: Tensor,
        images: fidelity.Images | None,
    ) -> list[Neighbour] | None:
        """The first samples beside what is nearest to them in the reference."""
        if reference.features is None or images is None:
            return None
        count = min(_SHOWN, len(raw))
        apart, where = torch.cdist(found.features[:count].float(), reference.features.float()).min(
            dim=1
        )
        near = images.read(where.tolist())
        show = self._picture
        return [
            Neighbour(show(raw[i : i + 1]), show(near[i : i + 1]), float(apart[i]))
            for i in range(count)
        ]

    def _picture(self, raw: Tensor) -> Any:
        from ddpm.data import ImageCodec

        return ImageCodec(tuple(raw.shape[1:])).picture(raw)

    # likelihood

    def _judge_data(self) -> None:
        assert self.trained is not None
        asked, trained = self.asked, self.trained
        data, node = self._dataset()
        count = min(asked.num_images, len(data))
        facts = trained.facts
        same = tuple(data.shape) == tuple(facts.shape)
        problem = f"its data are {list(data.shape)}, the model's {list(facts.shape)}"
        require(same, "reference", asked.reference, problem)
        folder = self.folder
        generator = torch.Generator().manual_seed(asked.seed)
        indices = torch.randperm(len(data), generator=generator)[:count].tolist()
        raw, labels = data.fetch(indices, [0] * count)
        x0 = facts.codec.encode(raw)
        known = labels if facts.num_classes is not None else None
        told = {"num_images": count, "reference": dict(node), **self._provenance()}
        common = {"seed": asked.seed, "batch_size": asked.batch_size, "told": told}
        if "loss" in asked.metrics:
            loss = partial(trained.diffusion.loss, trained.network.eval())
            judging.losses(
                loss, trained.diffusion.num_steps, x0, known, trained.accelerator,
                findings=self.findings, **common,
            )  # fmt: skip
        if "bpd" in asked.metrics:
            curve = judging.likelihood(
                self._source(), x0, known, trained.accelerator,
                steps=asked.steps, findings=self.findings, **common,
            )  # fmt: skip
            if self.accelerator.is_main_process:
                judging.save_bound(folder, curve)

    # what is written

    def _provenance(self) -> dict[str, Any]:
        """What every number depends on, of the model."""
        told: dict[str, Any] = {"ddpm": __version__, "seed": self.asked.seed}
        if self.trained is None:
            return told
        found, asked = self.trained.checkpoint, self.asked
        manifest = json.loads((found.folder / "manifest.json").read_text(encoding="utf-8"))
        name = {"raw": "model.safetensors", "ema": "ema.safetensors"}[asked.weights]
        return {
            **told,
            "checkpoint": str(found.folder),
            "weights": asked.weights,
            "weights_sha256": manifest["files"][name]["sha256"],
            "sampler": dict(self.sampler),
            "steps": self._source().calls(),
            "guidance": asked.guidance,
        }

    def _write(self, folder: Path) -> None:
        rows = [
            {"name": m.name, "value": m.value, "error": m.error, **m.provenance}
            for m in self.findings.metrics
        ]
        content = {"metrics": rows, "warnings": list(dict.fromkeys(self.findings.warnings))}
        with replacing(folder / "evaluation.json") as aside:
            aside.write_text(json.dumps(content, indent=1), encoding="utf-8")
        raw, nearest = getattr(self, "_pictures", (None, None))
        run, config, step, loss = folder.name, {}, None, []
        if self.trained is not None:
            found = self.trained.checkpoint
            run, config, step = found.run.name, found.config, found.step
            kept = Run(found.run)
            loss = [(r["step"], r["loss"]) for r in kept.metrics() if r.get("loss") is not None]
            numbers = {m.name: m.value for m in self.findings.metrics}
            kept.evaluated(step, numbers, str(folder))
        report = Report(
            title="Evaluation",
            run=run,
            step=step,
            metrics=self.findings.metrics,
            warnings=content["warnings"],
            config=config,
            provenance={"made by": f"ddpm {__version__}", "evaluation": str(folder)},
            samples=None if raw is None else self._picture(raw),
            seed=self.asked.seed,
            neighbours=nearest,
            loss=loss,
            bound=self.findings.bound,
        )
        write_report(folder / "report.html", report)
        for metric in self.findings.metrics:
            error = "" if metric.error is None else f" +- {metric.error:.4g}"
            print(f"{metric.name:12} {metric.value:.6g}{error}")
        print(f"done: {folder} (evaluation.json, report.html)", flush=True)


def _is_statistics(path: str) -> bool:
    if path.endswith(".safetensors"):
        return True
    return path.endswith(".npz") and fidelity.holds_statistics(path)


def _is_data_group(name: str) -> bool:
    return (app.config_dir() / "data" / f"{name}.yaml").is_file() and not Path(name).exists()


def _images(path: str, key: str) -> fidelity.Images:
    if path.endswith(".npz"):
        return fidelity.NpzImages(path, key=key)
    return fidelity.FolderImages(path, key=key)
