"""Composition of a command's config without its command line, for the Python interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddpm.cli import app, argument_errors, invocation
from ddpm.config import values
from ddpm.config.location import config_dir
from ddpm.errors import ConfigError, render


class Composition(NamedTuple):
    """A composed config.

    Attributes:
        options: of the command, as plain data with resolved interpolations.
        overrides: options as typed, in Hydra's grammar.
        choices: name of the chosen file of each config group.
    """

    options: dict[str, Any]
    overrides: tuple[str, ...]
    choices: dict[str, str]


def compose(config_name: str, config: Mapping[str, Any] | Sequence[str]) -> Composition:
    """Compose the config of a command.

    Args:
        config_name: ``train`` for ``ddpm-train``.
        config: options as on the command line, or a mapping, see :func:`arguments`.

    Raises:
        ConfigError: an unknown option, or an invalid value.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import open_dict
    from omegaconf.errors import OmegaConfBaseException

    from ddpm.config.text import plain

    if isinstance(config, str):
        raise ConfigError("config", config, "must be a list of options or a mapping")
    typed = arguments(config) if isinstance(config, Mapping) else [str(each) for each in config]
    argument_errors.check_arguments(config_name, typed)
    overrides = [app.readable(argument, typed) for argument in typed]
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            composed = hydra_compose(config_name, overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise argument_errors.explain(config_name, error, overrides) from error
    choices = dict(composed.hydra.runtime.choices)
    with open_dict(composed):
        del composed["hydra"]
    typed_keys = set(map(values.option_key, overrides))
    options, _ = invocation.resolved(values.expanded(plain(composed)), typed_keys)
    return Composition(options, tuple(overrides), choices)


def arguments(config: Mapping[str, Any]) -> list[str]:
    """Return the options of a mapping as arguments of a command.

    ``{"data": "cifar", "trainer": {"lr": 1e-4}}`` gives ``data=cifar`` and ``trainer.lr=0.0001``:
    text is the choice of a config group, a mapping has some of its options, or all of them if it
    contains ``_target_``.

    Raises:
        ConfigError: a value that is not text, a number, a boolean, None, or a list of these.
    """
    result = []
    for key, value in config.items():
        if isinstance(value, str) and (config_dir() / key).is_dir():
            result.append(f"{key}={value}")
        else:
            result += _flattened(str(key), value)
    return result


def _flattened(key: str, value: Any) -> list[str]:
    """Return the arguments for the options of a mapping, or for one value."""
    if isinstance(value, Mapping):
        return [each for name, part in value.items() for each in _flattened(f"{key}.{name}", part)]
    return [f"{key}={_literal(key, value)}"]


def _literal(key: str, value: Any) -> str:
    """Return a value in Hydra's grammar."""
    if isinstance(value, str | Path):
        return values.quoted(str(value))
    if isinstance(value, list | tuple):
        return f"[{','.join(_literal(key, each) for each in value)}]"
    if value is None or isinstance(value, bool | int | float):
        return render(value)
    problem = "must be text, a number, a boolean, None, or a list of these"
    raise ConfigError(key, type(value).__name__, problem)
