"""Classes that configs may name, and objects built from config nodes.

A node is a mapping with ``_target_`` and the options of that target; the constructor is the schema.
Its keyword-only parameters are the options, their annotations the types; positional parameters are
supplied by code. Options are checked before the call. The ``_target_`` of a config group may name
only what the package of that group, or a plugin that the user names, lists in its ``__all__``: a
config in a checkpoint cannot reach anything else.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ddpm import plugins
from ddpm.config.schema import check
from ddpm.console import note
from ddpm.errors import ConfigError

Config = Mapping[str, Any]
PACKAGES = {
    "data": "ddpm.data",
    "model": "ddpm.models",
    "schedule": "ddpm.diffusion",
    "objective": "ddpm.diffusion",
    "diffusion": "ddpm.diffusion",
    "timesteps": "ddpm.training",
    "sampler": "ddpm.samplers",
    "trainer": "ddpm.training",
    "extractor": "ddpm.metrics",  # one of its classes runs a file
}
"""Package whose ``__all__`` a node of each config group may name."""
_plugins: list[str] = []


def load_plugins(modules: list[str]) -> None:
    """Import the user's own modules, whose ``__all__`` configs may then name.

    Raises:
        ConfigError: a module that cannot be imported or has no ``__all__``.
    """
    _plugins.clear()
    _plugins[:] = [module.__name__ for module in plugins.load(modules)]


def build(node: Config, key: str, *runtime: object) -> Any:
    """Build the object that a config node describes.

    Args:
        node: ``_target_`` and options.
        key: its place in the config, for error messages.
        runtime: positional arguments of the target.

    Raises:
        ConfigError: a target that is not exported, an option that is unknown, missing, of the
            wrong type or rejected by the constructor; its key begins with ``key``.
    """
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise ConfigError(key, None, f"is missing; choose one with {key}=...")
    target = exported(node["_target_"], f"{key}._target_")
    options = {name: value for name, value in node.items() if name != "_target_"}
    schema = options_of(target)
    checked = check(options, schema, key)
    try:
        if schema is not target:
            runtime, checked = (*runtime, schema(**checked)), {}
        try:
            inspect.signature(target).bind(*runtime, **checked)
        except TypeError as error:
            problem = f"is not a valid target for this option; choose one with {key}=..."
            raise ConfigError("_target_", node["_target_"], problem) from error
        return target(*runtime, **checked)
    except ConfigError as error:
        raise error.under(key) from error


def options_of(target: Callable[..., Any]) -> Callable[..., Any]:
    """Return the class or function whose keyword-only parameters are the options of a target.

    It is the target itself, unless its last argument is an instance of a dataclass that it names as
    ``Options``.
    """
    return getattr(target, "Options", target)


def node(target: type, options: Config) -> dict[str, Any]:
    """Return the config node of a class of ddpm with these options, as plain data."""
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
    return {"_target_": f"{target.__module__.rpartition('.')[0]}.{target.__name__}", **plain}


def with_defaults(node: Config, key: str) -> dict[str, Any]:
    """Return a node with defaults for the options that are not set.

    A class may list in ``legacy_defaults`` the values that match versions without an option.
    """
    target = exported(node["_target_"], f"{key}._target_")
    parameters = inspect.signature(options_of(target)).parameters
    defaults = {
        p.name: list(p.default) if isinstance(p.default, tuple) else p.default
        for p in parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.default is not p.empty
    }
    legacy = getattr(target, "legacy_defaults", {})  # may be inherited with other options
    defaults |= {name: value for name, value in legacy.items() if name in parameters}
    if key == "data":
        defaults["val_fraction"] = 0.0  # of every data node, see splits
    return {"_target_": node["_target_"], **defaults, **node}


def config_with_defaults(config: Config) -> dict[str, Any]:
    """Return the config of a run with every option of its nodes."""
    return {
        key: with_defaults(value, key)
        if isinstance(value, Mapping) and "_target_" in value
        else value
        for key, value in config.items()
    }


def config_with_defaults_if_known(config: Config) -> dict[str, Any]:
    """Return the config of a run with every option, unchanged if a class is from a plugin."""
    try:
        return config_with_defaults(config)
    except ConfigError:
        return dict(config)


def retargeted(node: Config, key: str, typed: Collection[str]) -> dict[str, Any]:
    """Return a node whose ``_target_`` was typed, without the options of the one that it replaces.

    Args:
        node: of a config group, with the options of one of its choices.
        key: of the group.
        typed: the options that were typed, with the group in front; these stay.

    Raises:
        ConfigError: the class is not exported.
    """
    constructor = exported(str(node["_target_"]), f"{key}._target_", typed=True)
    parameters = inspect.signature(options_of(constructor)).parameters
    # A null may stand for a default of the class that is replaced.
    null = {k for k, p in parameters.items() if p.default is not None and node.get(k) is None}
    names = {"_target_", *parameters} - null
    if key == "data":
        names.add("val_fraction")  # of every data node, see splits
    return {k: v for k, v in node.items() if k in names or f"{key}.{k}" in typed}


def with_typed_classes(options: Config, typed: Collection[str]) -> dict[str, Any]:
    """Return the config groups whose class was typed, without options of other classes.

    See :func:`retargeted`. If a recipe was typed, these are also the groups whose choice was typed,
    which may lack options of the recipe.

    Args:
        options: of a command.
        typed: keys of the typed options, such as ``sampler._target_``.

    Raises:
        ConfigError: a class that is not exported.
    """
    groups = [key.removesuffix("._target_") for key in typed if key.endswith("._target_")]
    result = {key: retargeted(options[key], key, typed) for key in groups if key in options}
    if "experiment" in typed:
        chosen = [key for key in PACKAGES if key in typed and key in options and key not in result]
        result |= {key: _without_foreign(options[key], key, typed) for key in chosen}
    return result


def _without_foreign(node: Config, key: str, typed: Collection[str]) -> dict[str, Any]:
    """Return a node without options that its class lacks, unless they were typed."""
    constructor = exported(str(node["_target_"]), f"{key}._target_")
    names = {"_target_", "val_fraction", *inspect.signature(options_of(constructor)).parameters}
    foreign = {name for name in node if name not in names and f"{key}.{name}" not in typed}
    if foreign and os.environ.get("RANK", "0") == "0":
        left_out = ", ".join(f"{key}.{name}" for name in node if name in foreign)
        note(f"options of the recipe that the chosen {key} lacks, left out: {left_out}")
    return {name: value for name, value in node.items() if name not in foreign}


def exported(target: str, key: str, *, typed: bool = False) -> Callable[..., Any]:
    """Return the class or function that a ``_target_`` names.

    Args:
        target: full name, ``package.Name``.
        key: of the option, ``group._target_``.
        typed: the user typed the name; otherwise it may be that of an untrusted checkpoint.

    Raises:
        ConfigError: it is not in the ``__all__`` of the group's package or of a plugin.
    """
    package, _, name = target.rpartition(".")
    group = key.split(".")[-2]
    if package in (*PACKAGES.values(), *_plugins):
        module = importlib.import_module(package)
        member = getattr(module, name) if name in module.__all__ else None
        if callable(member) and not inspect.isabstract(member):
            if package in (PACKAGES.get(group), *_plugins):
                return member
            problem = f"is not a valid target for this option; choose one with {group}=..."
            raise ConfigError(key, target, problem)
    if package in _plugins:
        problem = f"is not a class in the __all__ of {package}"
        raise ConfigError(key, target, problem, "add it there")
    remedy = _class_remedy(target, group, typed)
    raise ConfigError(key, target, "is not exported by ddpm or by a plugin", remedy)


def _class_remedy(target: str, group: str, typed: bool) -> str:
    """Return the remedy of a ``_target_`` whose module is not a plugin."""
    package, top = target.rpartition(".")[0], target.partition(".")[0]
    if top == "ddpm":
        return f"choose one with {group}=..."
    local = Path(f"{top}.py").is_file() or Path(top).is_dir()
    if top and package and (local or (typed and top not in sys.stdlib_module_names)):
        return f"add plugins=[{package}]"
    return "for a class of your own, my_module.MyClass, add plugins=[my_module]"
