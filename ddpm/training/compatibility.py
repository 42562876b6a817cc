"""Compatibility of a run with the config that it is resumed with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm.errors import ConfigError, render
from ddpm.nested import flat
from ddpm.training.options import free_options
from ddpm.training.trainer import TrainerOptions

# Keys that may differ on resume: they do not affect the results.
FREE_KEYS = frozenset(
    {
        "data.path",
        "data.axes",  # the resulting shape of the data is compared instead
        "data.download",
        "data.cache_mb",
        "data.disk_cache",
        "data.bits",  # this and the next are compared as part of the state of the codec
        "data.fps",
        *(f"trainer.{name}" for name in free_options(TrainerOptions)),
    }
)
FREE_GROUPS = ("sampler.", "evaluation.")  # of previews and of evaluations during training
# Keys that may differ with override=true: those of the training, not of the model or the data.
OVERRIDABLE = ("trainer.",)


def check_compatible(
    stored: Mapping[str, Any],
    requested: Mapping[str, Any],
    key: str,
    run: Path,
    *,
    override: bool = False,
) -> dict[str, tuple[Any, Any]]:
    """Check that a run can be resumed with a config.

    Args:
        stored: the config of the run.
        requested: the config to resume with.
        key: the option that selected the run, for error messages.
        run: the run folder.
        override: allow different options of the trainer.

    Returns:
        The options that differ and may: key to the stored and the requested value.

    Raises:
        ConfigError: an option differs that must not; the message has every such key with both
            values. See ``FREE_KEYS``.
    """
    old, new = flat(stored), flat(requested)
    changed = {
        name: (old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    }
    rejected = [name for name in changed if not _may_differ(name, override)]
    if rejected:
        options = [
            f"{n} ({render(changed[n][0])} there, {render(changed[n][1])} here)" for n in rejected
        ]
        remedy = _remedy(run, named=key == "name", trainer=all(map(_is_overridable, rejected)))
        if any(name.startswith("data.") for name in rejected):
            remedy += f"; init={run} without resume= starts a new run from its weights"
        problem = f"was trained with different options: {', '.join(options)}; {remedy}"
        raise ConfigError(key, str(run) if key == "resume" else run.name, problem)
    return changed


def _remedy(run: Path, *, named: bool, trainer: bool) -> str:
    """Return the remedy for options that differ.

    Args:
        run: the run folder.
        named: True for a run selected with ``name``, False for one selected with ``resume``.
        trainer: True if only options of the trainer differ.
    """
    if named and trainer:
        return f"use resume={run} override=true to continue with these, or another name"
    if named:
        return f"use resume={run} to continue with the run's own options, or another name"
    if trainer:
        return "remove these overrides, start a new run, or add override=true to use them"
    return "remove these overrides or start a new run"


def _may_differ(name: str, override: bool) -> bool:
    free = name in FREE_KEYS or name.startswith(FREE_GROUPS)
    return free or (override and _is_overridable(name))


def _is_overridable(name: str) -> bool:
    return name.startswith(OVERRIDABLE)
