"""Networks of other systems, from their constructor arguments and weights."""

from __future__ import annotations

from torch import nn

from ddpm.errors import ConfigError, did_you_mean, require
from ddpm.interop import lucidrains, openai, simple, video
from ddpm.interop.diffusers_network import network_spec
from ddpm.interop.diffusers_weights import weights_from
from ddpm.interop.foreign_format import Arguments, ForeignFormat, Weights, bind, load

SOURCES: dict[str, ForeignFormat] = {
    **openai.FORMATS,
    **lucidrains.FORMATS,
    **video.FORMATS,
    **simple.FORMATS,
}


DIFFUSERS = "diffusers"
"""The system whose checkpoints are folders with a config."""


def import_network(source: str, kwargs: Arguments, state_dict: Weights) -> nn.Module:
    """Return the network of another system with its weights, in training mode.

    The network is called as ``net(x, t, ...)`` with the original's axis order and extra inputs, on
    data of any size that its levels can halve.

    Args:
        source: one of :data:`SOURCES`, or ``diffusers`` for a ``UNet2DModel``.
        kwargs: arguments of the original's constructor; its defaults apply to the others.
        state_dict: weights with the original's names.

    Raises:
        ConfigError: an unknown source or argument, or weights whose names or shapes do not fit.
    """
    if source == DIFFUSERS:
        spec = network_spec(kwargs)
        network = spec.build()
        network.load_state_dict(weights_from(spec, state_dict))
        return network
    original = find(source)
    arguments = bind(source, original.defaults, kwargs)
    try:
        network = original.from_kwargs(arguments, state_dict).build()
    except ConfigError as error:
        raise error.under("kwargs") from None
    load(network, state_dict, original.map_from)
    return original.adapt(network)


def find(source: str) -> ForeignFormat:
    """Return the system of a name; ConfigError (key ``source``) if it is unknown."""
    hint = did_you_mean(source, [*SOURCES, DIFFUSERS])
    problem = f"is not a system whose networks can be imported{hint}"
    require(source in SOURCES, "source", source, problem)
    return SOURCES[source]
