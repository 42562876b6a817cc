"""Factory of data sets, networks, processes, samplers and trainers from config nodes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from ddpm import samplers
from ddpm.config.registry import build, exported
from ddpm.config.schema import check, typed
from ddpm.data import Dataset
from ddpm.data.spec import DataSpec
from ddpm.data.split import Split, split
from ddpm.data.statistics import standard_deviation
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import ConfigError, did_you_mean, require
from ddpm.memory import is_out_of_memory
from ddpm.metrics import Auto, Extractor
from ddpm.models.labels import num_labels
from ddpm.models.sizes import Fit
from ddpm.samplers import Sampler
from ddpm.samplers.grids import Steps
from ddpm.seeding import RandomStream, mix
from ddpm.training import Trainer
from ddpm.training.checkpoint import Checkpoint
from ddpm.training.trainer import TrainerOptions

Config = Mapping[str, Any]


def adapted(node: Config, network: nn.Module) -> dict[str, Any]:
    """Return the node of a network with the options that it took from the size of the data."""
    fit = getattr(network, "fit", None)
    parameters = inspect.signature(type(network)).parameters
    options = fit.options if isinstance(fit, Fit) else {}
    return {**node, **{name: value for name, value in options.items() if name in parameters}}


def sized(node: Config, device: str = "cuda", stored: Config | None = None) -> Config:
    """Return the node of a network with numbers for its width and heads, where these are null.

    Args:
        node: of the config group ``model``.
        device: ``cpu`` for the class's ``cpu_defaults``, unless the width is typed, else the
            defaults of its constructor.
        stored: the node of a run, whose numbers precede both.
    """
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        return node  # build raises the error
    target = exported(node["_target_"], "model._target_")
    values = dict(vars(target).get("cpu_defaults", {}))  # not those of a base class
    if device != "cpu" or node.get(next(iter(values), "")) is not None:
        signature = inspect.signature(target).parameters
        values = {key: signature[key].default for key in values}
    if stored is not None and stored.get("_target_") == node["_target_"]:
        values.update({k: stored[k] for k in values if k in stored})
    return {**node, **{k: v for k, v in values.items() if node.get(k) is None}}


def adapted_as(node: Config, there: Config) -> dict[str, Any]:
    """Return the node of a network with the adaptive options of a stored node.

    Options that are null are replaced; if the first of ``adaptive`` (the levels) is null, all are.
    """
    if node.get("_target_") != there.get("_target_"):
        return dict(node)
    names = getattr(exported(node["_target_"], "model._target_"), "adaptive", ())
    everything = bool(names) and node.get(names[0]) is None
    replaced = [name for name in names if name in there and (everything or node.get(name) is None)]
    return {**node, **{name: there[name] for name in replaced}}


def measured(config: Config, data: Dataset) -> dict[str, Any]:
    """Return the config with numbers for options of the objective that the training data decide.

    These are the options in ``measured`` of its class, where they are null.

    Raises:
        ConfigError: data without variance.
    """
    null = [name for name in _measured_options(config) if config["objective"].get(name) is None]
    if not null:
        return dict(config)
    std = standard_deviation(data)
    problem = "cannot be measured: the training data are constant; set a number"
    require(std > 0, f"objective.{null[0]}", None, problem)
    return {**config, "objective": {**config["objective"], **dict.fromkeys(null, std)}}


def measured_as(config: Config, stored: Config) -> dict[str, Any]:
    """Return the config with the numbers of a stored one where :func:`measured` replaces null."""
    node, there = config.get("objective"), stored.get("objective")
    if not isinstance(node, Mapping) or not isinstance(there, Mapping):
        return dict(config)
    if node.get("_target_") != there.get("_target_"):
        return dict(config)
    names = [name for name in _measured_options(config) if node.get(name) is None]
    return {**config, "objective": {**node, **{k: there[k] for k in names if k in there}}}


def _measured_options(config: Config) -> tuple[str, ...]:
    """Return the options of the objective that :func:`measured` may replace."""
    return getattr(_target(config, "objective"), "measured", ())


def _target(config: Config, group: str) -> object:
    """Return the class of a config group; None for a node for which :func:`build` has an error."""
    node = config[group]
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        return None
    return exported(node["_target_"], f"{group}._target_")


def dataset(config: Config) -> Dataset:
    """Return the training data of a config."""
    return splits(config).train


def splits(config: Config) -> Split:
    """Return the training data and the validation data of a config.

    Data nodes of every class have the option ``val_fraction``, see
    :func:`ddpm.data.split.split`.

    Raises:
        ConfigError: see :func:`build`; also a fraction that cannot be held out.
    """
    node = config["data"]
    fraction = 0.0
    if isinstance(node, Mapping):  # for anything else, build raises the error
        fraction = typed(node.get("val_fraction", fraction), float, "data.val_fraction")
        node = {name: value for name, value in node.items() if name != "val_fraction"}
    whole = build(node, "data")
    try:
        return split(whole, fraction)
    except ConfigError as error:
        raise error.under("data") from error


def diffusion(config: Config, spec: DataSpec) -> GaussianDiffusion:
    """Return the diffusion process of a config.

    Raises:
        ConfigError: also label dropout without labels.
    """
    schedule = build(config["schedule"], "schedule")
    objective = build(config["objective"], "objective")
    mask = spec.codec.condition_mask
    process: GaussianDiffusion = build(config["diffusion"], "diffusion", schedule, objective, mask)
    if process.loss_options.drops_labels and spec.num_classes is None:
        problem = "the data have no labels to drop; set data.class_cond=true, or leave it at 0"
        raise ConfigError("diffusion.label_dropout", process.loss_options.label_dropout, problem)
    return process


def network(config: Config, spec: DataSpec, process: GaussianDiffusion) -> nn.Module:
    """Return the network of a config, with channels, size and classes of the data and the process.

    With label dropout the labels include one for "no class", unless the network has a null
    embedding of its own. The initial weights are a function of the config's seed, the same on every
    process.
    """
    channels, *size = spec.shape
    classes = spec.num_classes
    if classes is not None and process.loss_options.drops_labels:
        classes = num_labels(_target(config, "model"), classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(config["seed"], RandomStream.INITIAL_WEIGHTS))
        return build(
            sized(config["model"]),
            "model",
            channels,
            process.output_channels(channels),
            tuple(size),
            classes,
            process.self_condition,
        )


def sampler(choice: str | Sampler | Config, steps: Steps | list[int] = None) -> Sampler:
    """Return a sampler by its name, its config node, or itself.

    Args:
        choice: name of a class, such as ``ddim``, with its default options; a node; an instance.
        steps: network calls; None = those of the node or the class. An instance has its own.

    Raises:
        ConfigError: an unknown name, or options that the sampler rejects.
    """
    if isinstance(choice, Sampler):
        problem = f"{type(choice).__name__} has steps of its own; set them there"
        require(steps is None, "steps", steps, problem)
        return choice
    if isinstance(choice, str):
        names = {name.lower(): name for name in samplers.__all__ if name != "Sampler"}
        require(choice in names, "sampler", choice, f"unknown sampler{did_you_mean(choice, names)}")
        choice = {"_target_": f"ddpm.samplers.{names[choice]}"}
    return build(choice if steps is None else {**choice, "steps": steps}, "sampler")


def extractor(node: Config, shape: tuple[int, ...]) -> Extractor:
    """Return the extractor of a node, for images (C, H, W)."""
    result = build(node, "extractor")
    return result.choose(shape) if isinstance(result, Auto) else result


def trainer_options(config: Config) -> TrainerOptions:
    """Return the trainer's options, checked, with defaults for those that are not set."""
    options = {name: value for name, value in config["trainer"].items() if name != "_target_"}
    checked = check(options, TrainerOptions, "trainer")
    try:
        return TrainerOptions(**checked)
    except ConfigError as error:
        raise error.under("trainer") from error


def trainer(
    config: Config,
    model: nn.Module,
    process: GaussianDiffusion,
    data: Dataset,
    accelerator: object,
) -> Trainer:
    """Return the trainer of a config."""
    node = config.get("timesteps", {"_target_": "ddpm.training.Uniform"})  # older runs have none
    timesteps = build(node, "timesteps", process.schedule)
    runtime = (model, process, data, accelerator, config["seed"], timesteps)
    return build(config["trainer"], "trainer", *runtime)


def trained(
    checkpoint: Checkpoint, weights: Literal["ema", "raw"]
) -> tuple[nn.Module, GaussianDiffusion, DataSpec]:
    """Return the network of a checkpoint with its weights, its process and its data specification.

    Raises:
        ConfigError: the config names a class that is not exported, or the weights do not fit it.
    """
    spec = DataSpec.from_metadata(checkpoint.metadata.data)
    try:
        process = diffusion(checkpoint.config, spec)
        model = network(checkpoint.config, spec, process)
        model.load_state_dict(checkpoint.weights(weights))
    except KeyError as error:
        problem = f"its config has no {error}; use another checkpoint"
        raise ConfigError("ckpt", str(checkpoint.folder), problem) from error
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        problem = f"its weights do not fit its config: {str(error).splitlines()[-1].strip()}"
        raise ConfigError("ckpt", str(checkpoint.folder), problem) from error
    return model, process, spec
