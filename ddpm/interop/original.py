"""What one original system's network is to us: its arguments, its names, our network for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import did_you_mean, render, require
from ddpm.interop.files import Parts
from ddpm.interop.process import Process, node, objective, schedule_in
from ddpm.interop.unwrap import Anchors
from ddpm.models.layers import Network

Arguments = Mapping[str, Any]
Weights = Mapping[str, Tensor]

REQUIRED = object()
"""Stands where an original's constructor has no default."""


@dataclass(frozen=True)
class Described:
    """Our network for some constructor arguments of an original.

    Attributes:
        target: our class, a :class:`Network`.
        channels: of the data.
        out_channels: of the answer.
        size: the smallest that the levels can halve; constructors check one, and take all such.
        num_classes: how many labels the network knows.
        self_condition: whether it takes an earlier estimate of x0.
        options: the keyword-only options of ``target``, which a config's model node holds.
    """

    target: type[Any]
    channels: int
    out_channels: int
    size: tuple[int, ...]
    num_classes: int | None
    self_condition: bool
    options: dict[str, Any]

    def build(self) -> Network:
        """The network, with new weights."""
        return self.target(
            self.channels,
            self.out_channels,
            self.size,
            self.num_classes,
            self.self_condition,
            **self.options,
        )


def keep(name: str) -> str:
    """The same name here as there."""
    return name


def as_it_is(network: nn.Module) -> nn.Module:
    """A network that is called as the original's is."""
    return network


def unknown_process(kwargs: dict[str, Any], parts: Parts) -> Process:
    """The noise is predicted, as in Ho et al. 2020, with their schedule unless betas are there."""
    return Process(
        schedule_in(parts.buffers) or node("linear"),
        objective("pred_noise"),
        node("GaussianDiffusion", variance="fixed_large"),
    )


def nothing(network: nn.Module) -> dict[str, Tensor]:
    """No entries."""
    return {}


@dataclass(frozen=True)
class Export:
    """What there is to write into a file of an original.

    Attributes:
        weights: by the original's names, under ``raw`` and ``ema``.
        which: of the two for a file that holds one.
        diffusion: the process.
        step: optimizer steps taken.
        version: of the original; None = what fits.
    """

    weights: dict[str, dict[str, Tensor]]
    which: str
    diffusion: GaussianDiffusion
    step: int
    version: str | None


def chosen(export: Export) -> dict[str, Any]:
    """A state dict alone."""
    problem = "is for systems whose files have versions; leave it out"
    require(export.version is None, "version", export.version, problem)
    return export.weights[export.which]


@dataclass(frozen=True, kw_only=True)
class Original:
    """How networks of one system come here and go back.

    Attributes:
        defaults: the arguments of its constructor and their defaults, which are not ours.
        describe: our network for arguments and weights.
        infer: the arguments that the names and shapes of weights show; others are absent.
        ours: its name of a parameter to ours; "" for an entry that we compute.
        theirs: our name of a parameter to its own.
        adapt: wraps our network so that it is called as the original's is.
        express: the arguments of its constructor for a network of ours; ConfigError where it has
            no such network.
        anchors: names that each of its networks has, by which one is found in a file; see
            :mod:`ddpm.interop.unwrap`.
        process: what its diffusion is, from the network's arguments and a file.
        assumed: published values of arguments that weights do not show, where they differ from
            the constructor's defaults.
        extra: what its state dicts hold besides our parameters.
        join: makes the content of a file that it loads.
        values: the range of its data where they are not pictures.
        guessed: arguments that ``infer`` may give for others at their defaults, which shapes do
            not prove; who says otherwise is believed.
    """

    defaults: Arguments
    describe: Callable[[Arguments, Weights], Described]
    infer: Callable[[Weights], dict[str, Any]]
    express: Callable[[Described], dict[str, Any]]
    anchors: Anchors
    ours: Callable[[str], str] = keep
    theirs: Callable[[str], str] = keep
    adapt: Callable[[nn.Module], nn.Module] = as_it_is
    process: Callable[[dict[str, Any], Parts], Process] = unknown_process
    assumed: Arguments = field(default_factory=dict)
    extra: Callable[[nn.Module], dict[str, Tensor]] = nothing
    join: Callable[[Export], dict[str, Any]] = chosen
    values: tuple[float, float] | None = None
    guessed: frozenset[str] = frozenset()


def bind(source: str, defaults: Arguments, kwargs: Arguments) -> dict[str, Any]:
    """The arguments given and the defaults of the others; lists, as JSON has them, as tuples."""
    for name, value in kwargs.items():
        require(
            name in defaults,
            f"kwargs.{name}",
            value,
            f"is not an argument of {source}'s network{did_you_mean(name, defaults)}",
        )
    bound = {**defaults, **kwargs}
    for name, value in bound.items():
        require(
            value is not REQUIRED,
            f"kwargs.{name}",
            None,
            f"is missing; {source}'s network has no default for it",
        )
    return {
        name: tuple(value) if isinstance(value, (list, set)) else value
        for name, value in bound.items()
    }


def smallest_size(levels: int, dims: int) -> tuple[int, ...]:
    """A size that the levels can halve; constructors check one, and then take all such."""
    return (2 ** max(levels - 1, 0),) * dims


def load(network: nn.Module, weights: Weights, rename: Callable[[str], str]) -> None:
    """Load all weights into the network; ConfigError for the first that does not fit it."""
    ours = network.state_dict()
    theirs = {rename(name): name for name in weights}
    theirs.pop("", None)
    for name, original in theirs.items():
        key, shape = f"state_dict.{original}", list(weights[original].shape)
        require(name in ours, key, shape, "the network that kwargs describe has no such parameter")
        expected = list(ours[name].shape)
        require(
            shape == expected,
            key,
            shape,
            f"the network that kwargs describe has the shape {render(expected)} there; "
            "give the arguments that the weights were trained with",
        )
    for name, value in ours.items():
        require(
            name in theirs,
            f"state_dict.{name}",
            None,
            "is missing; the network that kwargs describe has the shape "
            f"{render(list(value.shape))} there",
        )
    network.load_state_dict({name: weights[original] for name, original in theirs.items()})
