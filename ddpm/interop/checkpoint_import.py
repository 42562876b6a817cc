"""Reading of another system's checkpoint: network, weights and process."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ddpm.errors import ConfigError, did_you_mean, render, require
from ddpm.interop import diffusers_import
from ddpm.interop.files import Parts, read, step_in
from ddpm.interop.foreign_format import REQUIRED, ForeignFormat, NetworkSpec, Weights, bind, load
from ddpm.interop.imported import ImportedCheckpoint
from ddpm.interop.networks import DIFFUSERS, SOURCES, find
from ddpm.interop.process import Process, openai, schedule_in
from ddpm.interop.recipes import RECIPES, Recipe
from ddpm.interop.unwrap import holds_network, plain, unwrap


def read_checkpoint(
    source: str,
    file: str,
    ema: str | None,
    recipe: str | None,
    version: str | None,
    network: Mapping[str, Any],
    process: Mapping[str, dict[str, Any]] | None = None,
) -> ImportedCheckpoint:
    """Read a checkpoint of another system.

    Args:
        source: name of the system.
        file: path of the checkpoint; for ``diffusers`` a folder, or a name on the hub.
        ema: path of the averaged weights, if they are in a separate file.
        recipe: name of a published model; None = infer everything from the weights.
        version: of the system; None = infer it from the weights.
        network: arguments of the network's constructor that override the inferred ones.
        process: config nodes that override those of the file.

    Raises:
        ConfigError: a file that cannot be read or does not fit the options, a recipe of another
            system, or an unknown argument.
    """
    published = _recipe(recipe, source)
    if source == DIFFUSERS:
        _check_unused(ema, version, network)
        return diffusers_import.read_folder(file, process or {})
    original = find(source)
    parts = _split(original, source, file, "file")
    inferred = _guarded(original.infer, source, file, "file")(parts.raw)
    requested = _versioned(original, source, version, parts)
    requested.update(published.network if published else {})
    proven = {name: value for name, value in inferred.items() if name not in original.guessed}
    _check_arguments(recipe, requested, inferred, network, proven)
    requested.update(network)
    chosen = {**original.assumed, **inferred, **requested}
    try:
        arguments = bind(source, original.defaults, chosen)
        spec = original.from_kwargs(arguments, parts.raw)
        raw = _weights(spec, parts.raw, original)
    except ConfigError as error:
        raise _as_options(error) from None
    average = _average(original, source, parts, file, ema, spec)
    return ImportedCheckpoint(
        spec,
        raw,
        raw if average is None else average,
        _process(original, published, arguments, parts, process or {}),
        parts.step or step_in(file) or 0,
        (published.image_size, published.image_size) if published else None,
        original.values,
        _assumed(original, arguments, {*proven, *requested}),
        "raw" if average is None else "ema" if parts.only_average and ema is None else "both",
        parts.types,
        parts.ignored,
    )


def _assumed(
    original: ForeignFormat, arguments: Mapping[str, Any], determined: Collection[str]
) -> dict[str, Any]:
    """Return the arguments with defaults that neither the weights nor the user determine."""
    return {
        name: value
        for name, value in arguments.items()
        if name not in determined and original.defaults[name] is not REQUIRED
    }


def _check_unused(ema: str | None, version: str | None, network: Mapping[str, Any]) -> None:
    """Raise ConfigError for options that a folder of diffusers does not need."""
    named = {f"network.{name}": value for name, value in network.items()}
    for key, value in {"ema": ema, "version": version, **named}.items():
        problem = "is for other systems: a folder of diffusers has all of its options; leave it out"
        require(value is None, key, value, problem)


def _check_arguments(
    recipe: str | None,
    published: Mapping[str, Any],
    inferred: Mapping[str, Any],
    network: Mapping[str, Any],
    proven: Mapping[str, Any],
) -> None:
    """Raise for arguments of a recipe or of the user that contradict the weights."""
    for name, value, actual in _differences(published, inferred):
        problem = f"has {name}={render(value)}, but the weights have {actual}; use another recipe"
        raise ConfigError("recipe", recipe, problem)
    for name, value, actual in _differences(network, proven):
        raise ConfigError(f"network.{name}", value, f"the weights have {actual}; leave it out")


def _recipe(name: str | None, source: str) -> Recipe | None:
    if name is None:
        return None
    hint = did_you_mean(name, RECIPES)
    require(name in RECIPES, "recipe", name, f"unknown recipe{hint}")
    system = RECIPES[name].source
    require(system == source, "recipe", name, f"is a recipe of {system}; use source={system}")
    return RECIPES[name]


def _process(
    original: ForeignFormat,
    recipe: Recipe | None,
    arguments: dict[str, Any],
    parts: Parts,
    overrides: Mapping[str, dict[str, Any]],
) -> Process:
    """Return the process of the recipe or the file, with the user's nodes in place of its own."""
    try:
        if recipe:
            process = _published(recipe, parts, overrides)
        else:
            process = original.process(arguments, parts)
    except ConfigError as error:
        missing = [key for key in ("schedule", "objective") if key not in overrides]
        if error.key in missing:
            raise
        if missing:
            problem = f"cannot be determined from this file; add {missing[0]}=..."
            raise ConfigError(missing[0], None, problem) from error
        process = Process(overrides["schedule"], overrides["objective"])
    return replace(process, **overrides)


def _published(recipe: Recipe, parts: Parts, overrides: Mapping[str, Any]) -> Process:
    """Return the process of a recipe; ConfigError if the file has a different schedule."""
    process = openai(recipe.process)
    if "schedule" not in overrides:
        stored = schedule_in(parts.buffers)
        problem = "the schedule of the recipe differs from the betas in the file; add schedule=..."
        require(stored in (None, process.schedule), "schedule", None, problem)
    return process


def _versioned(
    original: ForeignFormat, source: str, version: str | None, parts: Parts
) -> dict[str, Any]:
    """Return the version as an argument of the network, for systems with versions."""
    if "version" not in original.defaults:
        problem = f"all versions of {source} have the same networks; leave it out"
        require(version is None, "version", version, problem)
        return {}
    version = version or parts.version
    return {} if version is None else {"version": version}


def _differences(
    requested: Mapping[str, Any], inferred: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Yield each argument that differs from the inferred one, with both values."""
    for name, value in requested.items():
        value = tuple(value) if isinstance(value, (list, set)) else value
        if name in inferred and name != "version" and inferred[name] != value:
            yield name, value, render(inferred[name])


def _split(original: ForeignFormat, source: str, file: str, key: str) -> Parts:
    """Return the parts of a file, with weights in float32.

    Raises:
        ConfigError: (key ``key``) no network of the system, or weights that are not floating point.
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
    """Wrap a function that reads arbitrary content: errors of Python become ConfigErrors."""

    def run(content: Any) -> Any:
        try:
            return step(content)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            problem = f"is not a checkpoint of {source}; use one that its training wrote"
            raise ConfigError(key, file, problem) from error

    return run


def _average(
    original: ForeignFormat,
    source: str,
    parts: Parts,
    file: str,
    ema: str | None,
    spec: NetworkSpec,
) -> dict[str, Tensor] | None:
    """Return the averaged weights with our names, from the same file or from a separate one."""
    average, place = parts.ema, file
    if ema is not None:
        other, place = _split(original, source, ema, "ema"), ema
        average = other.raw if other.ema is None else other.ema
    try:
        return None if average is None else _weights(spec, average, original)
    except ConfigError as error:
        problem = f"its averaged weights do not fit the others: {error.key}, {error.problem}"
        raise ConfigError("ema", place, problem) from None


def _weights(spec: NetworkSpec, weights: Weights, original: ForeignFormat) -> dict[str, Tensor]:
    """Return weights with our names, checked by loading them into the network."""
    network = spec.build()
    load(network, weights, original.map_from)
    return network.state_dict()


def _as_options(error: ConfigError) -> ConfigError:
    """Return an error in the original's arguments as an error in the command's options."""
    key, remedy = error.key.removeprefix("kwargs."), error.remedy
    if not key.startswith("state_dict"):
        return ConfigError(f"network.{key}", error.value, error.problem, remedy)
    if remedy is not None:
        remedy = (
            "set network.<argument>=... to those of its training, or save the state dict of the "
            "network alone"
        )
    return ConfigError(key, error.value, error.problem, remedy)
