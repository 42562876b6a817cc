"""Description of another system's networks: arguments, parameter names, and our equivalents."""

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
"""Marks a constructor argument without a default."""


@dataclass(frozen=True)
class NetworkSpec:
    """Class and arguments of one of our networks.

    Attributes:
        target: a subclass of :class:`Network`.
        channels: of the data.
        out_channels: of the output.
        size: (*spatial), the smallest that the levels can halve; the network accepts multiples.
        num_classes: number of labels; None for an unconditional network.
        self_condition: True if it takes an earlier prediction of x0.
        options: keyword-only options of ``target``, those of a config's model node.
    """

    target: type[Any]
    channels: int
    out_channels: int
    size: tuple[int, ...]
    num_classes: int | None
    self_condition: bool
    options: dict[str, Any]

    def build(self) -> Network:
        """Return the network with newly initialized weights."""
        return self.target(
            self.channels,
            self.out_channels,
            self.size,
            self.num_classes,
            self.self_condition,
            **self.options,
        )


def same_name(name: str) -> str:
    """Return the name unchanged."""
    return name


def unchanged(network: nn.Module) -> nn.Module:
    """Return the network unchanged: it is called as the original's is."""
    return network


def unknown_process(kwargs: dict[str, Any], parts: Parts) -> Process:
    """Return the process of Ho et al. 2020, with the schedule of the file's betas if present."""
    return Process(
        schedule_in(parts.buffers) or node("linear"),
        objective("pred_noise"),
        node("GaussianDiffusion", variance="fixed_large"),
    )


def no_entries(network: nn.Module) -> dict[str, Tensor]:
    """Return an empty dictionary."""
    return {}


@dataclass(frozen=True)
class Export:
    """Contents of an exported file.

    Attributes:
        weights: state dicts with the original's names, under ``raw`` and ``ema``.
        which: ``raw`` or ``ema``, for formats with one state dict.
        diffusion: the process.
        step: number of optimizer steps.
        version: of the original; None = one that fits the network.
    """

    weights: dict[str, dict[str, Tensor]]
    which: str
    diffusion: GaussianDiffusion
    step: int
    version: str | None


def state_dict_only(export: Export) -> dict[str, Any]:
    """Return the selected state dict; formats of this kind have no version."""
    problem = "is for systems whose files have versions; leave it out"
    require(export.version is None, "version", export.version, problem)
    return export.weights[export.which]


@dataclass(frozen=True, kw_only=True)
class ForeignFormat:
    """Import and export of the networks of one system.

    Attributes:
        defaults: arguments of its constructor with their defaults, which differ from ours.
        from_kwargs: returns our network for constructor arguments and weights.
        infer: returns the arguments that names and shapes of weights determine.
        map_from: maps its parameter names to ours; "" for entries that we compute.
        map_to: maps our parameter names to its own.
        adapt: wraps our network to be called as the original's is.
        to_kwargs: returns the arguments of its constructor for one of our networks; raises
            ConfigError if it has no equivalent.
        anchors: parameter names of all its networks, which locate a network in a file; see
            :mod:`ddpm.interop.unwrap`.
        process: returns its process for the arguments of a network and a file.
        assumed: published values of arguments that weights do not determine, where they differ
            from the constructor's defaults.
        extra: returns entries of its state dicts that are not among our parameters.
        join: returns the content of a file that it loads.
        values: range of its data; None for images.
        guessed: arguments that ``infer`` derives by assuming defaults for others; the user may
            override them.
    """

    defaults: Arguments
    from_kwargs: Callable[[Arguments, Weights], NetworkSpec]
    infer: Callable[[Weights], dict[str, Any]]
    to_kwargs: Callable[[NetworkSpec], dict[str, Any]]
    anchors: Anchors
    map_from: Callable[[str], str] = same_name
    map_to: Callable[[str], str] = same_name
    adapt: Callable[[nn.Module], nn.Module] = unchanged
    process: Callable[[dict[str, Any], Parts], Process] = unknown_process
    assumed: Arguments = field(default_factory=dict)
    extra: Callable[[nn.Module], dict[str, Tensor]] = no_entries
    join: Callable[[Export], dict[str, Any]] = state_dict_only
    values: tuple[float, float] | None = None
    guessed: frozenset[str] = frozenset()


def bind(source: str, defaults: Arguments, kwargs: Arguments) -> dict[str, Any]:
    """Return all arguments of a constructor; lists, as in JSON, become tuples.

    Raises:
        ConfigError: an unknown argument, or a required one that is missing.
    """
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
    """Return the smallest size (*spatial) that the levels can halve."""
    return (2 ** max(levels - 1, 0),) * dims


def load(network: nn.Module, weights: Weights, rename: Callable[[str], str]) -> None:
    """Load all weights into the network.

    Args:
        network: one of ours.
        weights: with the original's names.
        rename: maps the original's names to ours; "" for entries that are not loaded.

    Raises:
        ConfigError: missing or additional parameters, or a different shape.
    """
    expected = network.state_dict()
    names = {rename(name): name for name in weights}
    names.pop("", None)
    remedy = "use the arguments that the weights were trained with"
    for name, original in names.items():
        key, shape = f"state_dict.{original}", list(weights[original].shape)
        require(name in expected, key, shape, "the network has no such parameter", remedy)
        problem = f"the network has the shape {render(list(expected[name].shape))} there"
        require(shape == list(expected[name].shape), key, shape, problem, remedy)
    for name, value in expected.items():
        problem = f"is missing; the network has the shape {render(list(value.shape))} there"
        require(name in names, f"state_dict.{name}", None, problem)
    network.load_state_dict({name: weights[original] for name, original in names.items()})
