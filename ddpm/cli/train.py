"""``ddpm-train``: train a model, or go on with a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ddpm.cli import app, invocation
from ddpm.console import recording, say, tell, warn_once
from ddpm.errors import Stopped, shortened
from ddpm.signals import StopSignal

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ddpm.cli.resuming import Plan
    from ddpm.distributed.cpu_threads import Choice, Threads
    from ddpm.evaluation.validation import Validation
    from ddpm.instantiate import Facts
    from ddpm.samplers import Sampler
    from ddpm.training import Trainer
    from ddpm.training.checkpoint import Checkpoint
    from ddpm.training.run import Run

Node = dict[str, Any]


def main() -> None:
    """The console script."""
    app.main("train", _command)


def _command() -> app.Command:
    """The function below, by its name in this module: launchers send it to other processes."""
    from ddpm.cli.train import train

    return train


def train(
    *,
    name: str | None,
    out: str,
    seed: int,
    resume: str | None,
    override: bool,
    device: Literal["auto", "cpu", "cuda"],
    threads: int | Literal["auto"],
    plugins: list[str],
    data: Node,
    model: Node,
    schedule: Node,
    objective: Node,
    diffusion: Node,
    timesteps: Node,
    sampler: Node,
    trainer: Node,
    evaluation: Node,
) -> float | None:
    """Train, or go on with a run; returns a number for sweeps, see :func:`_result`."""
    from ddpm import instantiate
    from ddpm.cli.resuming import plan
    from ddpm.distributed import devices

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
        "evaluation": evaluation,
    }
    with StopSignal() as stop, recording() as warnings:
        planning = partial(plan, asked, name=name, out=out, resume=resume, override=override)
        planned = planning()
        options = instantiate.trainer_options(planned.config)
        accelerator = devices.accelerator(
            device,
            options["precision"],
            key="trainer.precision",
            accumulate=options["accumulate"],
            deterministic=options["deterministic"],
        )
        return _train(planned, planning, accelerator, threads, Path(out), stop, warnings)


def _train(
    planned: Plan,
    planning: Callable[[], Plan],
    accelerator: Accelerator,
    threads: Threads,
    out: Path,
    stop: StopSignal,
    warnings: list[str],
) -> float | None:
    """Build everything, claim the run's folder, and train in it."""
    from ddpm.cli.timing import Timing
    from ddpm.distributed.consensus import wait_for_all
    from ddpm.training.due import missing, scheduled
    from ddpm.training.lock import Lock
    from ddpm.training.run import Run

    planned = planned.sized(accelerator.device.type)
    training, walk, facts, validation = _build(planned, accelerator, out)
    path = planned.path or _new_folder(accelerator, out)
    run = Run(path, training.trackers, warnings)
    lock = Lock(run.path)
    try:
        if accelerator.is_main_process:
            lock.acquire(planned.key, tell)
        wait_for_all(accelerator)
        if planned.path is not None and not planned.exists:
            # Another process may have begun it before we had the lock.
            planned = planning().sized(accelerator.device.type)
        planned = planned.adapted(training)
        found = planned.found(accelerator, facts, len(training.data))
        if found is not None:
            training.resume(found)
        began = time.monotonic()
        choice = _choose_threads(threads, training, found)
        measured = choice.seconds if found is None else None
        timing = Timing(training, walk, measured, began=began)
        planned = timing.planned(planned)
        owed = scheduled(training) & missing(run, training.step)
        if training.step >= training.max_steps and not owed:
            done = f"{run.path} is done: {training.step} steps; add trainer.max_steps=..."
            say(accelerator, done)
            return _result(run, training)
        inside = run.path.resolve().is_relative_to(out.resolve())
        latest = (out if inside else run.path.parent) / "latest"
        with _ending(run, training):
            _begin(run, planned, training, accelerator, latest)
            say(accelerator, _summary(training, facts, run, planned.chosen))
            expected = timing.line()
            if expected:
                say(accelerator, expected)
            _fit(run, planned, training, walk, facts, validation, stop, choice)
        wait_for_all(accelerator)  # all leave together
        say(accelerator, f"done: {run.path} (loss.png, samples/, checkpoints/)")
        say(accelerator, f"sample it with: ddpm-sample ckpt={run.path}")
        accelerator.end_training()
        return _result(run, training)
    finally:
        lock.release()


def _build(
    planned: Plan, accelerator: Accelerator, out: Path
) -> tuple[Trainer, Sampler, Facts, Validation | None]:
    """The trainer, the previews' sampler, what the data decide, and what evaluates."""
    from contextlib import nullcontext

    from ddpm import instantiate
    from ddpm.distributed.consensus import main_first
    from ddpm.evaluation.validation import Validation
    from ddpm.generation import check_steps

    config = planned.config
    fetching = config["data"].get("download", False)  # one fetches, the others find it there
    with main_first(accelerator) if fetching else nullcontext():
        own = planned.numbered(instantiate.splits(config))
    warn_once(accelerator, own.train.warnings)
    facts = instantiate.Facts.of(own.train)
    process = instantiate.diffusion(config, facts)
    walk = instantiate.sampler(config["sampler"])
    network = instantiate.network(config, facts, process)
    training = instantiate.trainer(config, network, process, own.train, accelerator)
    check_steps(walk, process, "sampler.steps")
    validation = None
    config = planned.adapted(training).config
    if training.evaluate_every:
        cache = out / "references"
        validation = Validation(config, facts, own, accelerator, best=training.best, cache=cache)
        validation.check(training)
    return training, walk, facts, validation


def _new_folder(accelerator: Accelerator, out: Path) -> Path:
    """A folder for a new run: chosen by the main process and told to the others."""
    from accelerate.utils import broadcast_object_list

    from ddpm.outputs import new_folder

    chosen = None
    if accelerator.is_main_process:
        groups, stamp = invocation.choices(), time.strftime("%Y%m%d-%H%M%S")
        chosen = new_folder(out, f"{stamp}-{groups['model']}-{groups['data']}")
    (told,) = broadcast_object_list([chosen])
    assert isinstance(told, Path)
    return told


def _begin(
    run: Run, planned: Plan, training: Trainer, accelerator: Accelerator, latest: Path
) -> None:
    """Write down what begins, and forget what was logged after the checkpoint."""
    import socket

    import torch

    from ddpm import __version__, instantiate
    from ddpm.config import paths
    from ddpm.distributed.consensus import wait_for_all
    from ddpm.training.retention import sweep_up

    for key, (old, new) in planned.changed.items():
        say(accelerator, f"{key}: {old} until step {training.step}, from now on {new}")
    if accelerator.is_main_process:
        run.create(instantiate.to_yaml(paths.stored(planned.config)), latest)
        run.rewind(training.step)
        sweep_up(run.path)
        run.event(
            "resumed" if training.step else "started",
            training.step,
            host=socket.gethostname(),
            processes=accelerator.num_processes,
            device=accelerator.device.type,
            ddpm=__version__,
            torch=torch.__version__,
            **({"changed": planned.changed} if planned.changed else {}),
        )
        run.start_trackers(planned.config, training.step)
    wait_for_all(accelerator)


def _choose_threads(threads: Threads, training: Trainer, found: Checkpoint | None) -> Choice:
    """Set the threads of the training; say if they make other bits than before."""
    from ddpm.cli import resuming
    from ddpm.distributed import cpu_threads
    from ddpm.training.trial import in_eager_mode, seconds_per_step

    def measure(seconds: float) -> float:
        with in_eager_mode(training):  # each number of threads would be compiled for
            return seconds_per_step(training, seconds=seconds)

    def trial() -> cpu_threads.Trial:
        return cpu_threads.Trial(measure, training.max_steps - training.step, "step")

    header = None if found is None else found.header
    choice = cpu_threads.use(threads, training.accelerator, trial=trial, header=header)
    if found is not None and training.accelerator.is_main_process:
        resuming.warn_of_threads(found, choice.threads)
    return choice._replace(seconds=None) if training.compiled else choice


def _fit(
    run: Run,
    planned: Plan,
    training: Trainer,
    walk: Sampler,
    facts: Facts,
    validation: Validation | None,
    stop: StopSignal,
    choice: Choice,
) -> None:
    """Train, with previews and evaluations; every checkpoint knows what made it."""
    from ddpm import __version__
    from ddpm.cli.previews import Previews
    from ddpm.config import paths
    from ddpm.training.loop import TrainingLoop

    accelerator, config = training.accelerator, planned.config
    previews = Previews(walk, training.diffusion, facts, accelerator, seed=config["seed"], run=run)
    header = {
        "ddpm": __version__,
        "config": paths.stored(config),
        **facts.state(),
        "num_samples": len(training.data),
        "processes": accelerator.num_processes,
        "threads": choice.threads,
        **({} if choice.seconds is None else {"seconds_per_step": choice.seconds}),
    }
    if validation is not None:
        validation.ready()
    TrainingLoop(training, run, header, previews, validation, stop=stop).train()


def _result(run: Run, training: Trainer) -> float | None:
    """The best value of what ``trainer.best`` follows, if that is evaluated, else the last loss."""
    from ddpm.training.checkpoint import listed
    from ddpm.training.meter import LOGGED
    from ddpm.training.retention import best_of

    if training.best in (None, *LOGGED):
        return run.last_loss()
    assert training.best is not None
    best = best_of(listed(run.path), training.best)
    return None if best is None else best.value


@contextmanager
def _ending(run: Run, training: Trainer) -> Iterator[None]:
    """Write down how what is done inside has ended, if it has begun."""
    ended, why = "failed", {}
    try:
        yield
        ended = "done"
    except Stopped as stopped:
        ended, why = "stopped", {"error": str(stopped)}
        training.accelerator.end_training()
        raise Stopped(f"{stopped}; ddpm-train resume={run.path} goes on") from None
    except Exception as error:
        why = {"error": str(error)}
        raise
    finally:
        if training.accelerator.is_main_process and run.began:
            run.event(ended, training.step, **why)
            run.trackers.finish()


def _summary(training: Trainer, facts: Facts, run: Run, chosen: dict[str, Any]) -> str:
    """What is about to be trained, in a few words."""
    weights = sum(parameter.numel() for parameter in training.network.parameters())
    classes, names = "", ""
    if facts.num_classes is not None:
        classes = f", {facts.num_classes} classes"
        names = f"classes: {shortened(facts.class_names or range(facts.num_classes))}\n"
    start = f" from step {training.step}" if training.step else ""
    few = len(training.data) < training.batch_size
    note = " (fewer than a batch: each batch holds some of them more than once)" if few else ""
    fit = getattr(training.network, "fit", None)
    adapted = f"model.{fit.note}\n" if fit is not None and fit.note else ""
    device, world = training.accelerator.device.type, training.accelerator.num_processes
    values = ", ".join(f"{key}={value}" for key, value in chosen.items())
    defaults = f"by default on {device}: {values}\n" if values else ""
    where = f"{world} processes, each on {device}" if world > 1 else str(device)
    return (
        f"training{start} to step {training.max_steps} on {where}: "
        f"{weights:,} parameters, {facts.codec.describe_count(len(training.data))}{classes}{note}\n"
        f"{names}{adapted}{defaults}results go to {run.path}"
    )


if __name__ == "__main__":
    main()
