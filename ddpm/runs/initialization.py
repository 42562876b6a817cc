"""Start of a run from the averaged weights of another one: ``init=``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from accelerate import Accelerator
from torch import nn

from ddpm import instantiate
from ddpm.config.schema import typed
from ddpm.console import warn
from ddpm.data.spec import DataSpec
from ddpm.diffusion import GaussianDiffusion
from ddpm.distributed.output import agreed
from ddpm.errors import ConfigError, require, shortened
from ddpm.runs import stored_config
from ddpm.runs.plan import Plan
from ddpm.runs.request import Request
from ddpm.training import checkpoint as checkpoints
from ddpm.training.checkpoint import Checkpoint
from ddpm.training.initialization import CopiedWeights, copy_weights, module_names

Node = dict[str, Any]
_MOST = 8  # names of modules in a message


@dataclass(frozen=True, kw_only=True)
class InitOptions:
    """Options of the initial weights, and their record in a stored config.

    Attributes:
        ckpt: a run or a checkpoint, as typed.
        strict: reject weights that do not fit.
        checkpoint: folder of the checkpoint that was read.
        sha256: hash of the file of its averaged weights.
    """

    ckpt: str
    strict: bool = False
    checkpoint: str | None = None
    sha256: str | None = None


def find(
    planned: Plan, accelerator: Accelerator, previous: Checkpoint | None = None
) -> Checkpoint | None:
    """Return the checkpoint with the initial weights, the same on all processes.

    Args:
        planned: the plan of a run.
        accelerator: the processes.
        previous: the result of an earlier call.

    Returns:
        The checkpoint; None for a run without initial weights, or one that has a checkpoint.

    Raises:
        ConfigError: it was not found or is damaged, or is not the one that the run started from.
    """
    if "init" not in planned.config:
        return None
    if planned.path is not None and checkpoints.listed(planned.path):
        return None
    if previous is not None:
        return previous
    options = _options(planned.config)
    path = options.checkpoint or options.ckpt
    try:
        folder = agreed(accelerator, lambda: checkpoints.find(path, warn).folder)
        source = checkpoints.load(folder, whole=False)
    except ConfigError as error:
        problem = error.problem.replace("use ckpt=", "use init=")
        raise error.replaced(problem, error.remedy).renamed("init", path) from error
    changed = options.sha256 not in (None, _sha256(source))
    require(not changed, "init", path, "has other weights than when the run started")
    return source


def started(planned: Plan, request: Request, source: Checkpoint | None) -> Plan:
    """Return the plan of a run that starts from a checkpoint, whose network and process it has.

    The config records the checkpoint and the hash of its averaged weights. Without a checkpoint the
    plan is unchanged.
    """
    if source is None:
        return planned
    config = planned.config
    if not planned.exists and "sha256" not in config["init"]:
        config = stored_config.adopted(config, source.config, request)
    folder = str(source.folder.resolve())
    record = {**config["init"], "checkpoint": folder, "sha256": _sha256(source)}
    return replace(planned, config={**config, "init": record})


def label(request: Request, source: Checkpoint | None) -> str:
    """Return the end of the name of a new run folder: source and data, or the request's label."""
    if source is None or {"model", "experiment"} & request.typed_keys:
        return request.label
    return f"{source.run.name}-{request.label.rpartition('-')[2]}"


def network(
    config: Node, spec: DataSpec, process: GaussianDiffusion, source: Checkpoint | None
) -> tuple[nn.Module, str | None]:
    """Return a network with the averaged weights of a checkpoint, and a description of these.

    Weights that do not fit are initialized. Such a network pads data whose size its levels cannot
    halve.

    Args:
        config: of the run.
        spec: data of the run.
        process: diffusion process of the run.
        source: the checkpoint; None initializes all weights.

    Raises:
        ConfigError: nothing fits, or with ``init.strict`` not everything.
    """
    model = config["model"]
    try:
        result = instantiate.network(config, spec, process)
    except ConfigError:
        if source is None or model.get("pad") is not False:
            raise
        padded = {**config, "model": {**model, "pad": True}}
        result = instantiate.network(padded, spec, process)
    if source is None:
        return result, None
    return result, _described(_load(result, source, spec, config), source)


def _load(network: nn.Module, source: Checkpoint, spec: DataSpec, config: Node) -> CopiedWeights:
    """Copy the averaged weights of a checkpoint into a network, and check that they fit."""
    rows = class_rows(DataSpec.from_metadata(source.metadata.data), spec)
    result = copy_weights(network, source.weights("ema"), rows)
    folder = str(source.folder)
    problem = f"no weights fit the network, {type(network).__name__}; leave out options of model"
    require(bool(result.copied), "init", folder, problem)
    if _options(config).strict and not result.fits:
        problem = f"not all weights fit: {'; '.join(_differences(result))}"
        raise ConfigError("init.strict", True, problem, "leave it out to initialize the others")
    return result


def class_rows(old: DataSpec, new: DataSpec) -> dict[int, int]:
    """Return the numbers of classes: those of new data to those of old data.

    Classes are equal if their names are, or, where names are unknown, their numbers. The label
    after the last class, by default the network's for "no class", is included.
    """
    if old.num_classes is None or new.num_classes is None:
        return {}
    if old.class_names is None or new.class_names is None:
        rows = {number: number for number in range(min(old.num_classes, new.num_classes))}
    else:
        there = {name: number for number, name in enumerate(old.class_names)}
        pairs = enumerate(new.class_names)
        rows = {number: there[name] for number, name in pairs if name in there}
    return {**rows, new.num_classes: old.num_classes}


def _described(result: CopiedWeights, source: Checkpoint) -> str:
    """Return a summary of the copied weights, in one to three lines."""
    numbers = f"{result.num_copied:,} of {result.num_values:,}"
    return "\n".join(
        [f"init: {numbers} weights are the averages of {source.folder}", *_differences(result)]
    )


def _differences(result: CopiedWeights) -> list[str]:
    """Return the weights that are new, and those that are not used; empty without any."""
    tables = [
        f"{here} of {all_rows} rows of {name}" for name, (here, all_rows) in result.rows.items()
    ]
    names = shortened(module_names(result.new), _MOST, 60)
    new = [f"new: {names}"] if result.new else []
    copied = [f"copied: {', '.join(tables)}"] if tables else []
    unused = f"not used: {shortened(module_names(result.unused), _MOST, 60)}"
    return [*copied, *new, *([unused] if result.unused else [])]


def _options(config: Node) -> InitOptions:
    options = typed(config["init"], InitOptions, "init")
    assert isinstance(options, InitOptions)
    return options


def _sha256(source: Checkpoint) -> str:
    """Return the hash of the averaged weights in the manifest of a checkpoint."""
    manifest = checkpoints.read_json(source.folder / checkpoints.MANIFEST)
    return str(manifest["files"][checkpoints.WEIGHTS["ema"]]["sha256"])
