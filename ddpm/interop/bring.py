"""A checkpoint of another system, read: our network for it, its weights, its process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from ddpm.errors import ConfigError, did_you_mean, render, require
from ddpm.interop.files import Parts, read, step_in
from ddpm.interop.networks import SOURCES, find
from ddpm.interop.original import REQUIRED, Described, Original, Weights, bind, load
from ddpm.interop.process import Process, openai, schedule_in
from ddpm.interop.recipes import RECIPES, Recipe
from ddpm.interop.unwrap import holds_network, plain, unwrap


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
        assumed: arguments of the original's constructor that the weights do not show, and nobody
            said.
        averaged: which weights there were: ``both``, ``raw`` or ``ema`` alone.
        types: of the weights in the file, where they were not float32.
        ignored: names of what else the file holds.
    """

    described: Described
    raw: dict[str, Tensor]
    ema: dict[str, Tensor]
    process: Process
    step: int
    size: tuple[int, ...] | None
    values: tuple[float, float] | None
    assumed: dict[str, Any]
    averaged: Literal["both", "raw", "ema"]
    types: Sequence[str]
    ignored: Sequence[str]

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
    parts = _split(original, source, file, "file")
    shown = _guarded(original.infer, source, file, "file")(parts.raw)
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
    average = _average(original, source, parts, file, ema, described)
    assumed = {
        name: value
        for name, value in arguments.items()
        if name not in proven and name not in said and original.defaults[name] is not REQUIRED
    }
    return Brought(
        described,
        raw,
        raw if average is None else average,
        _process(original, known, arguments, parts, process or {}),
        parts.step or step_in(file) or 0,
        (known.image_size, known.image_size) if known else None,
        original.values,
        assumed,
        "raw" if average is None else "ema" if parts.only_average and ema is None else "both",
        parts.types,
        parts.ignored,
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
        found = _published(recipe, parts, said) if recipe else original.process(arguments, parts)
    except ConfigError as error:
        missing = [key for key in ("schedule", "objective") if key not in said]
        if error.key in missing:
            raise
        if missing:
            problem = f"does not show in this file; add {missing[0]}=..."
            raise ConfigError(missing[0], None, problem) from error
        found = Process(said["schedule"], said["objective"])
    return replace(found, **said)


def _published(recipe: Recipe, parts: Parts, said: Mapping[str, Any]) -> Process:
    """The process of a recipe; ConfigError where the file's own schedule is another."""
    found = openai(recipe.process)
    if "schedule" not in said:
        shown = schedule_in(parts.buffers)
        problem = "the recipe has another schedule than the betas in the file; add schedule=..."
        require(shown in (None, found.schedule), "schedule", None, problem)
    return found


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


def _split(original: Original, source: str, file: str, key: str) -> Parts:
    """Return the parts of a file, with weights in float32.

    Raises:
        ConfigError: (key ``key``) no network of the system, or weights that are no numbers.
    """
    content = read(file, key)
    split = _guarded(lambda content: unwrap(content, source, original.anchors), source, file, key)
    try:
        parts = split(content)
    except ConfigError as error:
        others = [name for name, o in SOURCES.items() if holds_network(content, o.anchors)]
        named = " or source=".join(others)
        hint = f"; its names are those of another system: set source={named}" if others else ""
        hint = "" if source in others else hint
        raise ConfigError(key, file, f"{error.problem}{hint}") from None
    raw, types = plain(parts.raw, "averaged" if parts.only_average else "raw", key, file)
    if parts.ema is None or parts.only_average:
        return replace(parts, raw=raw, ema=None if parts.ema is None else raw, types=types)
    ema, more = plain(parts.ema, "averaged", key, file)
    return replace(parts, raw=raw, ema=ema, types=sorted({*types, *more}))


def _guarded(step: Callable[[Any], Any], source: str, file: str, key: str) -> Callable[[Any], Any]:
    """A step that reads a file whose content can be anything; what it trips over is told."""

    def run(content: Any) -> Any:
        try:
            return step(content)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            problem = f"holds what no checkpoint of {source} does; give one that its training wrote"
            raise ConfigError(key, file, problem) from error

    return run


def _average(
    original: Original, source: str, parts: Parts, file: str, ema: str | None, described: Described
) -> dict[str, Tensor] | None:
    """The averaged weights by our names, of the same file or one of their own."""
    found, place = parts.ema, file
    if ema is not None:
        other, place = _split(original, source, ema, "ema"), ema
        found = other.raw if other.ema is None else other.ema
    try:
        return None if found is None else _weights(described, found, original)
    except ConfigError as error:
        problem = f"its averaged weights do not fit the others: {error.key}, {error.problem}"
        problem = problem.replace("that kwargs describe", "of the others")
        raise ConfigError("ema", place, problem.partition("; give the")[0]) from None


def _weights(described: Described, weights: Weights, original: Original) -> dict[str, Tensor]:
    """Weights in a network of ours, and out again by our names."""
    network = described.build()
    load(network, weights, original.ours)
    return network.state_dict()


def _as_options(error: ConfigError) -> ConfigError:
    """A mistake in the original's arguments as one in the command's options."""
    problem = error.problem.replace("that kwargs describe", "that is described")
    problem = problem.replace("give the arguments", "say network.<argument>=... with those")
    if problem.endswith("has no such parameter"):
        problem += (
            "; set network.<argument>=... if it is described wrongly, else save the network's "
            "state dict alone"
        )
    key = error.key.removeprefix("kwargs.")
    return ConfigError(
        key if key.startswith("state_dict") else f"network.{key}", error.value, problem
    )
