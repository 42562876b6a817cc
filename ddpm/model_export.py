"""Files of a checkpoint for other systems."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import safetensors.torch
from torch import nn

from ddpm import instantiate
from ddpm.config.registry import with_defaults
from ddpm.config.schema import check
from ddpm.data.spec import DataSpec
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import require
from ddpm.interop.export import export_model, export_pipeline
from ddpm.interop.foreign_format import NetworkSpec
from ddpm.interop.networks import DIFFUSERS
from ddpm.interop.programs import SUFFIXES, TORCH_EXPORT, SamplingProgram, export_program
from ddpm.models.labels import null_label
from ddpm.models.layers import Network
from ddpm.samplers import DDIM
from ddpm.training.checkpoint import Checkpoint
from ddpm.version import __version__

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


def is_program(format: str) -> bool:
    """Return True if the format is a program for sampling without this package."""
    return format in SUFFIXES


def default_name(step: int, format: str, weights: str, version: str | None) -> str:
    """Return the name of the file or folder of an export."""
    plain = {OWN_FORMAT: ".safetensors", **SUFFIXES}  # the suffix shows the format
    suffix = "" if is_folder(format) else plain.get(format, ".pt")
    parts = ["" if format in plain else format, version or "", "raw" * (weights == "raw")]
    return f"step-{step:08d}{''.join(f'-{part}' for part in parts if part)}{suffix}"


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
        format: ``safetensors``, ``torch-export``, ``onnx`` or the name of a system.
        weights: of the checkpoint, for formats with one state dict.
        version: of the system; None = one that fits the network.
        name: of the file, without effect for a folder.

    Raises:
        ConfigError: an unknown format, or one without an equivalent of the network or the process.
    """
    problem = "is for other systems; leave it out"
    with_versions = format not in (OWN_FORMAT, DIFFUSERS, *SUFFIXES)
    require(with_versions or version is None, "version", version, problem)
    if format == OWN_FORMAT:
        config = json.dumps(source.config)
        metadata = {"config": config, "step": str(source.step), "weights": weights}
        content = safetensors.torch.save(source.weights(weights), metadata)
        note = "with the parameter names of ddpm; its metadata contain the config"
        return ExportedFiles({name: content}, note)
    if format in SUFFIXES:
        return _program_files(source, format, weights, name)
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
    _, beside = file_names(format, name)
    text = (json.dumps(arguments, indent=1) + "\n").encode()
    note = f"{beside} has the arguments of its network"
    return ExportedFiles({name: exported.content, beside: text}, note)


def file_names(format: str, name: str) -> list[str]:
    """Return the names of the files of a format that is not a folder.

    Args:
        format: see :func:`export_files`.
        name: of the file to load.
    """
    single = format in (OWN_FORMAT, *SUFFIXES)
    return [name] if single else [name, _arguments_file(name)]


def _arguments_file(name: str) -> str:
    """Return the name of the JSON file beside an exported file."""
    return f"{name.removesuffix('.pt')}.json"


def _program_files(
    source: Checkpoint, format: str, weights: Literal["ema", "raw"], name: str
) -> ExportedFiles:
    """Return the file of a program for sampling without this package."""
    good = format != TORCH_EXPORT or name.endswith(SUFFIXES[format])
    require(good, "out", name, "must end in .pt2, which torch.export.load requires")
    network, process, data = instantiate.trained(source, weights)
    module = SamplingProgram(network, process, data.shape, data.num_classes)

    def describe(inputs: Sequence[str], outputs: Sequence[str]) -> str:
        origin = {"step": source.step, "weights": weights, "ddpm": __version__}
        sizes = {"inputs": list(inputs), "outputs": list(outputs)}
        return json.dumps({**sizes, **_sampling_facts(network, process, data), **origin}, indent=1)

    program = export_program(format, module, describe)
    inputs, outputs = (", ".join(names) for names in (program.inputs, program.outputs))
    shape = ", ".join(map(str, data.shape))
    note = f"inputs {inputs}, outputs {outputs}, x_t is (B, {shape}); see docs/interop.md"
    return ExportedFiles({name: program.content}, note)


def _sampling_facts(
    network: nn.Module, process: GaussianDiffusion, data: DataSpec
) -> dict[str, Any]:
    """Return what sampling requires beside the network, as plain data.

    The tables of alpha and sigma have T+1 entries, of which the last, with index -1, is clean data.
    """
    schedule, scaling, null = process.schedule, data.codec.scaling, None
    if data.num_classes is not None and process.loss_options.drops_labels:
        null = null_label(network, data.num_classes, required=False)
    times = [*range(schedule.num_steps), -1]
    return {
        "shape": list(data.shape),
        "num_steps": schedule.num_steps,
        "timesteps": DDIM().timesteps(schedule),
        "alphas": [schedule.alpha(t) for t in times],
        "sigmas": [schedule.sigma(t) for t in times],
        "variance": process.variance,
        "clip": list(data.codec.bounds),
        "data": data.codec.kind,
        "low": None if scaling is None else scaling.low,
        "high": None if scaling is None else scaling.high,
        "whole": None if scaling is None else scaling.whole,
        "num_classes": data.num_classes,
        "class_names": data.names,
        "null_class": null,
    }


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
