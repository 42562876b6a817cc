"""Config of an existing run, read from its folder and combined with the requested options."""

from __future__ import annotations

from collections.abc import Set
from copy import deepcopy
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from ddpm import instantiate, synonyms
from ddpm.config import paths, values
from ddpm.config.migration import migrate
from ddpm.config.registry import config_with_defaults, with_defaults
from ddpm.config.text import from_yaml
from ddpm.errors import ConfigError, require
from ddpm.evaluation.options import EvaluationOptions
from ddpm.runs.request import Request
from ddpm.training import Trainer, checkpoint
from ddpm.training.run import CONFIG

Node = dict[str, Any]
ADOPTED = ("model", "schedule", "objective", "diffusion", "timesteps")  # groups, with init=
# Options of the trainer that get a value when a run begins, where they are null or auto.
DERIVED = (
    "batch_size", "accumulate", "batch_parts", "lr", "precision", "compile", "channels_last",
)  # fmt: skip
# Those of them that are tried again when they are typed with override=true.
RETRIABLE = ("accumulate",)


def read(path: Path) -> Node | None:
    """Return the config of the run in a folder; None if it does not contain a run.

    Raises:
        ConfigError: a damaged file, or one that is not the config of a run.
    """
    file = path / CONFIG
    if file.exists():
        stored = migrate(from_yaml(file.read_text(encoding="utf-8"), str(file)))
        model = stored.get("model")
        problem = "is not the config of a run; choose another folder, or move it away"
        require(isinstance(model, dict) and "_target_" in model, "out", str(file), problem)
        return stored
    if not checkpoint.listed(path):
        return None
    newest = checkpoint.newest(path, lambda _: None)
    assert newest is not None
    return newest.config


def completed(stored: Node) -> Node:
    """Return a stored config with every option, also those of evaluations, at their defaults."""
    stored = config_with_defaults(stored)
    if isinstance(stored.get("evaluation"), dict):
        options = fields(EvaluationOptions)
        defaults = {each.name: each.default for each in options if each.default != MISSING}
        stored["evaluation"] = {**defaults, **stored["evaluation"]}
    return stored


def requested(request: Request, stored: Node, path: Path) -> Node:
    """Return the config to continue a run with.

    With ``resume`` it is the stored one with the typed options; else the composed one, with the
    values of the run for options that were derived or had other defaults when it began.

    Args:
        request: the request of the user.
        stored: the :func:`completed` config of the run.
        path: folder of the run.

    Raises:
        ConfigError: unknown options, or a duration that differs from that of the run.
    """
    located = paths.located(stored, path)
    if request.resume is not None:
        recipe = "experiment" not in request.typed_keys
        require(recipe, "experiment", None, "the run has its own options; leave it out")
        problem = f"starts a new run; use init={request.resume} without resume=, or leave it out"
        require("init" not in request.config, "init", None, problem)
        config = _with_overrides(located, request)
        _check_code(config, request)
    else:
        config = request.config
        if "init" in stored:  # network and process are not those of the defaults
            config = adopted(config, stored, request)
        config = _with_run_defaults(_with_axes(config, stored), stored, request)
        config = paths.repeated(config, located)
        config = _with_same_init(config, located, path)
    typed = {name for name in RETRIABLE if f"trainer.{name}" in request.typed_keys}
    config = with_numbers(config, stored, except_for=typed if request.override else set())
    _check_duration(config, stored)
    return config


def adopted(config: Node, stored: Node, request: Request) -> Node:
    """Return a composed config with the network and the process of a stored one.

    Typed choices and options precede these. A recipe chooses network and process itself.

    Args:
        config: composed for the request.
        stored: of a run or a checkpoint.
        request: the request of the user.
    """
    keys = request.typed_keys
    if "experiment" in keys:
        return config
    groups = [
        group for group in ADOPTED if group in stored and not {group, f"{group}._target_"} & keys
    ]
    nodes = {group: with_defaults(deepcopy(stored[group]), group) for group in groups}
    if "diffusion" in nodes and config["data"].get("class_cond") is False:
        nodes["diffusion"] |= {"label_dropout": 0.0}  # no labels to drop
    merged = {**config, **nodes}
    for override in request.overrides:
        if values.option_key(override).partition(".")[0] in groups:
            _merge(merged, config, override)
    return merged


def _with_same_init(config: Node, stored: Node, path: Path) -> Node:
    """Return the config with the record of a run's initial weights.

    Raises:
        ConfigError: others were typed.
    """
    here, there = config.get("init", {}).get("ckpt"), stored.get("init", {}).get("ckpt")
    same = here in (None, there) or paths.is_same("init.ckpt", here, there)
    start = "did not start from other weights" if there is None else f"started from {there}"
    problem = f"the run {path} {start}; leave it out, or choose another name"
    require(same, "init", here, problem)
    rest = {key: node for key, node in config.items() if key != "init"}
    return {**rest, "init": stored["init"]} if "init" in stored else rest


def has_duration(config: Node) -> bool:
    """Return True if a config sets ``trainer.max_minutes``."""
    return config.get("trainer", {}).get("max_minutes") is not None


def is_automatic(value: Any) -> bool:
    """Return True for an option that gets its value when a run begins."""
    return value in (None, "auto")


def with_numbers(config: Node, stored: Node, *, except_for: Set[str] = frozenset()) -> Node:
    """Return the config with the run's values for options that get one when a run begins.

    Args:
        config: of the request.
        stored: of the run.
        except_for: options of the trainer that get a new value.
    """
    config = instantiate.measured_as(config, stored)
    trainer, there = config["trainer"], stored.get("trainer", {})
    derived = [name for name in DERIVED if name not in except_for and name in there]
    numbers = {k: there[k] for k in derived if is_automatic(trainer.get(k))}
    model = instantiate.sized(config["model"], stored=stored["model"])
    if stored["model"].get("_target_") == model.get("_target_"):
        model = {**stored["model"], **model}  # the model of a plugin may lack some options
    return {**config, "trainer": {**trainer, **numbers}, "model": model}


def _with_axes(config: Node, stored: Node) -> Node:
    """Return the config with the sequence axes of the run, unless they were typed again."""
    data, there = config["data"], stored.get("data")
    axes = there.get("axes") if isinstance(there, dict) else None
    if axes is None or data.get("axes", axes) is not None:
        return config
    return {**config, "data": {**data, "axes": axes}}


def _with_run_defaults(config: Node, stored: Node, request: Request) -> Node:
    """Return the config with the number of steps of the run, and the defaults at its start.

    Typed options are not changed.
    """
    there = stored.get("trainer", {})
    names = {name for name, old in Trainer.legacy_defaults.items() if there.get(name) == old}
    names |= {"lr_warmup"} | ({"max_steps", "max_minutes"} if has_duration(stored) else set())
    reused = {k: there[k] for k in names if k in there and f"trainer.{k}" not in request.typed_keys}
    return {**config, "trainer": {**config["trainer"], **reused}}


def _with_overrides(stored: Node, request: Request) -> Node:
    """Return the stored config with the options that were typed beside ``resume``."""
    config = request.config
    merged = paths.without(deepcopy(stored), set(request.typed_keys))
    if isinstance(merged.get("evaluation"), dict):  # earlier versions had fewer options
        merged["evaluation"] = {**config["evaluation"], **merged["evaluation"]}
    for override in request.overrides:
        _merge(merged, config, override)
    problem = "is missing: the run was imported without data to train on; add data=..."
    require("data" in merged, "data", None, problem)
    return {**config, **merged}  # an imported run lacks a sampler and a trainer, too


def _merge(merged: Node, config: Node, override: str) -> None:
    """Set one typed option in the config of a run to its value in the composed config."""
    key = values.option_key(override)
    key = key.partition("@")[2] or key  # sampler@evaluation.sampler=ddpm
    group, _, option = key.partition(".")
    if group not in config:  # name, out, resume and the like are not part of the run
        return
    if not isinstance(merged.get(group), dict) or option == "_target_":
        merged[group] = config[group]
    elif option:
        *parents, name = option.split(".")
        there, here = merged[group], config[group]
        for parent in parents:
            there, here = there.get(parent, {}), here.get(parent, {})
        options = [".".join([group, *parents, each]) for each in there]
        value = values.as_typed(override.partition("=")[2])
        problem = f"unknown option{synonyms.hint(key, value, options)}"
        require(key in options, key, value, problem)
        there[name] = here[name]
    elif config[group].get("_target_") != merged[group].get("_target_"):
        merged[group] = config[group]


def _check_code(config: Node, request: Request) -> None:
    """Raise for an extractor that runs a file, unless it was typed: runs may come from others."""
    node = config["evaluation"]["extractor"]
    named = {"extractor@evaluation.extractor", "evaluation.extractor.path"} & request.typed_keys
    if config["trainer"].get("evaluate_every") and str(node.get("_target_")).endswith(".Custom"):
        problem = (
            "is a file that would be run; if you trust it, add "
            "extractor@evaluation.extractor=custom evaluation.extractor.path=..."
        )
        require(bool(named), "evaluation.extractor.path", node.get("path"), problem)


def _check_duration(config: Node, stored: Node) -> None:
    """Raise for another duration of an existing run, whose number of steps is stored."""
    there, here = stored.get("trainer"), config["trainer"].get("max_minutes")
    if there is not None and here not in (None, there.get("max_minutes")):
        problem = (
            f"the run has started, and ends at step {there['max_steps']}; omit "
            "trainer.max_minutes, or set trainer.max_steps to train it longer"
        )
        raise ConfigError("trainer.max_minutes", here, problem)
