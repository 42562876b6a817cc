"""Configs as plain data and as YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ddpm.errors import ConfigError

Config = Mapping[str, Any]


def plain(config: Any) -> dict[str, Any]:
    """Return a Hydra config as plain data, with interpolations resolved.

    Raises:
        ConfigError: missing required options, or an interpolation that cannot be resolved.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            first = missing[0]
            others = f" (so are {', '.join(missing[1:])})" if missing[1:] else ""
            raise ConfigError(first, None, f"is missing{others}; add {first}=...")
        resolved = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        problem = f"cannot be resolved: {str(error).splitlines()[0]}"
        raise ConfigError(str(error.full_key), None, problem) from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def to_yaml(config: Config) -> str:
    """Return a config as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(config)))


def from_yaml(text: str, file: str) -> dict[str, Any]:
    """Return the config in the output of :func:`to_yaml`; interpolations are not resolved.

    Args:
        text: of the file.
        file: its path, for the error message.

    Raises:
        ConfigError: invalid or empty YAML.
    """
    reason = "it is empty"
    try:
        read = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (YAMLError, OmegaConfBaseException, ValueError) as error:
        read, reason = None, str(error).splitlines()[0]
    if not isinstance(read, dict) or not read:
        problem = f"is damaged ({reason}); remove it: the checkpoints have the config too"
        raise ConfigError("resume", file, problem)
    return {str(key): value for key, value in read.items()}
