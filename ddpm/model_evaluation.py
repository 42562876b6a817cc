"""Evaluation of a checkpoint: its provenance, its data, and the evaluation from Python."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, Protocol

import torch

from ddpm import instantiate, metrics, samplers
from ddpm.config import paths
from ddpm.distributed import devices
from ddpm.distributed.processes import SingleProcess
from ddpm.errors import did_you_mean, require
from ddpm.evaluation.evaluator import Evaluator
from ddpm.evaluation.model import EvaluatedModel
from ddpm.evaluation.options import FIDELITY, EvaluationOptions
from ddpm.evaluation.reference_data import ReferenceResolver
from ddpm.evaluation.results import EvaluationResult
from ddpm.metrics import Extractor
from ddpm.named_data import ConfiguredData
from ddpm.pipeline import Autocast
from ddpm.samplers import Sampler
from ddpm.training import checkpoint as checkpoints
from ddpm.training.checkpoint import Checkpoint
from ddpm.version import __version__

EXTRACTORS = {name.lower(): name for name in ("Auto", "CLIP", "DINOv2", "Inception", "Pixels")}
"""Class names of the extractors without required options, by the names of their config group."""


def checkpoint_provenance(checkpoint: Checkpoint, weights: str, precision: str) -> dict[str, Any]:
    """Return the provenance that all numbers of a checkpoint share.

    Args:
        checkpoint: the checkpoint.
        weights: ``ema`` or ``raw``.
        precision: of the network's arithmetic: ``no``, ``fp16`` or ``bf16``.
    """
    manifest = json.loads((checkpoint.folder / checkpoints.MANIFEST).read_text(encoding="utf-8"))
    return {
        "ddpm": __version__,
        "checkpoint": str(checkpoint.folder),
        "step": checkpoint.step,
        "weights": weights,
        "weights_sha256": manifest["files"][checkpoints.WEIGHTS[weights]]["sha256"],
        "precision": precision,
    }


def checkpoint_data(checkpoint: Checkpoint | None) -> ConfiguredData:
    """Return the resolver of data names for a checkpoint; None = without training data."""
    if checkpoint is None:
        return ConfiguredData(None)
    return ConfiguredData(paths.located(checkpoint.config, checkpoint.run).get("data"))


class CheckpointModel(EvaluatedModel, Protocol):
    """A model that knows its checkpoint."""

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint of the weights; None for a network that is still being trained."""
        ...

    @property
    def weights(self) -> str:
        """``ema`` or ``raw``."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        ...

    @property
    def autocast(self) -> Autocast:
        """Function that returns the context in which the network runs."""
        ...


def evaluate(
    model: CheckpointModel,
    metrics: list[str],
    *,
    sampler: Sampler,
    extractor: str | Extractor,
    cache: str | None,
    **options: Any,
) -> EvaluationResult:
    """Evaluate a model in this process, with the numbers of ``ddpm-evaluate``.

    Args:
        model: the model.
        metrics: names of the metrics.
        sampler: draws the samples.
        extractor: of the metrics of samples: a name, see :data:`EXTRACTORS`, or an instance.
        cache: the folder of reference statistics; None = no cache.
        options: the others of :class:`~ddpm.evaluation.options.EvaluationOptions`.

    Raises:
        ConfigError: an option that the model or its data do not support.
    """
    shape, features, node = model.spec.shape, None, {}
    if set(metrics) & set(FIDELITY) and len(shape) == 3:
        features, node = build_extractor(extractor, shape)
    requested = EvaluationOptions(
        metrics=metrics, extractor=node, sampler=describe_sampler(sampler), **options
    )
    references = ReferenceResolver(
        requested.reference,
        checkpoint_data(model.checkpoint),
        None if cache is None else Path(cache),
        requested.folder_options,
    )
    processes = SingleProcess(model.device)
    evaluator = Evaluator(
        requested, processes, references, shape, extractor=features, sampler=sampler
    )
    evaluator.check_model(model)
    precision = devices.precision_of(model.autocast, model.device)  # after a check of auto
    provenance = {"ddpm": __version__, "weights": model.weights, "precision": precision}
    if model.checkpoint is not None:
        provenance = checkpoint_provenance(model.checkpoint, model.weights, precision)
    return evaluator.evaluate_model(model, provenance)


def build_extractor(
    extractor: str | Extractor, shape: tuple[int, ...]
) -> tuple[Extractor, dict[str, Any]]:
    """Return an extractor by its name, or itself, with its config node.

    Args:
        extractor: ``auto``, ``clip``, ``dinov2``, ``inception``, ``pixels``, or an instance.
        shape: (C, H, W) of the images, for ``auto``.

    Raises:
        ConfigError: an unknown name.
    """
    if isinstance(extractor, Extractor):
        return extractor, describe(extractor, metrics)
    problem = f"unknown extractor{did_you_mean(extractor, EXTRACTORS)}"
    require(extractor in EXTRACTORS, "extractor", extractor, problem)
    node = {"_target_": f"ddpm.metrics.{EXTRACTORS[extractor]}"}
    return instantiate.extractor(node, shape), node


def describe_sampler(sampler: Sampler) -> dict[str, Any]:
    """Return the config node of a sampler: class and options."""
    return describe(sampler, samplers)


def describe(instance: object, package: Any) -> dict[str, Any]:
    """Return the config node of an object: its class, and the options that it has as attributes.

    Args:
        instance: its class may be a user's own.
        package: exports the classes of this kind.
    """
    cls = type(instance)
    exported = getattr(package, cls.__name__, None) is cls
    module = package.__name__ if exported else cls.__module__
    options = [name for name in inspect.signature(cls).parameters if hasattr(instance, name)]
    values = {name: getattr(instance, name) for name in options}
    return {"_target_": f"{module}.{cls.__qualname__}", **values}
