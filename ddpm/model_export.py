"""Files of a checkpoint for other systems."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import safetensors.torch
from torch import nn

from ddpm import instantiate
from ddpm.config.registry import with_defaults
from ddpm.config.schema import check
from ddpm.errors import require
from ddpm.interop.export import export_model, export_pipeline
from ddpm.interop.foreign_format import NetworkSpec
from ddpm.interop.networks import DIFFUSERS
from ddpm.models.layers import Network
from ddpm.training.checkpoint import Checkpoint

OWN_FORMAT = "safetensors"


@dataclass(frozen=True)
class ExportedFiles:
    """The files of an export.

    Attributes:
        contents: bytes, or a dictionary for ``torch.save``, by the name relative to the output
            folder; the last completes the export.
        note: remarks about loading them.
    """

    contents: Mapping[str, bytes | Mapping[str, Any]]
    note: str


def is_folder(format: str) -> bool:
    """Return True if the format is a folder."""
    return format == DIFFUSERS


def export_files(
    source: Checkpoint,
    format: str,
    weights: Literal["ema", "raw"],
    version: str | None,
    name: str,
) -> ExportedFiles:
    """Return the files of a checkpoint in a format.

    Args:
        source: the checkpoint.
        format: ``safetensors`` or the name of a system.
        weights: of the checkpoint, for formats with one state dict.
        version: of the system; None = one that fits the network.
        name: of the file, without effect for a folder.

    Raises:
        ConfigError: an unknown format, or one without an equivalent of the network or the process.
    """
    problem = "is for other systems; leave it out"
    with_versions = format not in (OWN_FORMAT, DIFFUSERS)
    require(with_versions or version is None, "version", version, problem)
    if format == OWN_FORMAT:
        config = json.dumps(source.config)
        metadata = {"config": config, "step": str(source.step), "weights": weights}
        content = safetensors.torch.save(source.weights(weights), metadata)
        note = "with the parameter names of ddpm; its metadata contain the config"
        return ExportedFiles({name: content}, note)
    network, process, data = instantiate.trained(source, weights)
    spec = network_spec(source, network, data.shape[1:])
    if format == DIFFUSERS:
        files = export_pipeline(spec, source.weights(weights), process)
        return ExportedFiles(files, _pipeline_note(spec, process.learns_variance))
    states = {which: source.weights(which) for which in ("raw", "ema")}
    exported = export_model(
        format, spec, states, weights, diffusion=process, step=source.step, version=version
    )
    config = {key: source.config[key] for key in ("schedule", "objective", "diffusion")}
    arguments = {"format": format, "network": exported.kwargs, "process": config}
    beside = arguments_file(name)
    text = (json.dumps(arguments, indent=1) + "\n").encode()
    note = f"{beside} has the arguments of its network"
    return ExportedFiles({name: exported.content, beside: text}, note)


def arguments_file(name: str) -> str:
    """Return the name of the JSON file beside an exported file."""
    return f"{name.removesuffix('.pt')}.json"


def _pipeline_note(spec: NetworkSpec, learned_variance: bool) -> str:
    """Return remarks about the use of a pipeline."""
    parts = ["load it with DDPMPipeline.from_pretrained"]
    if spec.num_classes is not None:
        parts.append(
            "pipelines of diffusers pass no labels: call unet(x, t, class_labels) yourself"
        )
    if learned_variance:
        parts.append(
            "of the schedulers of diffusers, DDPM and DPM-Solver support its learned variance"
        )
    return "; ".join(parts)


def network_spec(source: Checkpoint, network: nn.Module, size: tuple[int, ...]) -> NetworkSpec:
    """Return the description of the network of a checkpoint, with all of its options."""
    problem = "is a network of a plugin, which other systems do not have"
    require(isinstance(network, Network), "format", None, problem)
    assert isinstance(network, Network)
    node = with_defaults(source.config["model"], "model")
    options = check({k: v for k, v in node.items() if k != "_target_"}, type(network))
    return NetworkSpec(
        type(network),
        network.channels,
        network.out_channels,
        size,
        network.num_classes,
        network.self_condition,
        options,
    )
