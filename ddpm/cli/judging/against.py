"""What a model or images are held against: ``reference=``, or the model's own data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ddpm import fidelity, instantiate
from ddpm.cli import app
from ddpm.cli.judging.likelihood import Clean
from ddpm.cli.judging.samples import of_images
from ddpm.data import UNTOUCHED, Dataset
from ddpm.data.split import Split
from ddpm.errors import ConfigError, require
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
    """

    def __init__(
        self,
        named: str | None,
        node: Mapping[str, Any] | None,
        own: Callable[[], Split] | None = None,
        cache: Path | None = None,
    ) -> None:
        self.named, self.node, self._own, self.cache = named, node, own, cache
        self.group = named is not None and named not in _PARTS and _is_data_group(named)

    @cached_property
    def _split(self) -> tuple[Split, Mapping[str, Any]]:
        """The data that are named, or the model's own, and their config node."""
        if self.group:
            file = app.config_dir() / "data" / f"{self.named}.yaml"
            node = instantiate.from_yaml(file.read_text(encoding="utf-8"), str(file))
            return instantiate.splits({"data": node}), node
        problem = "is missing: the model was imported without data; name a data group"
        if self.node is None:
            raise ConfigError("reference", None, problem)
        own = self._own or (lambda: instantiate.splits({"data": self.node}))
        return own(), self.node

    def _part(self, name: str) -> tuple[Dataset, dict[str, Any]]:
        split, node = self._split
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
            part: ``train`` or ``val``; None = the one that is named, or as the class says.

        Raises:
            ConfigError: there are none, or they are not of the model's shape.
        """
        if part is None and self.named in _PARTS:
            part = self.named
        if part is None:
            part = "train" if self._split[0].val is None or self.group else "val"
        data, told = self._part(part)
        problem = f"its data are {list(data.shape)}, the model's {list(facts.shape)}"
        require(tuple(data.shape) == tuple(facts.shape), "reference", self.named, problem)
        generator = torch.Generator().manual_seed(seed)
        indices = torch.randperm(len(data), generator=generator)[:count].tolist()
        raw, labels = data.fetch(indices, [UNTOUCHED] * len(indices))
        problem = "its data have no labels, and the model knows classes"
        conditional = facts.num_classes is not None
        require(labels is not None or not conditional, "reference", self.named, problem)
        of = {"reference": {**told, "num_images": len(indices)}}
        prefix = "val_" if part == "val" else ""
        return Clean(facts.codec.encode(raw), labels if conditional else None, prefix, of)

    def judged(
        self, extractor: fidelity.Extractor, dim: int, metrics: list[str], accelerator: Accelerator
    ) -> Compared:
        """What samples are compared with; nothing long has been done yet.

        Args:
            extractor: prepared.
            dim: its features an image.
            metrics: that will be asked for.
            accelerator: whose processes share the work.

        Raises:
            ConfigError: there is none, or it does not fit.
        """
        features = bool({"kid", "prc"} & set(metrics))
        if self.named is not None and not self.group and _is_statistics(self.named):
            found, warnings = fidelity.named(self.named, extractor, dim, need_features=features)
            return Compared(extractor, accelerator, features, ready=found, warnings=warnings)
        images = self._images()
        images.shown = accelerator.is_main_process
        return Compared(extractor, accelerator, features, images=images, cache=self.cache)

    def _images(self) -> fidelity.Images:
        if self.named is not None and self.named not in _PARTS and not self.group:
            return images(self.named, "reference")
        data, told = self._part(self.named if self.named in _PARTS else "train")
        return fidelity.DatasetImages(data, told, key="reference")


class Compared:
    """A reference, which may still have to be computed.

    Attributes:
        images: that it is of, where they are known.
        size: how many; None where that is not known.
        warnings: a line each.
    """

    def __init__(
        self,
        extractor: fidelity.Extractor,
        accelerator: Accelerator,
        need_features: bool,
        *,
        ready: fidelity.Reference | None = None,
        images: fidelity.Images | None = None,
        cache: Path | None = None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.extractor, self.accelerator, self.need_features = extractor, accelerator, need_features
        self.ready, self.images, self.cache, self.warnings = ready, images, cache, warnings
        if images is not None:
            self.size: int | None = min(len(images), MOST)
        else:
            assert ready is not None
            self.size = ready.statistics.num_images

    def reference(self, batch_size: int) -> fidelity.Reference:
        """Features or statistics, from the cache or computed; on every process alike."""
        if self.ready is None:
            self.ready = self._computed(batch_size)
        return self.ready

    def _computed(self, batch_size: int) -> fidelity.Reference:
        images, accelerator = self.images, self.accelerator
        assert images is not None

        def compute(count: int) -> fidelity.Features:
            what = "reference"
            return of_images(self.extractor, images, accelerator, count, batch_size, what)

        return fidelity.reference_of(
            self.extractor,
            images,
            compute,
            cache=self.cache,
            count=self.size,
            need_features=self.need_features,
            main=accelerator.is_main_process,
            told=lambda found: broadcast_object_list([found])[0],
        )


def images(path: str, key: str) -> fidelity.Images:
    """The images of a folder, or of an .npz."""
    if path.endswith(".npz"):
        return fidelity.NpzImages(path, key=key)
    return fidelity.FolderImages(path, key=key)


def _is_statistics(path: str) -> bool:
    if path.endswith(".safetensors"):
        return True
    return path.endswith(".npz") and fidelity.holds_statistics(path)


def _is_data_group(name: str) -> bool:
    return (app.config_dir() / "data" / f"{name}.yaml").is_file() and not Path(name).exists()
