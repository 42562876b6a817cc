"""Networks of other systems, from their own constructor arguments and their own weights."""

from __future__ import annotations

from torch import nn

from ddpm.errors import ConfigError, did_you_mean, require
from ddpm.interop import lucidrains, openai, simple, video
from ddpm.interop.original import Arguments, Original, Weights, bind, load

SOURCES: dict[str, Original] = {
    **openai.ORIGINALS,
    **lucidrains.ORIGINALS,
    **video.ORIGINALS,
    **simple.ORIGINALS,
}


def import_network(source: str, kwargs: Arguments, state_dict: Weights) -> nn.Module:
    """The network of another system, with that system's weights, in training mode as all new ones.

    ``source`` is one of :data:`SOURCES`. ``kwargs`` are the arguments of the original's
    constructor, whose defaults hold for the rest; ``state_dict`` has its names. The network is
    called as ``net(x, t, ...)`` with the original's axis order and extra inputs, on data of any
    size that its levels can halve.

    Raises:
        ConfigError: a source or an argument that is not known, and where names or shapes do not
            fit, with both shapes.
    """
    original = find(source)
    arguments = bind(source, original.defaults, kwargs)
    try:
        network = original.describe(arguments, state_dict).build()
    except ConfigError as error:
        raise error.under("kwargs") from None
    load(network, state_dict, original.ours)
    return original.adapt(network)


def find(source: str) -> Original:
    """The system of that name; ConfigError (key ``source``) where there is none."""
    hint = did_you_mean(source, SOURCES)
    problem = f"is not a system whose networks can be imported{hint}"
    require(source in SOURCES, "source", source, problem)
    return SOURCES[source]
