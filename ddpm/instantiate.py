"""Factory: objects of the domain from the nodes of a config."""

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
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import ConfigError, did_you_mean, require
from ddpm.memory import is_out_of_memory
from ddpm.metrics import Auto, Extractor
from ddpm.models.sizes import Fit
from ddpm.samplers import Sampler
from ddpm.samplers.base import Steps
from ddpm.seeding import RandomStream, mix
from ddpm.training import Trainer
from ddpm.training.checkpoint import Checkpoint
from ddpm.training.trainer import TrainerOptions

Config = Mapping[str, Any]


def adapted(node: Config, network: nn.Module) -> dict[str, Any]:
    """Return the node of a network with the options that it took from the size of the data."""
    fit = getattr(network, "fit", None)
    known = inspect.signature(type(network)).parameters
    options = fit.options if isinstance(fit, Fit) else {}
    return {**node, **{name: value for name, value in options.items() if name in known}}


def sized(node: Config, device: str = "cuda", stored: Config | None = None) -> Config:
    """Return the node of a network with numbers for its width and heads, where these are null.

    Args:
        node: of the config group ``model``.
        device: ``cpu`` for the class's ``cpu_defaults``, unless the width is typed, else the
            defaults of its constructor.
        stored: the node of a run, whose numbers precede both.
    """
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        return node  # for build to refuse
    target = exported(node["_target_"], "model._target_")
    values = dict(vars(target).get("cpu_defaults", {}))  # not those of a base class
    if device != "cpu" or node.get(next(iter(values), "")) is not None:
        signature = inspect.signature(target).parameters
        values = {key: signature[key].default for key in values}
    if stored is not None and stored.get("_target_") == node["_target_"]:
        values.update({k: stored[k] for k in values if k in stored})
    return {**node, **{k: v for k, v in values.items() if node.get(k) is None}}


def adapted_as(node: Config, there: Config) -> dict[str, Any]:
    """Return the node of a network in which options that the size decides are as in a stored one.

    Those are options that are null, and with the first of ``adaptive``, the levels, all of them.
    """
    if node.get("_target_") != there.get("_target_"):
        return dict(node)
    names = getattr(exported(node["_target_"], "model._target_"), "adaptive", ())
    everything = bool(names) and node.get(names[0]) is None
    taken = [name for name in names if name in there and (everything or node.get(name) is None)]
    return {**node, **{name: there[name] for name in taken}}


def dataset(config: Config) -> Dataset:
    """The data that a config trains on."""
    return splits(config).train


def splits(config: Config) -> Split:
    """The data that a config trains on, and those that it validates with.

    Whatever its class, a data node has one option more: ``val_fraction``, see
    :func:`ddpm.data.split.split`.

    Raises:
        ConfigError: see :func:`build`; also a fraction that cannot be held out.
    """
    node = config["data"]
    fraction = 0.0
    if isinstance(node, Mapping):  # anything else is for build to refuse
        fraction = typed(node.get("val_fraction", fraction), float, "data.val_fraction")
        node = {name: value for name, value in node.items() if name != "val_fraction"}
    whole = build(node, "data")
    try:
        return split(whole, fraction)
    except ConfigError as error:
        raise error.under("data") from error


def diffusion(config: Config, spec: DataSpec) -> GaussianDiffusion:
    """The process that a config describes.

    Raises:
        ConfigError: also label dropout without labels.
    """
    schedule = build(config["schedule"], "schedule")
    objective = build(config["objective"], "objective")
    mask = spec.codec.condition_mask
    made: GaussianDiffusion = build(config["diffusion"], "diffusion", schedule, objective, mask)
    if made.label_dropout > 0 and spec.num_classes is None:
        problem = "there are no labels to drop; add data.class_cond=true, or leave it at 0"
        raise ConfigError("diffusion.label_dropout", made.label_dropout, problem)
    return made


def network(config: Config, spec: DataSpec, process: GaussianDiffusion) -> nn.Module:
    """The network, its channels, size and classes taken from the data and the process.

    A process with label dropout adds one class that stands for "no class". The initial weights
    are a function of the config's seed, the same on every process.
    """
    channels, *size = spec.shape
    classes = spec.num_classes
    if classes is not None and process.label_dropout > 0:
        classes += 1
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
    """The extractor of a node, for images (C, H, W)."""
    made = build(node, "extractor")
    return made.choose(shape) if isinstance(made, Auto) else made


def trainer_options(config: Config) -> TrainerOptions:
    """Return the trainer's options, checked, with defaults for those that are not set."""
    typed = {name: value for name, value in config["trainer"].items() if name != "_target_"}
    checked = check(typed, TrainerOptions, "trainer")
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
    """The trainer of a config."""
    node = config.get("timesteps", {"_target_": "ddpm.diffusion.Uniform"})  # older runs have none
    timesteps = build(node, "timesteps", process.num_steps)
    runtime = (model, process, data, accelerator, config["seed"], timesteps)
    return build(config["trainer"], "trainer", *runtime)


def trained(
    found: Checkpoint, weights: Literal["ema", "raw"]
) -> tuple[nn.Module, GaussianDiffusion, DataSpec]:
    """The network of a checkpoint with its weights, its process, and the spec of its data.

    Raises:
        ConfigError: the config names what is not exported, or the weights do not fit it.
    """
    spec = DataSpec.from_metadata(found.metadata.data)
    try:
        process = diffusion(found.config, spec)
        model = network(found.config, spec, process)
        model.load_state_dict(found.weights(weights))
    except KeyError as error:
        problem = f"its config has no {error}; use another checkpoint"
        raise ConfigError("ckpt", str(found.folder), problem) from error
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        problem = f"its weights do not fit its config: {str(error).splitlines()[-1].strip()}"
        raise ConfigError("ckpt", str(found.folder), problem) from error
    return model, process, spec
