"""A checkpoint of another system, read: our network for it, its weights, its process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ddpm.errors import ConfigError, did_you_mean, render, require
from ddpm.interop.files import Parts, read, step_in
from ddpm.interop.networks import find
from ddpm.interop.original import REQUIRED, Described, Original, Weights, bind, load
from ddpm.interop.process import Process, openai
from ddpm.interop.recipes import RECIPES, Recipe


@dataclass(frozen=True)
class Brought:
    """What a run is made of.

    Attributes:
        described: our network.
        raw: its weights, by our names.
        ema: their average; the same where there is none.
        process: config nodes.
        step: optimizer steps taken; 0 where it is not known.
        size: (*spatial) where a recipe tells it.
        values: the range of the data, None for pictures of 8 bits.
        shown: arguments of the original's constructor that the weights show.
        assumed: those that they do not show, and nobody said.
    """

    described: Described
    raw: dict[str, Tensor]
    ema: dict[str, Tensor]
    process: Process
    step: int
    size: tuple[int, ...] | None
    values: tuple[float, float] | None
    shown: dict[str, Any]
    assumed: dict[str, Any]

    @property
    def learned(self) -> bool:
        """Whether the process learns its variance, for which half the answer is."""
        return self.process.diffusion.get("variance") in ("learned", "learned_range")


def bring(
    source: str,
    file: str,
    ema: str | None,
    recipe: str | None,
    version: str | None,
    given: Mapping[str, Any],
    process: Mapping[str, dict[str, Any]] | None = None,
) -> Brought:
    """Read a checkpoint of an original.

    Args:
        source: the system.
        file: its file.
        ema: a file of averaged weights, where they are not in the first.
        recipe: the name of a published model.
        version: of the original, where the weights do not tell.
        given: arguments of its network's constructor that the user says.
        process: config nodes of the process that the user says; the file need not tell them.

    Raises:
        ConfigError: a file that cannot be read or does not fit what was said, a recipe of another
            system, an argument that is not known.
    """
    original, known = find(source), _recipe(recipe, source)
    parts = original.split(read(file))
    shown = original.infer(parts.raw)
    said = {**_versioned(original, source, version, parts), **(known.network if known else {})}
    for name, theirs, ours in _differing(said, shown):
        problem = f"has {name}={render(theirs)} where the weights show {ours}; take another recipe"
        raise ConfigError("recipe", recipe, problem)
    said.update(given)
    proven = {name: value for name, value in shown.items() if name not in original.guessed}
    for name, theirs, ours in _differing(given, proven):
        raise ConfigError(f"network.{name}", theirs, f"the weights show {ours}; leave it out")
    chosen = {**original.assumed, **shown, **said}
    try:
        arguments = bind(source, original.defaults, chosen)
        described = original.describe(arguments, parts.raw)
        raw = _weights(described, parts.raw, original)
    except ConfigError as error:
        raise _as_options(error) from None
    average = _average(original, parts, ema)
    assumed = {
        name: value
        for name, value in arguments.items()
        if name not in proven and name not in said and original.defaults[name] is not REQUIRED
    }
    return Brought(
        described,
        raw,
        raw if average is None else _weights(described, average, original),
        _process(original, known, arguments, parts, process or {}),
        parts.step or step_in(file) or 0,
        (known.image_size, known.image_size) if known else None,
        original.values,
        shown,
        assumed,
    )


def _recipe(name: str | None, source: str) -> Recipe | None:
    if name is None:
        return None
    hint = did_you_mean(name, RECIPES)
    require(name in RECIPES, "recipe", name, f"there is no such recipe{hint}")
    theirs = RECIPES[name].source
    require(theirs == source, "recipe", name, f"is of {theirs}; take source={theirs}")
    return RECIPES[name]


def _process(
    original: Original,
    recipe: Recipe | None,
    arguments: dict[str, Any],
    parts: Parts,
    said: Mapping[str, dict[str, Any]],
) -> Process:
    """What the user says, else what the recipe or the file does."""
    try:
        found = openai(recipe.process) if recipe else original.process(arguments, parts)
    except ConfigError as error:
        missing = [key for key in ("schedule", "objective") if key not in said]
        if error.key in missing:
            raise
        if missing:
            problem = f"does not show in this file; add {missing[0]}=..."
            raise ConfigError(missing[0], None, problem) from error
        found = Process(said["schedule"], said["objective"])
    return replace(found, **said)


def _versioned(
    original: Original, source: str, version: str | None, parts: Parts
) -> dict[str, Any]:
    """The version as the pseudo-argument of networks that have versions."""
    if "version" not in original.defaults:
        problem = f"the versions of {source} do not differ; leave it out"
        require(version is None, "version", version, problem)
        return {}
    told = version or parts.version
    return {} if told is None else {"version": told}


def _differing(said: Mapping[str, Any], shown: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Each argument that is said to be another than the weights show, with both values."""
    for name, value in said.items():
        value = tuple(value) if isinstance(value, (list, set)) else value
        if name in shown and name != "version" and shown[name] != value:
            yield name, value, render(shown[name])


def _average(original: Original, parts: Parts, ema: str | None) -> Weights | None:
    """The averaged weights, of the same file or one of their own."""
    if ema is None:
        return parts.ema
    found = original.split(read(ema, "ema"))
    return found.raw if found.ema is None else found.ema


def _weights(described: Described, weights: Weights, original: Original) -> dict[str, Tensor]:
    """Weights in a network of ours, and out again by our names."""
    network = described.build()
    load(network, weights, original.ours)
    return network.state_dict()


def _as_options(error: ConfigError) -> ConfigError:
    """A mistake in the original's arguments as one in the command's options."""
    problem = error.problem.replace("that kwargs describe", "that is described")
    problem = problem.replace("give the arguments", "say network.<argument>=... with those")
    key = error.key.removeprefix("kwargs.")
    return ConfigError(
        key if key.startswith("state_dict") else f"network.{key}", error.value, problem
    )
