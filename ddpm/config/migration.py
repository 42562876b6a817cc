"""Migration of configs of earlier versions to the names of this version.

It is applied wherever a config enters: to the stored config of a run or a checkpoint when it is
read, and to the config that a command composes from the user's files and arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED_PACKAGES = {"ddpm.fidelity": "ddpm.metrics"}
"""Packages of ``_target_`` in earlier versions, with their name in this one."""
_TIMESTEPS = ("LogNormal", "LogitNormal", "LossSecondMoment", "Stratified", "Uniform")
RENAMED_TARGETS = {f"ddpm.diffusion.{name}": f"ddpm.training.{name}" for name in _TIMESTEPS}
"""Classes that are in another package than in earlier versions."""


def migrate(value: Any) -> Any:
    """Return a config, or a part of it, in which every ``_target_`` has its current name.

    Other values are returned as they are; applying it twice changes nothing.
    """
    if isinstance(value, list):
        return [migrate(each) for each in value]
    if not isinstance(value, Mapping):
        return value
    result = {name: migrate(each) for name, each in value.items()}
    target = result.get("_target_")
    if isinstance(target, str):
        package, dot, name = target.rpartition(".")
        renamed = f"{RENAMED_PACKAGES.get(package, package)}{dot}{name}"
        result["_target_"] = RENAMED_TARGETS.get(target, renamed)
    return result
