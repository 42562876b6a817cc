"""Plan of a training: a new run or one to resume, its config, and its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ddpm import checkpoint_paths, instantiate
from ddpm.config import paths
from ddpm.config.registry import config_with_defaults
from ddpm.console import warn
from ddpm.data.classes import relabel
from ddpm.data.spec import DataSpec
from ddpm.data.split import Split
from ddpm.distributed.consensus import broadcast
from ddpm.errors import ConfigError, require
from ddpm.runs import stored_config
from ddpm.runs.request import Request
from ddpm.training import Trainer, checkpoint
from ddpm.training.checkpoint import Checkpoint
from ddpm.training.compatibility import check_compatible
from ddpm.training.run import Run
from ddpm.version import __version__

Node = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Config and run folder of a training.

    Attributes:
        config: of the training, complete.
        key: option that selected the run, for error messages.
        path: the run folder; None for a new one that is named by the time.
        exists: True if the folder contains a run.
        changed: overridden options: key to the values until now and from now on.
        timed: True if ``trainer.max_minutes`` still has to become a number of steps.
        chosen: options that were null or auto, with the values for this network and device.
    """

    config: Node
    key: str
    path: Path | None = None
    exists: bool = False
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    timed: bool = False
    chosen: dict[str, Any] = field(default_factory=dict)

    def sized(self, device: str) -> Plan:
        """Return the plan with the width of the network, whose default depends on the device.

        Args:
            device: ``cpu`` or ``cuda``.
        """
        before = self.config["model"]
        model = instantiate.sized(before, device)
        chosen = {f"model.{key}": value for key, value in model.items() if value != before.get(key)}
        chosen = {**self.chosen, **chosen}
        return replace(self, config={**self.config, "model": model}, chosen=chosen)

    def adapted(self, training: Trainer) -> Plan:
        """Return the plan with the options that were chosen for data, network and device."""
        model = instantiate.adapted(self.config["model"], training.network)
        objective, before = self._measured(training), self.config["trainer"]
        trainer = {**before, **{name: getattr(training, name) for name in stored_config.DERIVED}}
        # Of the options, since the config has numbers after the first adaptation. Choices that are
        # automatic only if they are typed have lines of their own.
        options, is_automatic = training.options, stored_config.is_automatic
        automatic = [
            key for key in stored_config.DERIVED
            if is_automatic(getattr(options, key)) and is_automatic(getattr(type(options), key))
        ]  # fmt: skip
        plain = {
            "accumulate": 1, "batch_parts": 1, "precision": "no", "compile": False,
            "channels_last": False,
        }  # fmt: skip
        null = {f"trainer.{k}": trainer[k] for k in automatic if trainer[k] != plain.get(k)}
        config = {**self.config, "model": model, "trainer": trainer}
        config["objective"] = {**config["objective"], **objective}
        chosen = {f"objective.{key}": value for key, value in objective.items()}
        return replace(self, config=config, chosen={**self.chosen, **null, **chosen})

    def _measured(self, training: Trainer) -> dict[str, Any]:
        """Return the options of the objective that were null and are now numbers."""
        node, objective = self.config["objective"], training.diffusion.objective
        return {k: getattr(objective, k) for k in objective.measured if node.get(k) is None}

    def relabelled(self, data: Split) -> Split:
        """Return the data with the class numbers of the run's checkpoints.

        See :func:`ddpm.data.relabel`: in earlier versions labels counted from 0.
        """
        for folder in checkpoint.listed(self.path) if self.exists and self.path else []:
            try:
                spec = DataSpec.from_metadata(checkpoint.read_metadata(folder).data)
            except (ConfigError, ValueError, TypeError):
                continue  # damaged: checkpoint() reports it
            held_out, count, names = data.held_out, spec.num_classes, spec.class_names
            if held_out is not None:
                held_out = relabel(held_out, count, names)
            return Split(relabel(data.train, count, names), held_out)
        return data

    def checkpoint(
        self, accelerator: Accelerator, spec: DataSpec, num_samples: int
    ) -> Checkpoint | None:
        """Return the checkpoint to resume from, the same on every process; None for a new run.

        The main process, which holds the lock of the folder, chooses; each one reads and checks it.

        Raises:
            ConfigError: all checkpoints are damaged, or the newest has other data.
        """
        if not self.exists:
            return None
        assert self.path is not None
        newest = checkpoint.newest(self.path, warn) if accelerator.is_main_process else None
        folder = broadcast(accelerator, None if newest is None else newest.folder)
        if folder is None:
            return None
        if newest is None:
            newest = checkpoint.load(folder)
        self._check_data(newest, spec.state(), num_samples)
        stored = paths.without(config_with_defaults(newest.config), set(paths.KEYS))
        here = {key: node for key, node in self.config.items() if key in stored}
        check_compatible(
            stored, here, self.key, newest.run, override=True
        )  # plan() has checked that
        if accelerator.is_main_process:
            _warn_of_different_bits(newest, accelerator.num_processes)
        return newest

    def _check_data(self, checkpoint: Checkpoint, data: Node, num_samples: int) -> None:
        """Check that the data of a checkpoint are those of the run."""
        metadata = checkpoint.metadata
        stored, here = dict(metadata.data), {name: data[name] for name in metadata.data}
        if metadata.num_samples is not None:
            stored["num_samples"], here["num_samples"] = metadata.num_samples, num_samples
        if metadata.came is not None:  # imported: the classes have numbers but no names
            stored["class_names"] = here["class_names"] = data["class_names"]
        check_compatible({"data": stored}, {"data": here}, self.key, checkpoint.run)


def plan(request: Request) -> Plan:
    """Return the plan of a requested training; nothing is written.

    Raises:
        ConfigError: an invalid name, a run that does not exist, or one with other options.
    """
    request = _without_init(_with_one_duration(request))
    path, key = request.folder(), request.key
    stored = None if path is None else stored_config.read(path)
    if path is None or stored is None:
        if request.resume is not None:
            run = checkpoint_paths.nearest_run(Path(request.resume))
            remedy = "leave it out to begin one" if run is None else f"use resume={run}"
            raise ConfigError("resume", request.resume, f"run not found; {remedy}")
        if path is not None:
            _check_foreign_files(path, key)
        timed = stored_config.has_duration(request.config)
        return Plan(request.config, key, path, timed=timed)
    stored = stored_config.completed(stored)
    config = stored_config.requested(request, stored, path)
    changed = _changed(config, stored, key, path, override=request.override)
    if "trainer.max_steps" in changed and config["trainer"].get("lr_decay") == "cosine":
        warn("lr_decay=cosine depends on max_steps: with another value the run is a different one")
    timed = stored_config.has_duration(config) and "trainer" not in stored  # of an imported network
    return Plan(config, key, path, True, changed, timed)


def _changed(
    config: Node, stored: Node, key: str, path: Path, *, override: bool
) -> dict[str, tuple[Any, Any]]:
    """Return the options that differ from those of the run: key to old and new value.

    Raises:
        ConfigError: an option that must not change.
    """
    stored = paths.without(stored, set(paths.KEYS))
    here = {key: node for key, node in config.items() if key in stored}
    # The data are not loaded yet: Plan.checkpoint compares what depends on their size.
    if "model" in here:
        here["model"] = instantiate.adapted_as(config["model"], stored["model"])
    changed = check_compatible(stored, here, key, path, override=override)
    return {name: pair for name, pair in changed.items() if not paths.is_same(name, *pair)}


def _with_one_duration(request: Request) -> Request:
    """Return the request; a typed number of steps replaces the duration of a recipe.

    Raises:
        ConfigError: both a duration and a number of steps are typed.
    """
    trainer, typed = request.config["trainer"], request.typed_keys
    if "trainer.max_steps" not in typed or trainer.get("max_minutes") is None:
        return request
    problem = f"conflicts with trainer.max_steps={trainer['max_steps']}; set only one of them"
    both = "trainer.max_minutes" in typed
    require(not both, "trainer.max_minutes", trainer["max_minutes"], problem)
    return replace(request, config={**request.config, "trainer": {**trainer, "max_minutes": None}})


def _without_init(request: Request) -> Request:
    """Return the request; without ``init`` if no checkpoint is named there."""
    init = request.config.get("init", {})
    if "init" not in request.config or init.get("ckpt") is not None:
        return request
    problem = "requires init=, a run or a checkpoint; add it"
    require(init.get("strict") is not True, "init.strict", True, problem)
    rest = {key: node for key, node in request.config.items() if key != "init"}
    return replace(request, config=rest)


def _check_foreign_files(path: Path, key: str) -> None:
    """Raise if the folder of a new run contains files with names that a run writes."""
    foreign = Run(path).foreign()
    if foreign:
        one = len(foreign) == 1
        were, them = (" was", "it") if one else (f" and {len(foreign) - 1} more were", "them")
        problem = f"{path / foreign[0]}{were} not written by ddpm-train"
        remedy = f"choose another folder, or move {them} away"
        value = path.name if key == "name" else str(path)
        raise ConfigError("name" if key == "name" else "out", value, f"{problem}; {remedy}")


def _warn_of_different_bits(checkpoint: Checkpoint, processes: int) -> None:
    """Warn if the resumed run will differ in bits from an uninterrupted one."""
    before = checkpoint.metadata.processes
    if before not in (None, processes):
        warn(
            f"{checkpoint.folder} was written by {before} processes, and {processes} resume: the "
            "data have the same order, but the noise differs"
        )
    version = checkpoint.metadata.ddpm
    if version not in (None, __version__):
        warn(f"{checkpoint.folder} was written by ddpm {version}, this is {__version__}")


def warn_of_threads(checkpoint: Checkpoint, threads: int) -> None:
    """Warn if the number of threads differs from that of the checkpoint."""
    stored = checkpoint.metadata.threads
    if stored not in (None, threads):
        warn(
            f"{checkpoint.folder} was written with threads={stored}, this is threads={threads}: "
            f"sums are rounded differently; threads={stored} reproduces the bits"
        )
