"""Export of a network to another system's format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from ddpm.diffusion import GaussianDiffusion, Objective
from ddpm.errors import ConfigError, did_you_mean, require
from ddpm.interop.diffusers_import import CONFIG, INDEX, SCHEDULER_CONFIG, WEIGHTS
from ddpm.interop.diffusers_network import NETWORK, config_of, network_spec
from ddpm.interop.diffusers_process import scheduler_config
from ddpm.interop.diffusers_weights import weights_from, weights_to
from ddpm.interop.foreign_format import Export, ForeignFormat, NetworkSpec, Weights, bind, load
from ddpm.interop.networks import DIFFUSERS, SOURCES
from ddpm.interop.programs import SUFFIXES

_VERSION = {"_diffusers_version": "0.42.1"}  # whose results the tests compare with


@dataclass(frozen=True)
class ExportedModel:
    """A network in another system's format.

    Attributes:
        kwargs: arguments of the constructor of its network.
        content: of the file that it loads.
    """

    kwargs: dict[str, Any]
    content: dict[str, Any]


def export_model(
    format: str,
    spec: NetworkSpec,
    weights: Mapping[str, Weights],
    which: str,
    *,
    diffusion: GaussianDiffusion,
    step: int,
    version: str | None,
) -> ExportedModel:
    """Return a network in another system's format.

    Args:
        format: name of the system.
        spec: our network.
        weights: our state dicts, ``raw`` and ``ema``.
        which: ``raw`` or ``ema``, for formats with one state dict.
        diffusion: the process, for formats with its tables.
        step: number of optimizer steps.
        version: of the system; None = one that fits the network.

    Raises:
        ConfigError: the system has no equivalent network; names the option it lacks.
    """
    formats = ["safetensors", *SOURCES, DIFFUSERS, *SUFFIXES]
    problem = f"is unknown{did_you_mean(format, formats, complete=True)}"
    require(format in SOURCES, "format", format, problem)
    spec = _exportable(spec, diffusion)
    original = SOURCES[format]
    try:
        kwargs = original.to_kwargs(spec)
    except ConfigError as error:
        value = format if error.key == "format" else error.value
        raise error.renamed(error.key, value) from None
    network = spec.build()
    states = {each: _to_foreign(original, network, state) for each, state in weights.items()}
    back = original.from_kwargs(bind(format, original.defaults, kwargs), states[which])
    load(back.build(), states[which], original.map_from)  # check that the import would succeed
    return ExportedModel(kwargs, original.join(Export(states, which, diffusion, step, version)))


def export_pipeline(
    spec: NetworkSpec, weights: Weights, diffusion: GaussianDiffusion
) -> dict[str, bytes]:
    """Return the files of a pipeline of diffusers, by their names in its folder.

    Args:
        spec: our network.
        weights: our state dict.
        diffusion: the process.

    Raises:
        ConfigError: an option of the network or of the process without an equivalent.
    """
    spec = _exportable(spec, diffusion)
    config, scheduler = config_of(spec), scheduler_config(diffusion)
    outputs = (spec.channels, 2 * spec.channels)
    problem = f"diffusers has networks of {outputs[0]} or {outputs[1]} output channels only"
    require(spec.out_channels in outputs, "format", DIFFUSERS, problem)
    back, state = network_spec(config), weights_to(spec, weights)
    weights_from(back, state)  # check that the import would succeed
    parts = {"unet": ["diffusers", NETWORK], "scheduler": ["diffusers", scheduler["_class_name"]]}
    return {
        f"unet/{WEIGHTS}.safetensors": safetensors.torch.save(state, {"format": "pt"}),
        f"unet/{CONFIG}": _json({"_class_name": NETWORK, **_VERSION, **config}),
        f"scheduler/{SCHEDULER_CONFIG}": _json({**scheduler, **_VERSION}),
        INDEX: _json({"_class_name": "DDPMPipeline", **_VERSION, **parts}),
    }


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _exportable(spec: NetworkSpec, diffusion: GaussianDiffusion) -> NetworkSpec:
    """Return a network without the options that other systems lack; ConfigError if one is used."""
    problem = (
        "the network pads its data, whose size is not divisible by 2 at each level, which other "
        "systems do not support; use format=safetensors, torch-export or onnx"
    )
    require(not spec.options.get("pad"), "model.pad", True, problem)
    kind = type(diffusion.objective)
    plain = kind.scale_input is Objective.scale_input
    plain &= kind.network_time is Objective.network_time
    problem = (
        "changes the input or the time of the network, which other systems do not support; use "
        "format=safetensors, torch-export or onnx"
    )
    require(plain, "objective", kind.__name__, problem)
    options = {key: value for key, value in spec.options.items() if key != "pad"}
    return replace(spec, options=options)


def _to_foreign(original: ForeignFormat, network: nn.Module, state: Weights) -> dict[str, Tensor]:
    """Return weights with the original's names, and the entries that only its files have."""
    weights = {original.map_to(name): value for name, value in state.items()}
    return {**weights, **original.extra(network)}
