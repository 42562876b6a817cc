"""What ``ddpm-train`` is to do: begin a run, or go on with one, and from which checkpoint."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ddpm import __version__, instantiate, synonyms
from ddpm.cli import invocation
from ddpm.config import paths, values
from ddpm.config.migration import migrate
from ddpm.console import warn
from ddpm.data.classes import relabel
from ddpm.data.split import Split
from ddpm.errors import ConfigError, require
from ddpm.evaluation.options import Measure
from ddpm.training import Trainer, checkpoint
from ddpm.training.checkpoint import Checkpoint
from ddpm.training.compatibility import check_same
from ddpm.training.run import CONFIG, Run

Node = dict[str, Any]
CHOSEN = ("batch_size", "lr")  # of the trainer: null becomes a number when a run begins


@dataclass(frozen=True)
class Plan:
    """What is going to be trained, and where.

    Attributes:
        config: of the training, complete.
        key: the option that named the run, for error messages.
        path: the run's folder, new or not; None for a new one that gets its name from the time.
        exists: whether there is such a run.
        changed: what the user overrides: key to the value of the run and the value from now on.
        timed: whether ``trainer.max_minutes`` still has to be made a number of steps.
        chosen: options that were null, with the numbers for this network and device.
    """

    config: Node
    key: str
    path: Path | None = None
    exists: bool = False
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    timed: bool = False
    chosen: dict[str, Any] = field(default_factory=dict)

    def sized(self, device: str) -> Plan:
        """Return the plan with a number for the width of the network, which may depend on it."""
        before = self.config["model"]
        model = instantiate.sized(before, device)
        chosen = {f"model.{key}": value for key, value in model.items() if value != before.get(key)}
        return replace(self, config={**self.config, "model": model}, chosen=chosen)

    def adapted(self, training: Trainer) -> Plan:
        """Return the plan with the options that were chosen for data, network and device."""
        model = instantiate.adapted(self.config["model"], training.network)
        before = self.config["trainer"]
        trainer = {**before, **{name: getattr(training, name) for name in CHOSEN}}
        null = {f"trainer.{k}": trainer[k] for k in CHOSEN if before.get(k) is None}
        config = {**self.config, "model": model, "trainer": trainer}
        return replace(self, config=config, chosen={**self.chosen, **null})

    def numbered(self, own: Split) -> Split:
        """Return the data with the class numbers of the run's checkpoints.

        See :func:`ddpm.data.relabel`: in earlier versions labels counted from 0.
        """
        for folder in checkpoint.listed(self.path) if self.exists and self.path else []:
            try:
                facts = instantiate.Facts.restored(checkpoint.read_json(folder / checkpoint.CONFIG))
            except (ConfigError, OSError, ValueError, TypeError, RecursionError):
                continue  # a damaged one, of which found() tells
            held = own.held_out
            count, names = facts.num_classes, facts.class_names
            if held is not None:
                held = relabel(held, count, names)
            return Split(relabel(own.train, count, names), held)
        return own

    def found(
        self, accelerator: Accelerator, facts: instantiate.Facts, num_samples: int
    ) -> Checkpoint | None:
        """The checkpoint to go on from, the same on every process; None where there is none.

        The main process chooses, which holds the folder's lock; each one reads and checks it.

        Raises:
            ConfigError: all are damaged, or the newest is of other data.
        """
        if not self.exists:
            return None
        assert self.path is not None
        chosen = checkpoint.newest(self.path, warn) if accelerator.is_main_process else None
        (folder,) = broadcast_object_list([None if chosen is None else chosen.folder])
        if folder is None:
            return None
        assert isinstance(folder, Path)
        found = checkpoint.load(folder) if chosen is None else chosen
        mine = {**facts.state(), "num_samples": num_samples}
        known = {name: found.header[name] for name in mine if name in found.header}
        if "came" in found.header:  # imported: the network knows how many classes, not their names
            known["class_names"] = mine["class_names"]
        asked = {name: mine[name] for name in known}
        check_same({"data": known}, {"data": asked}, self.key, found.run)
        stored = paths.without(instantiate.completed(found.config), set(paths.KEYS))
        here = {key: node for key, node in self.config.items() if key in stored}
        check_same(stored, here, self.key, found.run, override=True)  # plan() has asked for that
        if accelerator.is_main_process:
            _warn_of_other_bits(found, accelerator.num_processes)
        return found


def plan(asked: Node, *, name: str | None, out: str, resume: str | None, override: bool) -> Plan:
    """What the options ask for.

    Args:
        asked: the config that they give.
        name: of the run's folder in ``out``.
        out: the parent folder of runs.
        resume: the folder of a run to go on with.
        override: whether the trainer's options may differ from those of the run.

    Raises:
        ConfigError: a name that is none, no such run, or a run under other options.
    """
    _refuse_two_ends(asked["trainer"])
    path = _named(name, out) if resume is None else checkpoint.readable(Path(resume).resolve())
    stored = None if path is None else _stored(path)
    key = "name" if resume is None and invocation.job_folder() is None else "resume"
    if path is None or stored is None:
        if resume is not None:
            run = checkpoint.nearest_run(Path(resume))
            remedy = "leave it out to begin one" if run is None else f"use resume={run}"
            raise ConfigError("resume", resume, f"there is no run; {remedy}")
        if path is not None:
            _refuse_files(path, key)
        return Plan(asked, key, path, timed=_has_time(asked))
    stored = _completed(stored)  # of a version that had fewer options
    there = paths.located(stored, path)
    if resume is not None:
        asked = _with_overrides(there, asked)
        _refuse_code(asked)
    else:
        asked = paths.repeated(_continued(_with_axes(asked, stored), stored), there)
    asked = _with_numbers(asked, stored)
    _refuse_other_time(asked, stored)
    stored = paths.without(stored, set(paths.KEYS))
    known = {key: node for key, node in asked.items() if key in stored}
    # The size of the data is not known yet: Plan.found compares what it decides.
    if "model" in known:
        known["model"] = instantiate.adapted_as(asked["model"], stored["model"])
    changed = check_same(stored, known, key, path, override=override)
    changed = {name: pair for name, pair in changed.items() if not paths.is_same(name, *pair)}
    if "trainer.max_steps" in changed and asked["trainer"].get("lr_decay") == "cosine":
        warn("lr_decay=cosine ends at max_steps: with another one this is not the same run")
    timed = _has_time(asked) and "trainer" not in stored  # of an imported network
    return Plan(asked, key, path, True, changed, timed)


def _completed(stored: Node) -> Node:
    """A stored config with every option, also those of evaluations, at their defaults."""
    stored = instantiate.completed(stored)
    if isinstance(stored.get("evaluation"), dict):
        defaults = {each.name: each.default for each in fields(Measure) if each.default != MISSING}
        stored["evaluation"] = {**defaults, **stored["evaluation"]}
    return stored


def _with_axes(asked: Node, stored: Node) -> Node:
    """Return the config with the axes of sequences of the run, where they were not typed again."""
    data, there = asked["data"], stored.get("data")
    axes = there.get("axes") if isinstance(there, dict) else None
    if axes is None or data.get("axes", axes) is not None:
        return asked
    return {**asked, "data": {**data, "axes": axes}}


def _continued(asked: Node, stored: Node) -> Node:
    """Return the config with the number of steps that the run planned for its time, if it did.

    The same holds for options of the trainer whose defaults were others when the run began. What
    is typed stays as it is.
    """
    there = stored.get("trainer", {})
    names = {name for name, old in Trainer.legacy_defaults.items() if there.get(name) == old}
    names |= {"lr_warmup"} | ({"max_steps", "max_minutes"} if _has_time(stored) else set())
    typed = _typed_keys()
    kept = {k: there[k] for k in names if k in there and f"trainer.{k}" not in typed}
    return {**asked, "trainer": {**asked["trainer"], **kept}}


def _with_numbers(asked: Node, stored: Node) -> Node:
    """Return the config with the run's numbers for options that are null until a run begins."""
    trainer, there = asked["trainer"], stored.get("trainer", {})
    numbers = {k: there[k] for k in CHOSEN if k in there and trainer.get(k) is None}
    model = instantiate.sized(asked["model"], stored=stored["model"])
    if stored["model"].get("_target_") == model.get("_target_"):
        model = {**stored["model"], **model}  # of a plugin: it may lack some
    return {**asked, "trainer": {**trainer, **numbers}, "model": model}


def _has_time(config: Node) -> bool:
    return config.get("trainer", {}).get("max_minutes") is not None


def _refuse_two_ends(trainer: Node) -> None:
    """Refuse both a time and a number of steps."""
    if {"trainer.max_steps", "trainer.max_minutes"} <= _typed_keys():
        both = trainer.get("max_minutes") is not None
        problem = f"cannot stand beside trainer.max_steps={trainer['max_steps']}; leave one out"
        require(not both, "trainer.max_minutes", trainer.get("max_minutes"), problem)


def _refuse_other_time(asked: Node, stored: Node) -> None:
    """Refuse another time for a run that has begun: its number of steps is stored.

    Raises:
        ConfigError: says what it is, and how to change it.
    """
    there, here = stored.get("trainer"), asked["trainer"].get("max_minutes")
    if there is not None and here not in (None, there.get("max_minutes")):
        problem = (
            f"the run has begun, and ends at step {there['max_steps']}; leave trainer.max_minutes "
            "out, or set trainer.max_steps to train it longer"
        )
        raise ConfigError("trainer.max_minutes", here, problem)


def _named(name: str | None, out: str) -> Path | None:
    """The folder of a run that has a name, or of a job of a sweep."""
    if name is not None:
        values.check_run_name(name, out)
    return invocation.job_folder() or (None if name is None else Path(out, name))


def _stored(path: Path) -> Node | None:
    """The config of the run in a folder, or None where there is no run."""
    file = path / CONFIG
    if file.exists():
        stored = migrate(instantiate.from_yaml(file.read_text(encoding="utf-8"), str(file)))
        model = stored.get("model")
        problem = "is not the config of a run; choose another folder, or move it away"
        require(isinstance(model, dict) and "_target_" in model, "out", str(file), problem)
        return stored
    if not checkpoint.listed(path):
        return None
    found = checkpoint.newest(path, lambda _: None)
    assert found is not None
    return found.config


def _refuse_files(path: Path, key: str) -> None:
    """Refuse the folder of a new run that holds files of the names that a run writes."""
    found = Run(path).foreign()
    if found:
        one = len(found) == 1
        were, them = (" was", "it") if one else (f" and {len(found) - 1} more were", "them")
        problem = f"{path / found[0]}{were} not written by ddpm-train"
        remedy = f"choose another folder, or move {them} away"
        value = path.name if key == "name" else str(path)
        raise ConfigError("name" if key == "name" else "out", value, f"{problem}; {remedy}")


def _with_overrides(stored: Node, asked: Node) -> Node:
    """The stored config with the options that were typed beside ``resume``."""
    merged = paths.without(deepcopy(stored), _typed_keys())
    if isinstance(merged.get("evaluation"), dict):  # of a version that had fewer options
        merged["evaluation"] = {**asked["evaluation"], **merged["evaluation"]}
    for typed in invocation.overrides():
        key = typed.lstrip("+~").partition("=")[0]
        key = key.partition("@")[2] or key  # sampler@evaluation.sampler=ddpm
        group, _, option = key.partition(".")
        if group not in asked:  # name, out, resume and the like are not of the run
            continue
        if not isinstance(merged.get(group), dict) or option == "_target_":
            merged[group] = asked[group]
        elif option:
            *parents, name = option.split(".")
            there, here = merged[group], asked[group]
            for parent in parents:
                there, here = there.get(parent, {}), here.get(parent, {})
            known = [".".join([group, *parents, each]) for each in there]
            value = values.as_typed(typed.partition("=")[2])
            problem = f"there is no such option{synonyms.hint(key, value, known)}"
            require(key in known, key, value, problem)
            there[name] = here[name]
        elif asked[group].get("_target_") != merged[group].get("_target_"):
            merged[group] = asked[group]
    problem = "is missing: the run was imported without data to train on; add data=..."
    require("data" in merged, "data", None, problem)
    return {**asked, **merged}  # an imported run has no sampler and no trainer either


def _typed_keys() -> set[str]:
    return {one.lstrip("+~").partition("=")[0] for one in invocation.overrides()}


def _refuse_code(asked: Node) -> None:
    """Refuse an extractor that runs a file, unless the user names it: a run may be others' work.

    Raises:
        ConfigError: the run has one, and is to evaluate.
    """
    node = asked["evaluation"]["extractor"]
    named = {"extractor@evaluation.extractor", "evaluation.extractor.path"} & _typed_keys()
    if asked["trainer"].get("evaluate_every") and str(node.get("_target_")).endswith(".Custom"):
        problem = (
            "is a file that would be run; if you trust it, add "
            "extractor@evaluation.extractor=custom evaluation.extractor.path=..."
        )
        require(bool(named), "evaluation.extractor.path", node.get("path"), problem)


def _warn_of_other_bits(found: Checkpoint, processes: int) -> None:
    """Say where the run goes on, but not with the same bits."""
    before = found.header.get("processes", processes)
    if before != processes:
        warn(
            f"{found.folder} was made by {before} processes, this is {processes}: the data come in "
            "the same order, the noise is other noise"
        )
    if found.header.get("ddpm", __version__) != __version__:
        warn(f"{found.folder} was made by ddpm {found.header['ddpm']}, this is {__version__}")


def warn_of_threads(found: Checkpoint, threads: int) -> None:
    """Say that the run continues with another number of threads than its checkpoint has."""
    stored = found.header.get("threads", threads)
    if stored != threads:
        warn(
            f"{found.folder} was made with threads={stored}, this is threads={threads}: sums are "
            f"rounded otherwise; threads={stored} keeps the bits"
        )
