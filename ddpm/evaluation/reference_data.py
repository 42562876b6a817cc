"""What a model or images are held against: ``reference=``, or the model's own data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ddpm import instantiate, metrics
from ddpm.config.location import config_dir
from ddpm.console import warn_once
from ddpm.data import UNTOUCHED, Dataset
from ddpm.data.classes import relabel
from ddpm.data.decoding import SUFFIXES
from ddpm.data.samples import samples_at
from ddpm.data.split import Split
from ddpm.distributed.main_process import attended, on_main
from ddpm.errors import ConfigError, require
from ddpm.evaluation.likelihood_metrics import Clean
from ddpm.evaluation.sample_metrics import Collector, of_images
from ddpm.instantiate import Facts

MOST = 50_000
"""Reference images, and samples unless more are asked for."""
_PARTS = ("train", "val")
_TOLD = ("_target_", "path", "split", "val_fraction")


class Against:
    """Finds what ``reference`` names.

    Args:
        named: ``train`` or ``val``, parts of the model's own data; a data group; a folder or an
            .npz of images; a file of statistics. None = ``train`` for samples, and for the
            likelihood ``val``, if there is such a part.
        node: of the model's own data, or None.
        own: reads these.
        cache: the folder of reference statistics, or None.
        options: for reading a folder, those of :class:`ddpm.metrics.FolderImages`.
    """

    def __init__(
        self,
        named: str | None,
        node: Mapping[str, Any] | None,
        own: Callable[[], Split] | None = None,
        cache: Path | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.named, self.node, self._own, self.cache = named, node, own, cache
        self._options = options or {}
        self.group = named is not None and named not in _PARTS and _is_data_group(named)

    @property
    def is_folder(self) -> bool:
        """Whether ``reference`` names a folder of pictures, as far as its name tells."""
        own = self.named is None or self.named in _PARTS or self.group
        return not own and not str(self.named).endswith((".npz", ".safetensors"))

    @cached_property
    def _of_model(self) -> tuple[Split, Mapping[str, Any]]:
        """The model's own data, and their config node."""
        problem = "there are no data of a model's own here; name a data group, a folder or an .npz"
        if self.node is None:
            raise ConfigError("reference", self.named, problem)
        complete = instantiate.completed({"data": self.node})  # of versions with fewer options
        return (self._own or partial(instantiate.splits, complete))(), self.node

    @cached_property
    def _of_group(self) -> tuple[Split, Mapping[str, Any]]:
        """The data group that is named."""
        file = config_dir() / "data" / f"{self.named}.yaml"
        node = instantiate.from_yaml(file.read_text(encoding="utf-8"), str(file))
        node |= {"class_cond": True} if "class_cond" in node else {}
        try:
            return instantiate.splits({"data": node}), node
        except ConfigError as error:
            problem = f"cannot be read ({error.key}: {error.problem})"
            remedy = "give a folder or an .npz of its images"
            raise ConfigError("reference", self.named, problem, remedy) from error

    def _part(self, name: str, *, group: bool) -> tuple[Dataset, dict[str, Any]]:
        """A part of the data, and what to say of it."""
        split, node = self._of_group if group else self._of_model
        found = split.train if name == "train" else split.val
        problem = "no data are held out; train with data.val_fraction=0.1, or leave it out"
        if found is None:
            raise ConfigError("reference", name, problem)
        told = {key: node[key] for key in _TOLD if key in node}
        return found, {**told, "part": name}

    def clean(self, facts: Facts, count: int, seed: int, part: str | None = None) -> Clean:
        """The first ``count`` of the data, in an order by ``seed``, for loss and likelihood.

        Args:
            facts: of the model's data.
            count: at most.
            seed: of the order.
            part: ``train`` or ``val`` of the model's own data; None = what is named, or as the
                class says.

        Raises:
            ConfigError: there are none, or they are not of the model's shape.
        """
        other = self.named is not None and self.named not in _PARTS and not self.group
        problem = "holds images alone; loss and bpd are of train, val or a data group"
        require(part is not None or not other, "reference", self.named, problem)
        group = self.group and part is None
        if part is None and self.named in _PARTS:
            part = self.named
        if part is None:
            part = "train" if group or self._of_model[0].val is None else "val"
        data, told = self._part(part, group=group)
        data = relabel(data, facts.num_classes, facts.class_names)
        problem = f"its data are {list(data.shape)}, the model's {list(facts.shape)}"
        require(tuple(data.shape) == tuple(facts.shape), "reference", self.named, problem)
        generator = torch.Generator().manual_seed(seed)
        indices = torch.randperm(len(data), generator=generator)[:count].tolist()
        raw, labels = data.fetch(indices, [UNTOUCHED] * len(indices))
        problem = "its data have no labels, and the model knows classes"
        conditional = facts.num_classes is not None
        require(labels is not None or not conditional, "reference", self.named, problem)
        sha256 = hashlib.sha256(raw.contiguous().numpy().data).hexdigest()
        of = {"reference": {**told, "num_images": len(indices), "sha256": sha256}}
        prefix = "val_" if part == "val" else ""
        return Clean(facts.codec.encode(raw), labels if conditional else None, prefix, of)

    def judged(
        self, extractor: metrics.Extractor, dim: int, requested: list[str], accelerator: Accelerator
    ) -> Compared:
        """What samples are compared with; nothing long has been done yet.

        Args:
            extractor: prepared.
            dim: its features an image.
            requested: names of metrics.
            accelerator: whose processes share the work.

        Raises:
            ConfigError: there is none, or it does not fit.
        """
        features = bool({"kid", "prc"} & set(requested))
        if self.named is not None and not self.group and _is_statistics(self.named):
            found, warnings = metrics.named(self.named, extractor, dim, need_features=features)
            return Compared(extractor, accelerator, features, ready=found, warnings=warnings)
        images = self._images()
        warn_once(accelerator, images.warnings)
        images = images if len(images) <= MOST else metrics.SomeImages(images, MOST)
        images.shown = accelerator.is_main_process
        return Compared(extractor, accelerator, features, images=images, cache=self.cache)

    def _images(self) -> metrics.Images:
        if self.named is not None and self.named not in _PARTS and not self.group:
            return images(self.named, "reference", self._options)
        part = self.named if self.named in _PARTS else "train"
        data, told = self._part(part, group=self.group)
        return metrics.DatasetImages(data, told, key="reference")


class Compared:
    """A reference, which may still have to be computed.

    Attributes:
        images: that it is of, where they are known.
        size: how many; None where that is not known.
        warnings: a line each.
    """

    def __init__(
        self,
        extractor: metrics.Extractor,
        accelerator: Accelerator,
        need_features: bool,
        *,
        ready: metrics.Reference | None = None,
        images: metrics.Images | None = None,
        cache: Path | None = None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.extractor, self.accelerator, self.need_features = extractor, accelerator, need_features
        self.ready, self.images, self.cache, self.warnings = ready, images, cache, warnings
        if images is not None:
            self.size: int | None = len(images)
        else:
            assert ready is not None
            self.size = ready.held().num_images

    def reference(self, batch_size: int) -> metrics.Reference:
        """Features or statistics, from the cache or computed, on the main process."""
        if self.ready is None:
            self.ready = self._computed(batch_size)
        return self.ready

    def _computed(self, batch_size: int) -> metrics.Reference:
        images, accelerator = self.images, self.accelerator
        assert images is not None
        hash_once(images, accelerator)
        dim, _ = self.extractor.widths(images.shape, accelerator.device)

        def compute(count: int) -> metrics.Features | metrics.Statistics | None:
            limit, few = metrics.LARGEST_KEPT, not self.need_features
            collector = Collector(
                accelerator, count, dim, has_logits=False, statistics_only=few, limit=limit
            )
            named = "reference"
            found = of_images(
                self.extractor, images, accelerator, collector, count, batch_size, named
            )
            if not accelerator.is_main_process:
                return None
            return found.features if found.moments is None else found.moments.statistics()

        return metrics.reference_of(
            self.extractor,
            images,
            compute,
            cache=self.cache,
            need_features=self.need_features,
            main=accelerator.is_main_process,
            attend=attended,
            told=lambda found: broadcast_object_list([found])[0],
        )


def hash_once(images: metrics.Images, accelerator: Accelerator) -> None:
    """Have the main process hash images, and tell the others."""
    images.shown = accelerator.is_main_process
    images.take_hash(on_main(accelerator, lambda: images.sha256))


def images(path: str, key: str, options: Mapping[str, Any]) -> metrics.Images:
    """Return the images of an .npz or .npy, of a folder of samples, or of any folder.

    They are read with such ``options`` as apply.
    """
    try:
        path = samples_at(path, ["images", "samples.npz", "samples.npy"], SUFFIXES)
    except ConfigError as error:
        raise error.renamed(key, path) from error
    if path.endswith((".npz", ".npy")):
        limits = {name: options[name] for name in ("low", "high") if name in options}
        return metrics.NpzImages(path, key=key, **limits)
    return metrics.FolderImages(path, key=key, **options)


def _is_statistics(path: str) -> bool:
    if path.endswith(".safetensors"):
        return True
    return path.endswith(".npz") and metrics.holds_statistics(path)


def _is_data_group(name: str) -> bool:
    return (config_dir() / "data" / f"{name}.yaml").is_file() and not Path(name).exists()
