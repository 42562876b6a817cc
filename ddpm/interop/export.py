"""Export of a network to another system's format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ddpm.diffusion import GaussianDiffusion, Objective
from ddpm.errors import ConfigError, did_you_mean, require
from ddpm.interop.foreign_format import Export, ForeignFormat, NetworkSpec, Weights, bind, load
from ddpm.interop.networks import SOURCES


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
    formats = ["safetensors", *SOURCES]
    problem = f"is unknown{did_you_mean(format, formats, complete=True)}"
    require(format in SOURCES, "format", format, problem)
    problem = (
        "the network pads its data, whose size is not divisible by 2 at each level, which other "
        "systems do not support; use format=safetensors"
    )
    require(not spec.options.get("pad"), "model.pad", True, problem)
    kind = type(diffusion.objective)
    plain = kind.scale_input is Objective.scale_input
    plain &= kind.network_time is Objective.network_time
    problem = (
        "changes the input or the time of the network, which other systems do not support; use "
        "format=safetensors"
    )
    require(plain, "objective", kind.__name__, problem)
    options = {key: value for key, value in spec.options.items() if key != "pad"}
    spec = replace(spec, options=options)
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


def _to_foreign(original: ForeignFormat, network: nn.Module, state: Weights) -> dict[str, Tensor]:
    """Return weights with the original's names, and the entries that only its files have."""
    weights = {original.map_to(name): value for name, value in state.items()}
    return {**weights, **original.extra(network)}
