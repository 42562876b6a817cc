"""From a config to objects: the only reader of config nodes.

A node is a dictionary with ``_target_`` and the options of that target; the constructor is the
schema. Its keyword-only parameters are the options, their annotations the types; what comes
before them is supplied by code. Options are checked before the call, and ``_target_`` may name
only what a package of ddpm, or a plugin that the user names, lists in its ``__all__``: a config
out of a checkpoint cannot reach anything else.
"""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn
from yaml import YAMLError

from ddpm import plugins, synonyms
from ddpm.data import Codec, Dataset, codec_from_state
from ddpm.data.classes import label_values
from ddpm.data.split import Split, split
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import ConfigError, did_you_mean, render, require
from ddpm.memory import is_out_of_memory
from ddpm.metrics import Auto, Extractor
from ddpm.models.sizes import Fit
from ddpm.samplers import Sampler
from ddpm.seeding import RandomStream, mix
from ddpm.training import Trainer
from ddpm.training.checkpoint import Checkpoint
from ddpm.training.trainer import TrainerOptions

PACKAGES = ("ddpm.data", "ddpm.diffusion", "ddpm.models", "ddpm.samplers", "ddpm.training")
EXTRACTORS = "ddpm.metrics"  # under the key of this name only: one of them runs a file
Config = Mapping[str, Any]
_plugins: list[str] = []


def plain(config: Any) -> dict[str, Any]:
    """A Hydra config as plain data, its interpolations resolved.

    Raises:
        ConfigError: required options that are missing, or an interpolation that leads nowhere.
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
    """A config as YAML, for people to read."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(config)))


def from_yaml(text: str, file: str) -> dict[str, Any]:
    """A config of :func:`to_yaml`, read from ``file``; nothing in it is evaluated.

    Raises:
        ConfigError: it is no such text.
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


def load_plugins(modules: list[str]) -> None:
    """Import the user's own modules, whose ``__all__`` configs may then name.

    Raises:
        ConfigError: a module that cannot be imported or has no ``__all__``.
    """
    _plugins.clear()
    _plugins[:] = [module.__name__ for module in plugins.load(modules)]


def build(node: Config, key: str, *runtime: object) -> Any:
    """Make the object that a config node describes.

    Args:
        node: ``_target_`` and options.
        key: its place in the config, for error messages.
        runtime: the objects that go before the options.

    Raises:
        ConfigError: a target that is not exported, an option that is unknown, missing, of the
            wrong type or refused by the constructor; its key begins with ``key``.
    """
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise ConfigError(key, None, f"is missing; choose one with {key}=...")
    target = _exported(node["_target_"], f"{key}._target_")
    options = {name: value for name, value in node.items() if name != "_target_"}
    schema = options_of(target)
    checked = check(options, schema, key)
    try:
        if schema is not target:
            runtime, checked = (*runtime, schema(**checked)), {}
        inspect.signature(target).bind(*runtime, **checked)
    except TypeError as error:
        problem = f"cannot stand here; choose one with {key}=..."
        raise ConfigError(f"{key}._target_", node["_target_"], problem) from error
    except ConfigError as error:
        raise error.under(key) from error
    try:
        return target(*runtime, **checked)
    except ConfigError as error:
        raise error.under(key) from error


def options_of(target: Callable[..., Any]) -> Callable[..., Any]:
    """Return the class or function whose keyword-only parameters are the options of a target.

    It is the target itself, unless its last argument is an instance of a dataclass that it names as
    ``Options``.
    """
    return getattr(target, "Options", target)


def node(target: type, options: Config) -> dict[str, Any]:
    """The config node of one of our classes with these options, as plain data."""
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
    return {"_target_": f"{target.__module__.rpartition('.')[0]}.{target.__name__}", **plain}


def complete(node: Config, key: str) -> dict[str, Any]:
    """A node with the options that it leaves out, at their defaults.

    A class may list in ``legacy_defaults`` the values that match versions without an option.
    """
    target = _exported(node["_target_"], f"{key}._target_")
    parameters = inspect.signature(options_of(target)).parameters
    defaults = {
        p.name: list(p.default) if isinstance(p.default, tuple) else p.default
        for p in parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.default is not p.empty
    }
    legacy = getattr(target, "legacy_defaults", {})  # may be inherited with other options
    defaults |= {name: value for name, value in legacy.items() if name in parameters}
    if key == "data":
        defaults["val_fraction"] = 0.0  # of every data node, see splits
    return {"_target_": node["_target_"], **defaults, **node}


def completed(config: Config) -> dict[str, Any]:
    """A run's config whose nodes have every option."""
    return {
        key: complete(value, key) if isinstance(value, Mapping) and "_target_" in value else value
        for key, value in config.items()
    }


def fitted(node: Config, key: str, typed: Collection[str]) -> dict[str, Any]:
    """Return a node whose ``_target_`` was typed, without the options of the one that it replaces.

    Args:
        node: of a config group, with the options of one of its choices.
        key: of the group.
        typed: the options that were typed, with the group in front; these stay.

    Raises:
        ConfigError: the class is not exported.
    """
    target = str(node["_target_"])
    package, top = target.rpartition(".")[0], target.partition(".")[0]
    try:
        constructor = _exported(target, f"{key}._target_")
    except ConfigError as error:
        if package in _plugins:
            problem, remedy = f"is not in the __all__ of {package}", "add it there"
        elif package and (Path(f"{top}.py").is_file() or Path(top).is_dir()):
            problem, remedy = error.problem, f"add plugins=[{package}]"
        else:
            raise
        raise error.replaced(problem, remedy) from error
    parameters = inspect.signature(options_of(constructor)).parameters
    # A null may stand for a default of the class that is replaced.
    null = {k for k, p in parameters.items() if p.default is not None and node.get(k) is None}
    known = {"_target_", *parameters} - null
    if key == "data":
        known.add("val_fraction")  # of every data node, see splits
    return {k: v for k, v in node.items() if k in known or f"{key}.{k}" in typed}


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
    target = _exported(node["_target_"], "model._target_")
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
    names = getattr(_exported(node["_target_"], "model._target_"), "adaptive", ())
    everything = bool(names) and node.get(names[0]) is None
    taken = [name for name in names if name in there and (everything or node.get(name) is None)]
    return {**node, **{name: there[name] for name in taken}}


def completed_if_known(config: Config) -> dict[str, Any]:
    """A run's config with every option, or as it is where a class comes from a plugin."""
    try:
        return completed(config)
    except ConfigError:
        return dict(config)


def check(
    options: Config,
    target: Callable[..., Any],
    key: str = "",
    *,
    hint: Callable[[str, object], str] | None = None,
) -> dict[str, Any]:
    """Options compared with the keyword-only parameters of ``target``, in their types.

    Args:
        options: by name.
        target: a function or a class.
        key: of the group in the config; empty for the root.
        hint: gives the end of the message about an unknown option from its key and value;
            default :func:`ddpm.synonyms.hint`.

    Raises:
        ConfigError: the first that is unknown, missing or of the wrong type.
    """
    prefix = f"{key}." if key else ""
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for name, value in options.items():
        if name not in parameters:
            known = [f"{prefix}{parameter}" for parameter in parameters]
            full = f"{prefix}{name}"
            end = synonyms.hint(full, render(value), known) if hint is None else hint(full, value)
            raise ConfigError(full, value, f"there is no such option{end}")
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and options.get(name, "???") == "???":
            raise ConfigError(f"{prefix}{name}", None, f"is missing; add {prefix}{name}=...")
    init = inspect.isclass(target) and not is_dataclass(target)  # those may inherit fields
    hints = get_type_hints(target.__init__ if init else target)
    return {name: typed(value, hints[name], f"{prefix}{name}") for name, value in options.items()}


def typed(value: Any, annotation: Any, key: str) -> Any:
    """``value`` as the annotation's type: 1e5 is a whole number, a list a tuple.

    A dataclass with keyword-only fields is made of a group of options, see :func:`check`.

    Raises:
        ConfigError: it is of another type, or not one of the choices.
    """
    if isinstance(annotation, type) and is_dataclass(annotation):
        if isinstance(value, Mapping):
            return annotation(**check(value, annotation, key))
        require(isinstance(value, annotation), key, render(value), "must be a group of options")
        return value
    kinds = _kinds(annotation)
    literals = [
        choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)
    ]
    confused = isinstance(value, bool) and bool not in kinds and Any not in kinds
    # YAML reads a bare no, yes, on or off as a boolean: as a choice it is the word.
    if confused and literals:
        value, confused = next((c for c in literals if c in _WORDS[value]), value), False
    try:
        if confused:
            raise ValueError
        config = ConfigDict(coerce_numbers_to_str=True, arbitrary_types_allowed=True)
        return TypeAdapter(annotation, config=config).validate_python(value)
    except (ValidationError, ValueError) as error:
        words = all(get_origin(kind) is Literal or kind is type(None) for kind in kinds)
        use = synonyms.value(key, render(value), [*map(str, literals)])
        if use is not None:
            problem = f"there is no such choice; {use}"
        elif literals and words and isinstance(value, str):
            problem = f"there is no such choice{did_you_mean(value, map(str, literals))}"
            if "did you mean" in problem:
                problem += f" (there are: {', '.join(map(str, literals))})"
        else:
            problem = f"must be {' or '.join(_describe(kind) for kind in kinds)}"
        raise ConfigError(key, render(value), problem) from error


_WORDS = {False: ("no", "off", "none", "false"), True: ("yes", "on", "true")}
_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}


def _kinds(annotation: Any) -> list[Any]:
    """The members of a union, or the annotation itself."""
    union = get_origin(annotation) in (Union, types.UnionType)
    return list(get_args(annotation)) if union else [annotation]


def _describe(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is Literal:
        choices = ", ".join(map(str, get_args(kind)))
        return f"one of {choices}" if len(get_args(kind)) > 1 else choices
    if get_origin(kind) in (tuple, list):
        members = [member for member in get_args(kind) if member is not Ellipsis]
        many = (
            f"{len(members)} entries"
            if get_origin(kind) is tuple and ... not in get_args(kind)
            else "a list"
        )
        example = "[a,b]" if members[0] is str else "[1,2]"
        return f"{many}, each {_describe(members[0])}, like {example}"
    if get_origin(kind) in (dict, Mapping) or kind is dict:
        return "a group of options"
    return _NAMES.get(kind, getattr(kind, "__name__", str(kind)))


def _exported(target: str, key: str) -> Callable[..., Any]:
    """What a package lists in its ``__all__`` under the name ``target``."""
    package, _, name = target.rpartition(".")
    judges = key.startswith("extractor") and package == EXTRACTORS
    if package in (*PACKAGES, *_plugins) or judges:
        module = importlib.import_module(package)
        if name in module.__all__:
            found = getattr(module, name)
            if callable(found) and not inspect.isabstract(found):
                return found
    remedy = "classes of your own come through plugins=[their.module]"
    raise ConfigError(key, target, "is not among what ddpm exports", remedy)


@dataclass(frozen=True)
class Facts:
    """What the data decide and a checkpoint keeps: all that sampling needs to know of them.

    Attributes:
        shape: (C, *spatial) of a sample.
        num_classes: of class-conditional training, else None.
        class_names: the classes' names, where they have any.
        codec: from raw data to model space and back.
        class_counts: number of training items per class; None if it is unknown.
    """

    shape: tuple[int, ...]
    num_classes: int | None
    class_names: list[str] | None
    codec: Codec
    class_counts: list[int] | None = None

    @classmethod
    def of(cls, data: Dataset) -> Facts:
        """The facts of a data set."""
        classes = data.num_classes
        counts = None if classes is None else data.class_counts()
        return cls(tuple(data.shape), classes, data.class_names, data.codec, counts)

    @classmethod
    def restored(cls, header: Config) -> Facts:
        """The facts that a checkpoint kept."""
        try:
            shape = typed(header["shape"], tuple[int, ...], "config.json: shape")
            classes = typed(header["num_classes"], int | None, "config.json: num_classes")
            names = typed(header["class_names"], list[str] | None, "config.json: class_names")
            codec = header["codec"]
            # Checkpoints of ddpm 0.1 up to commit 1a06e83 do not have it.
            counts = header.get("class_counts")
            counts = typed(counts, list[int] | None, "config.json: class_counts")
        except (KeyError, TypeError) as error:
            raise ConfigError(
                "ckpt", None, f"its config.json has no {error}; take another"
            ) from error
        require(len(shape) > 0, "ckpt", None, "its config.json has no shape; take another")
        good = counts is None or (len(counts) == classes and min(counts) >= 0 < sum(counts))
        require(good, "ckpt", None, "its config.json has no valid class_counts; take another")
        return cls(shape, classes, names, codec_from_state(codec), counts)

    @property
    def names(self) -> list[str] | None:
        """Names of the classes, their numbers where they have none; None without classes."""
        if self.num_classes is None:
            return None
        return self.class_names or [str(number) for number in range(self.num_classes)]

    def values(self, labels: torch.Tensor | None) -> torch.Tensor | None:
        """Class numbers as the labels in a file: the names where all are whole numbers."""
        values = label_values(self.names)
        return labels if labels is None or values is None else torch.tensor(values)[labels]

    def state(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "shape": list(self.shape),
            "num_classes": self.num_classes,
            "class_names": self.class_names,
            "codec": self.codec.state(),
            "class_counts": self.class_counts,
        }


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


def diffusion(config: Config, facts: Facts) -> GaussianDiffusion:
    """The process that a config describes.

    Raises:
        ConfigError: also label dropout without labels.
    """
    schedule = build(config["schedule"], "schedule")
    objective = build(config["objective"], "objective")
    mask = facts.codec.condition_mask
    made: GaussianDiffusion = build(config["diffusion"], "diffusion", schedule, objective, mask)
    if made.label_dropout > 0 and facts.num_classes is None:
        problem = "there are no labels to drop; add data.class_cond=true, or leave it at 0"
        raise ConfigError("diffusion.label_dropout", made.label_dropout, problem)
    return made


def network(config: Config, facts: Facts, process: GaussianDiffusion) -> nn.Module:
    """The network, its channels, size and classes taken from the data and the process.

    A process with label dropout adds one class that stands for "no class". The initial weights
    are a function of the config's seed, the same on every process.
    """
    channels, *size = facts.shape
    classes = facts.num_classes
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


def sampler(node: Config) -> Sampler:
    """Return the sampler of a node."""
    return build(node, "sampler")


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
) -> tuple[nn.Module, GaussianDiffusion, Facts]:
    """The network of a checkpoint with its weights, its process, and the facts of its data.

    Raises:
        ConfigError: the config names what is not exported, or the weights do not fit it.
    """
    facts = Facts.restored(found.header)
    try:
        process = diffusion(found.config, facts)
        model = network(found.config, facts, process)
        model.load_state_dict(found.weights(weights))
    except KeyError as error:
        problem = f"its config has no {error}; use another checkpoint"
        raise ConfigError("ckpt", str(found.folder), problem) from error
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        problem = f"its weights do not fit its config: {str(error).splitlines()[-1].strip()}"
        raise ConfigError("ckpt", str(found.folder), problem) from error
    return model, process, facts
