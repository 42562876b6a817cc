"""Reference data of an evaluation: ``reference=``, or the training data of the model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from ddpm import metrics
from ddpm.console import warn_once
from ddpm.data import UNAUGMENTED_KEY, Dataset
from ddpm.data.classes import relabel
from ddpm.data.decoding import SUFFIXES
from ddpm.data.samples import find_samples
from ddpm.data.split import Split
from ddpm.distributed.consensus import broadcast
from ddpm.distributed.main_process import attended, on_main
from ddpm.distributed.processes import Processes
from ddpm.errors import ConfigError, require
from ddpm.evaluation.likelihood_metrics import CleanData
from ddpm.evaluation.model import DataSpecProtocol
from ddpm.evaluation.sample_metrics import FeatureCollector, extract_images

MAX_IMAGES = 50_000
"""Largest number of reference images, and of samples unless more are requested."""
_PARTS = ("train", "val")


@dataclass(frozen=True)
class NamedData:
    """A data set with its provenance.

    Attributes:
        split: the training data and the validation data.
        provenance: class, path and similar properties, as plain JSON.
    """

    split: Split
    provenance: Mapping[str, Any]


Load = Callable[[], NamedData]
Resolve = Callable[[str | None], Load | None]
"""Return the function that reads the data of a name, such as ``cifar``, or None if the name is
unknown. The name None stands for the training data of the model."""


def no_data(name: str | None) -> Load | None:
    """Resolve no name: without a config, reference data are files."""
    return None


class ReferenceResolver:
    """Finds the data that ``reference`` names.

    Args:
        name: ``train`` or ``val``, parts of the model's training data; the name of a data set; a
            folder or an .npz of images; a file of statistics. None = ``train`` for samples, and
            ``val`` for the likelihood if it exists.
        resolve: finds data sets by name.
        cache: the folder of reference statistics; None = no cache.
        folder_options: for reading a folder, those of :class:`ddpm.metrics.FolderImages`.
    """

    def __init__(
        self,
        name: str | None,
        resolve: Resolve = no_data,
        cache: Path | None = None,
        folder_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.cache, self._folder_options = name, cache, folder_options or {}
        self._load_model_data = resolve(None)
        self._load_named = None if name is None or name in _PARTS else resolve(name)

    @property
    def is_file(self) -> bool:
        """True if ``reference`` names a file or a folder."""
        return self.name is not None and self.name not in _PARTS and self._load_named is None

    @property
    def is_folder(self) -> bool:
        """True if ``reference`` names a folder of images, judging by its name."""
        return self.is_file and not str(self.name).endswith((".npz", ".safetensors"))

    @cached_property
    def _model_data(self) -> NamedData:
        """The training data of the model."""
        problem = (
            "no training data of a model are available; name a data group, a folder or an .npz"
        )
        if self._load_model_data is None:
            raise ConfigError("reference", self.name, problem)
        return self._load_model_data()

    @cached_property
    def _named_data(self) -> NamedData:
        """The data set of this name."""
        assert self._load_named is not None
        try:
            return self._load_named()
        except ConfigError as error:
            cause = error.problem.partition(";")[0]  # it may end with a remedy
            problem = f"cannot be read ({error.key}: {cause})"
            remedy = "use a folder or an .npz of its images"
            raise ConfigError("reference", self.name, problem, remedy) from error

    def _part(self, part: str, data: NamedData) -> tuple[Dataset, dict[str, Any]]:
        """Return a part of the data with its provenance."""
        dataset = data.split.train if part == "train" else data.split.val
        problem = "no data are held out; train with data.val_fraction=0.1, or leave it out"
        if dataset is None:
            raise ConfigError("reference", part, problem)
        return dataset, {**data.provenance, "part": part}

    def clean_data(
        self, spec: DataSpecProtocol, count: int, seed: int, part: str | None = None
    ) -> CleanData:
        """Return the first ``count`` items of the data in an order by ``seed``.

        Args:
            spec: of the model's data.
            count: largest number of items.
            seed: of the order.
            part: ``train`` or ``val`` of the model's data; None = those of ``reference``.

        Raises:
            ConfigError: no such data, or data of another shape than the model's.
        """
        problem = "contains images only; loss and bpd need train, val or a data group"
        require(part is not None or not self.is_file, "reference", self.name, problem)
        use_named = self._load_named is not None and part is None
        if part is None and self.name in _PARTS:
            part = self.name
        if part is None:
            part = "train" if use_named or self._model_data.split.val is None else "val"
        source = self._named_data if use_named else self._model_data
        data, provenance = self._part(part, source)
        data = relabel(data, spec.num_classes, spec.class_names)
        problem = f"its data have shape {list(data.shape)}, the model's {list(spec.shape)}"
        require(tuple(data.shape) == tuple(spec.shape), "reference", self.name, problem)
        generator = torch.Generator().manual_seed(seed)
        indices = torch.randperm(len(data), generator=generator)[:count].tolist()
        raw, labels = data.fetch(indices, [UNAUGMENTED_KEY] * len(indices))
        problem = "its data have no labels, which a class-conditional model needs"
        conditional = spec.num_classes is not None
        require(labels is not None or not conditional, "reference", self.name, problem)
        sha256 = hashlib.sha256(raw.contiguous().numpy().data).hexdigest()
        reference = {**provenance, "num_images": len(indices), "sha256": sha256}
        prefix, labels = "val_" if part == "val" else "", labels if conditional else None
        return CleanData(spec.codec.encode(raw), labels, prefix, {"reference": reference})

    def prepare(
        self,
        extractor: metrics.Extractor,
        num_features: int,
        requested: list[str],
        processes: Processes,
    ) -> PreparedReference:
        """Find the reference of the samples, without computing features yet.

        Args:
            extractor: must be prepared.
            num_features: of the extractor, per sample.
            requested: names of metrics.
            processes: share the work.

        Raises:
            ConfigError: no such reference, or one that does not fit the extractor.
        """
        need_features = bool({"kid", "prc"} & set(requested))
        if self.is_file and _is_statistics(str(self.name)):
            statistics, warnings = metrics.load_reference(
                str(self.name), extractor, num_features, need_features=need_features
            )
            return PreparedReference(
                extractor, processes, need_features, ready=statistics, warnings=warnings
            )
        images = self._images()
        warn_once(processes, images.warnings)
        images = images if len(images) <= MAX_IMAGES else metrics.RandomSubset(images, MAX_IMAGES)
        images.shown = processes.is_main_process
        return PreparedReference(
            extractor, processes, need_features, images=images, cache=self.cache
        )

    def _images(self) -> metrics.Images:
        if self.is_file:
            return read_images(str(self.name), "reference", self._folder_options)
        part = self.name if self.name in _PARTS else "train"
        source = self._model_data if self._load_named is None else self._named_data
        data, provenance = self._part(part, source)
        return metrics.DatasetImages(data, provenance, key="reference")


class PreparedReference:
    """The reference of the samples, whose features are computed on first use.

    Args:
        extractor: of samples and reference; must be prepared.
        processes: share the work.
        need_features: True if mean and covariance are not enough.
        ready: a reference that is complete already.
        images: the images of the reference, if it is not complete.
        cache: the folder of reference statistics; None = no cache.
        warnings: one line per warning.

    Attributes:
        images: the images of the reference; None if they are unknown.
        size: number of images; None if it is unknown.
        warnings: one line per warning.
    """

    def __init__(
        self,
        extractor: metrics.Extractor,
        processes: Processes,
        need_features: bool,
        *,
        ready: metrics.Reference | None = None,
        images: metrics.Images | None = None,
        cache: Path | None = None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.extractor, self.processes, self.need_features = extractor, processes, need_features
        self.ready, self.images, self.cache, self.warnings = ready, images, cache, warnings
        if images is not None:
            self.size: int | None = len(images)
        else:
            assert ready is not None
            self.size = ready.require_statistics().num_images

    def reference(self, batch_size: int) -> metrics.Reference:
        """Return features or statistics, from the cache or computed.

        Only the main process has more than their provenance. All processes must call this.

        Args:
            batch_size: images per call of the extractor.

        Raises:
            ConfigError: too few images, or a cache that cannot be written.
        """
        if self.ready is None:
            self.ready = self._compute(batch_size)
        return self.ready

    def _compute(self, batch_size: int) -> metrics.Reference:
        images, processes = self.images, self.processes
        assert images is not None
        hash_once(images, processes)
        num_features, _ = self.extractor.output_sizes(images.shape, processes.device)

        def compute(count: int) -> metrics.Features | metrics.Statistics | None:
            collector = FeatureCollector(
                processes,
                count,
                num_features,
                has_logits=False,
                statistics_only=not self.need_features,
                limit=metrics.LARGEST_CACHED,
            )
            collected = extract_images(
                self.extractor, images, processes, collector, count, batch_size, "reference"
            )
            if not processes.is_main_process:
                return None
            moments = collected.moments
            return collected.features if moments is None else moments.statistics()

        return metrics.cached_reference(
            self.extractor,
            images,
            compute,
            cache=self.cache,
            need_features=self.need_features,
            main=processes.is_main_process,
            attend=attended,
            broadcast=partial(broadcast, processes),
        )


def hash_once(images: metrics.Images, processes: Processes) -> None:
    """Compute the hash of images on the main process, and set it on all processes."""
    images.shown = processes.is_main_process
    images.set_sha256(on_main(processes, lambda: images.sha256))


def read_images(path: str, key: str, folder_options: Mapping[str, Any]) -> metrics.Images:
    """Return the images of an .npz or .npy, of a folder of samples, or of any folder.

    Args:
        path: the file or the folder.
        key: the option that names it.
        folder_options: those of :class:`ddpm.metrics.FolderImages`; for a file, ``low`` and
            ``high`` only.

    Raises:
        ConfigError: (key ``key``) a path that contains no images.
    """
    try:
        path = find_samples(path, ["images", "samples.npz", "samples.npy"], SUFFIXES)
    except ConfigError as error:
        raise error.renamed(key, path) from error
    if path.endswith((".npz", ".npy")):
        limits = {name: folder_options[name] for name in ("low", "high") if name in folder_options}
        return metrics.NpzImages(path, key=key, **limits)
    return metrics.FolderImages(path, key=key, **folder_options)


def _is_statistics(path: str) -> bool:
    if path.endswith(".safetensors"):
        return True
    return path.endswith(".npz") and metrics.contains_statistics(path)
