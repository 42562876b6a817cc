"""The command line as Hydra reads it: overrides, choices of the config groups, sweeps and jobs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm.config import values
from ddpm.config.migration import migrate
from ddpm.errors import render, require

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

_ALIASES = {"steps": ("sampler", "steps")}


def overrides() -> list[str]:
    """Return the overrides as typed, without those of Hydra's own options."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task)


def typed_options() -> list[tuple[str, str]]:
    """Return key and text (``key=value``) of each typed option whose value is not null."""
    typed = [values.as_typed(text.lstrip("+~")) for text in overrides()]
    pairs = [(text.partition("=")[0].partition("@")[0], text) for text in typed]
    return [(key, text) for key, text in pairs if not text.endswith("=null")]


def resolved(
    options: Mapping[str, Any], typed: Collection[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the options of a command without aliases, such as ``steps`` for ``sampler.steps``.

    Classes have their current names: a YAML of the user may have those of an earlier version. The
    second result maps the option of each alias that has a value to the name of the alias.

    Args:
        options: composed options.
        typed: keys of the typed options whose values are not null.

    Raises:
        ConfigError: an alias and its option were typed with different values.
    """
    result, names = migrate(options), {}
    for alias, (group, name) in _ALIASES.items():
        value, key = result.pop(alias, None), f"{group}.{name}"
        if value is not None:
            other = result[group].get(name)
            problem = f"is the same option as {key}={render(other)}; give only one of them"
            require(key not in typed or other == value, alias, value, problem)
            result[group] = {**result[group], name: value}
            names[key] = alias
    return result, names


def choices() -> dict[str, str]:
    """Return the name of the chosen file of each config group."""
    from hydra.core.hydra_config import HydraConfig

    return dict(HydraConfig.get().runtime.choices)


def command_name() -> str:
    """Return the name of the root config: ``train`` for ``ddpm-train``."""
    from hydra.core.hydra_config import HydraConfig

    return str(HydraConfig.get().job.config_name)


def job_folder() -> Path | None:
    """Return the folder of this job in its sweep, or None outside of a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    config = HydraConfig.get()
    if config.mode != RunMode.MULTIRUN:
        return None
    # Not sweep.dir, which refers to ``out``: the workers of a job have Hydra's part of the config.
    place = Path(config.runtime.output_dir, str(config.job.num))
    return place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place


def starts_sweep(arguments: Sequence[str]) -> bool:
    """Return True if the arguments of a command start a sweep."""
    return any(map(_is_sweep_flag, arguments))


def _is_sweep_flag(argument: str) -> bool:
    if argument.startswith("--mu"):
        return "--multirun".startswith(argument)
    return argument == "-m" or argument.lower() == "hydra.mode=multirun"


def parse(arguments: Sequence[str]) -> dict[str, Override]:
    """Return the overrides among the arguments by key; empty if Hydra cannot read one of them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    typed = [each for each in arguments if "=" in each and not each.startswith("-")]
    try:
        parsed = OverridesParser.create().parse_overrides(typed)
    except HydraException:
        return {}
    return {each.key_or_group: each for each in parsed}
