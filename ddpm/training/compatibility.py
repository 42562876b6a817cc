"""When a run may go on: under which other options it is still the same run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm.errors import ConfigError, render
from ddpm.nested import flat
from ddpm.training.options import free_options
from ddpm.training.trainer import TrainerOptions

# What may differ when a run goes on: none of it changes what is computed.
FREE_KEYS = frozenset(
    {
        "data.path",
        "data.axes",  # what they make of the data is compared by itself
        "data.download",
        "data.cache_mb",
        "data.bits",  # this and the next are in the codec's state, and compared there
        "data.fps",
        *(f"trainer.{name}" for name in free_options(TrainerOptions)),
    }
)
FREE_GROUPS = ("sampler.", "evaluation.")  # of the previews, and of what is measured meanwhile
# What override=true lets differ: how it is trained, not what is trained on what.
OVERRIDABLE = ("trainer.",)


def check_compatible(
    stored: Mapping[str, Any],
    asked: Mapping[str, Any],
    key: str,
    run: Path,
    *,
    override: bool = False,
) -> dict[str, tuple[Any, Any]]:
    """Refuse to go on with a run under another config, or on other data.

    Args:
        stored: of the run.
        asked: what it would go on with.
        key: the option to blame.
        run: the run's folder.
        override: whether the user wants the trainer's options to differ.

    Returns:
        What differs all the same: key to the value there and the value here.

    Raises:
        ConfigError: names every differing key with both values; see ``FREE_KEYS``.
    """
    old, new = flat(stored), flat(asked)
    changed = {
        name: (old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    }
    refused = [name for name in changed if not _may_differ(name, override)]
    if refused:
        told = [
            f"{n} ({render(changed[n][0])} there, {render(changed[n][1])} here)" for n in refused
        ]
        remedy = _remedy(run, named=key == "name", trainer=all(map(_is_overridable, refused)))
        problem = f"is a run with other options: {', '.join(told)}; {remedy}"
        raise ConfigError(key, str(run) if key == "resume" else run.name, problem)
    return changed


def _remedy(run: Path, *, named: bool, trainer: bool) -> str:
    """What to do about options that differ: of a run that was named or resumed."""
    if named and trainer:
        return f"use resume={run} override=true to continue with these, or another name"
    if named:
        return f"use resume={run} to continue with the run's own options, or another name"
    if trainer:
        return "leave them, start a new run, or go on with them by override=true"
    return "leave them, or start a new run"


def _may_differ(name: str, override: bool) -> bool:
    free = name in FREE_KEYS or name.startswith(FREE_GROUPS)
    return free or (override and _is_overridable(name))


def _is_overridable(name: str) -> bool:
    return name.startswith(OVERRIDABLE)
