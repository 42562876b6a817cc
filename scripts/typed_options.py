"""Options of scripts, typed as ``key=value``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import yaml

from ddpm.errors import did_you_mean, require

T = TypeVar("T")


def parse(
    options: type[T], arguments: Sequence[str], required: Mapping[str, str] | None = None
) -> T:
    """Return a dataclass of options whose values are typed as YAML.

    Args:
        options: the dataclass.
        arguments: ``key=value``.
        required: descriptions of the options without a default, by name.

    Raises:
        ConfigError: an unknown option, or a required one that is missing.
    """
    names: Any = getattr(options, "__dataclass_fields__")  # noqa: B009
    values: dict[str, Any] = {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        require(key in names, key, value, f"unknown option{did_you_mean(key, names)}")
        values[key] = yaml.safe_load(value)
    for key, description in (required or {}).items():
        require(key in values, key, None, f"is required: {description}")
    return options(**values)
