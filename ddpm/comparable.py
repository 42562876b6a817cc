"""Comparison of configs: losses are comparable if they measure the same quantity."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ddpm.errors import render
from ddpm.nested import flat

GROUPS = ("objective", "schedule", "diffusion", "data", "timesteps")
# Options of these groups that do not change the quantity: further inputs of the network, sampling,
# location and reading of the data.
FREE = frozenset(
    {
        *("diffusion.self_condition", "diffusion.rescale_timesteps", "diffusion.label_dropout"),
        *("data.class_cond", "data.val_fraction", "data.cache_mb", "data.disk_cache"),
        "data.download",
    }
)
DENSITIES = ("logit_normal", "log_normal")
"""Distributions of timesteps that define the mean loss."""
# Options of the variational bound, which the simple loss does not contain.
BOUND = ("diffusion.variance", "diffusion.vlb_weight", "diffusion.bin_width")


def differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the options, with their values, that make the losses of these configs incomparable.

    These are objective, loss and weighting, schedule and number of steps, data and their scaling.
    For a group whose classes differ only the group is named; options that a config lacks are
    skipped.
    """
    bound = any(_loss(config) != "simple" for config in configs)
    result: dict[str, list[Any]] = {}
    for group in GROUPS:
        nodes = [_node(config, group) for config in configs]
        options = [flat(node, f"{group}.") for node in nodes if isinstance(node, Mapping)]
        if len(options) < len(configs):
            continue  # such as an imported run without data
        targets = _distinct([_name(each.get(f"{group}._target_")) for each in options])
        if len(targets) > 1:
            result[group] = targets
            continue
        for key in options[0] if options else ():
            free = key in FREE or (key in BOUND and not bound)
            if not free and all(key in each for each in options):
                result[key] = _distinct([each[key] for each in options])
    return {key: values for key, values in result.items() if len(values) > 1}


def groups(configs: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return a number per config, the same for those whose losses are comparable; from 1."""
    first: list[Mapping[str, Any]] = []
    numbers = []
    for config in configs:
        same = (n for n, other in enumerate(first, 1) if not differing([other, config]))
        number = next(same, len(first) + 1)
        if number > len(first):
            first.append(config)
        numbers.append(number)
    return numbers


def warning(configs: Sequence[Mapping[str, Any]], what: str) -> str | None:
    """Return a warning about losses that are not comparable, or None.

    Args:
        configs: configs of the runs.
        what: name of the compared things, such as ``runs``.
    """
    options = differing(configs)
    if not options:
        return None
    names = [f"{key} ({', '.join(map(render, values))})" for key, values in options.items()]
    remedy = "compare fid or bpd (ddpm-evaluate runs=... metrics=[fid,bpd])"
    if any(key.partition(".")[0] == "data" for key in options):
        remedy = "compare those on the same data"
    return f"Losses are not comparable: the {what} differ in {', '.join(names)}; {remedy}."


def _node(config: Mapping[str, Any], group: str) -> Any:
    """Return the node of a group.

    Distributions of timesteps with importance weights have the mean loss of uniform timesteps,
    whose node replaces theirs.
    """
    node = config.get(group)
    if group != "timesteps":
        return node
    target = node.get("_target_") if isinstance(node, Mapping) else None
    return node if _name(target) in DENSITIES else {"_target_": "ddpm.training.Uniform"}


def _loss(config: Mapping[str, Any]) -> Any:
    node = config.get("diffusion")
    return node.get("loss", "simple") if isinstance(node, Mapping) else "simple"


def _name(target: Any) -> str:
    """Return the name of a class in the style of a choice of a config group."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(target).rpartition(".")[2]).lower()


def _distinct(values: Sequence[Any]) -> list[Any]:
    return [value for n, value in enumerate(values) if value not in values[:n]]
