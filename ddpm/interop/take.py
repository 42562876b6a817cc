"""A network of ours, written as another system reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import ConfigError, did_you_mean, require
from ddpm.interop.networks import SOURCES
from ddpm.interop.original import Described, Export, Original, Weights, bind, load


@dataclass(frozen=True)
class Taken:
    """What the original needs.

    Attributes:
        kwargs: the arguments of its network's constructor.
        content: of the file that it loads.
    """

    kwargs: dict[str, Any]
    content: dict[str, Any]


def take(
    format: str,
    described: Described,
    weights: Mapping[str, Weights],
    which: str,
    *,
    diffusion: GaussianDiffusion,
    step: int,
    version: str | None,
) -> Taken:
    """The arguments of an original's network that is ours, and the file that it loads.

    Args:
        format: the name of the original.
        described: our network.
        weights: state dicts of ours, ``raw`` and ``ema``.
        which: of the two for a format that holds one.
        diffusion: the process, for a format that holds its tables.
        step: optimizer steps taken.
        version: of the original; None = what fits.

    Raises:
        ConfigError: the original has no such network; names the option that it lacks.
    """
    known = ["safetensors", *SOURCES]
    problem = f"is not known{did_you_mean(format, known, complete=True)}"
    require(format in SOURCES, "format", format, problem)
    problem = (
        "the network pads its data, which are of a size that its levels do not halve, and no "
        "original does; take format=safetensors"
    )
    require(not described.options.get("pad"), "model.pad", True, problem)
    options = {key: value for key, value in described.options.items() if key != "pad"}
    described = replace(described, options=options)
    original = SOURCES[format]
    try:
        kwargs = original.express(described)
    except ConfigError as error:
        value = format if error.key == "format" else error.value
        raise error.renamed(error.key, value) from None
    network = described.build()
    theirs = {each: _theirs(original, network, state) for each, state in weights.items()}
    back = original.describe(bind(format, original.defaults, kwargs), theirs[which])
    load(back.build(), theirs[which], original.ours)  # as it would come back
    return Taken(kwargs, original.join(Export(theirs, which, diffusion, step, version)))


def _theirs(original: Original, network: nn.Module, state: Weights) -> dict[str, Tensor]:
    """Weights by the original's names, with the entries that only its files have."""
    weights = {original.theirs(name): value for name, value in state.items()}
    return {**weights, **original.extra(network)}
