"""``ddpm-train``: train a model, or go on with a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ddpm.cli import app
from ddpm.errors import ConfigError, did_you_mean, require

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ddpm.training.checkpoint import Checkpoint
    from ddpm.training.run import Run

Node = dict[str, Any]


def main() -> None:
    """The console script."""
    app.main("train", lambda: train)


def train(
    *,
    name: str | None,
    out: str,
    seed: int,
    resume: str | None,
    device: Literal["auto", "cpu", "cuda"],
    plugins: list[str],
    data: Node,
    model: Node,
    schedule: Node,
    objective: Node,
    diffusion: Node,
    timesteps: Node,
    sampler: Node,
    trainer: Node,
) -> float | None:
    """Train, or go on with a run; returns the last logged loss, for sweeps."""
    from ddpm import __version__, instantiate
    from ddpm.cli.previews import Previews
    from ddpm.generation import check_steps
    from ddpm.training import launch
    from ddpm.training.run import check_same

    asked = {
        "seed": seed,
        "data": data,
        "model": model,
        "schedule": schedule,
        "objective": objective,
        "diffusion": diffusion,
        "timesteps": timesteps,
        "sampler": sampler,
        "trainer": trainer,
    }
    config, run, found = _what_to_train(asked, name, out, resume)
    options = instantiate.trainer_options(config)
    accelerator = launch.accelerator(
        device, options["precision"], key="trainer.precision", accumulate=options["accumulate"]
    )
    with accelerator.main_process_first():
        samples = instantiate.dataset(config)
    facts = instantiate.Facts.of(samples)
    process = instantiate.diffusion(config, facts)
    walk = instantiate.sampler(config["sampler"])
    network = instantiate.network(config, facts, process)
    training = instantiate.trainer(config, network, process, samples, accelerator)
    check_steps(walk, process, "sampler.steps")
    key = "name" if resume is None else "resume"
    if found is not None:
        mine = facts.state()
        known = {name: found.header.get(name) for name in mine}
        if "came" in found.header:  # imported: the network knows how many classes, not their names
            known["class_names"] = mine["class_names"]
        check_same({"data": known}, {"data": mine}, key, found.run)
    if run is None:
        run = _new_run(accelerator, name, out)
    previews = Previews(walk, process, facts, accelerator, seed=config["seed"], run=run)
    if found is not None:
        training.resume(found)
    if training.step >= training.max_steps:
        app.say(
            accelerator, f"{run.path} is done: {training.step} steps; add trainer.max_steps=..."
        )
        return None
    if accelerator.is_main_process:
        run.create(instantiate.to_yaml(config))
        run.rewind(training.step)
    accelerator.wait_for_everyone()
    app.say(accelerator, _summary(training, network, facts, run))
    header = {"ddpm": __version__, "config": config, **facts.state()}
    loss = _fit(training, run, header, previews)
    app.say(accelerator, f"done: {run.path} (loss.png, samples/, checkpoints/)")
    app.say(accelerator, f"sample it with: ddpm-sample ckpt={run.path}")
    accelerator.end_training()
    return loss


def _fit(training: Any, run: Run, header: Node, previews: Any) -> float:
    """Train; told to stop, say where the run would go on."""
    from ddpm.training.checkpoint import listed

    try:
        return training.fit(run, header, previews)
    except KeyboardInterrupt:
        kept = listed(run.path)
        place = f"from {kept[0].name}" if kept else "from the start, there is no checkpoint yet"
        remedy = f"ddpm-train resume={run.path} goes on {place}"
        raise KeyboardInterrupt(f"stopped at step {training.step}; {remedy}") from None


def _what_to_train(
    asked: Node, name: str | None, out: str, resume: str | None
) -> tuple[Node, Run | None, Checkpoint | None]:
    """The config to train with, and the run and checkpoint to go on from where there are any."""
    from ddpm import instantiate
    from ddpm.training import checkpoint
    from ddpm.training.run import Run, check_same

    if name is not None:
        problem = "is the name of one folder, without / in it; its parent is out="
        require(name not in ("", "..") and Path(name).name == name, "name", name, problem)
        problem = f"is the link to the last run; to go on with that, take resume={out}/latest"
        require(name != "latest", "name", name, problem)
    if resume is None:
        path = _named(name, out)
        if path is None or not (path / "config.yaml").exists():
            return asked, None, None
    else:
        path = checkpoint.readable(Path(resume).resolve())
        if not (path / "config.yaml").exists():
            problem = "there is no run; give the folder of one, such as outputs/latest"
            raise ConfigError("resume", resume, problem)
    run = Run(path)
    found = checkpoint.newest(path, app.warn)
    stored = (
        instantiate.from_yaml(run.config_file.read_text(encoding="utf-8"))
        if found is None
        else found.config
    )
    stored = instantiate.completed(stored)  # of a version that had fewer options
    if resume is not None:
        asked = _with_overrides(stored, asked)
    known = {key: node for key, node in asked.items() if key in stored}
    check_same(stored, known, "name" if resume is None else "resume", path)
    old = stored.get("trainer", asked["trainer"])
    longer = old.get("max_steps") != asked["trainer"].get("max_steps")
    if longer and asked["trainer"].get("lr_decay") == "cosine":
        app.warn("lr_decay=cosine ends at max_steps: with another one this is not the same run")
    return asked, run, found


def _with_overrides(stored: Node, asked: Node) -> Node:
    """The stored config with the options that were typed beside ``resume``."""
    merged = {
        key: dict(value) if isinstance(value, dict) else value for key, value in stored.items()
    }
    for override in app.overrides():
        key = override.lstrip("+~").partition("=")[0]
        group, _, option = key.partition(".")
        if group not in asked:  # name, out, resume and the like are not of the run
            continue
        if not isinstance(merged.get(group), dict):
            merged[group] = asked[group]
        elif option:
            known = [f"{group}.{name}" for name in merged[group]]
            problem = f"there is no such option{did_you_mean(key, known)}"
            require(key in known, key, asked[group][option], problem)
            merged[group][option] = asked[group][option]
        elif asked[group]["_target_"] != merged[group]["_target_"]:
            merged[group] = asked[group]
    problem = "is missing: the run was imported without data to train on; add data=..."
    require("data" in merged, "data", None, problem)
    return {**asked, **merged}  # an imported run has no sampler and no trainer either


def _named(name: str | None, out: str) -> Path | None:
    """The folder of a run that was given a name; in a sweep, with the job's number behind it."""
    number = app.job_number()
    return None if name is None else Path(out, name if number is None else f"{name}-{number}")


def _new_run(accelerator: Accelerator, name: str | None, out: str) -> Run:
    """A folder for a new run: chosen by the main process and told to the others."""
    from accelerate.utils import broadcast_object_list

    from ddpm.training.run import Run, new_folder

    chosen = _named(name, out)
    if chosen is None and accelerator.is_main_process:
        groups, stamp = app.choices(), time.strftime("%Y%m%d-%H%M%S")
        chosen = new_folder(Path(out), f"{stamp}-{groups['model']}-{groups['data']}")
    (told,) = broadcast_object_list([chosen])
    assert isinstance(told, Path)
    return Run(told)


def _summary(trainer: Any, model: Any, facts: Any, run: Run) -> str:
    """What is about to be trained, in a few words."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    size = "x".join(map(str, facts.shape))
    classes = f", {facts.num_classes} classes" if facts.num_classes is not None else ""
    start = f" from step {trainer.step}" if trainer.step else ""
    few = len(trainer.data) < trainer.batch_size
    note = " (fewer than a batch: each batch holds some of them more than once)" if few else ""
    return (
        f"training{start} to step {trainer.max_steps} on {trainer.accelerator.device}: "
        f"{weights:,} parameters, {len(trainer.data):,} samples of {size}{classes}{note}\n"
        f"results go to {run.path}"
    )


if __name__ == "__main__":
    main()
