"""Training in a run folder: objects from the config, lock, resume, training loop, events."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from accelerate import Accelerator

from ddpm import instantiate
from ddpm.config import paths
from ddpm.config.text import to_yaml
from ddpm.console import info_once, note, recording, warn_once
from ddpm.data.spec import DataSpec
from ddpm.data.split import Split
from ddpm.distributed import cpu_threads, devices
from ddpm.distributed.consensus import main_first, wait_for_all
from ddpm.distributed.output import agreed
from ddpm.errors import Stopped, render
from ddpm.outputs import new_folder
from ddpm.pipeline import check_steps
from ddpm.runs import initialization
from ddpm.runs.plan import Plan, plan, warn_of_threads
from ddpm.runs.previews import Previews
from ddpm.runs.request import Request
from ddpm.runs.summary import summary
from ddpm.runs.timing import Timing
from ddpm.runs.validation import Validation
from ddpm.samplers import Sampler
from ddpm.signals import StopSignal
from ddpm.training import Trainer, accumulation, automatic, snapshots
from ddpm.training.checkpoint import Checkpoint, CheckpointMetadata, listed
from ddpm.training.due import missing, scheduled
from ddpm.training.lock import Lock
from ddpm.training.loop import TrainingLoop
from ddpm.training.meter import LOGGED
from ddpm.training.retention import best_of, remove_partial
from ddpm.training.run import Run
from ddpm.training.trackers import Trackers
from ddpm.training.trial import in_eager_mode, seconds_per_step
from ddpm.version import __version__


class Outcome(NamedTuple):
    """Result of a training.

    Attributes:
        path: folder of the run.
        value: best value of what ``trainer.best`` follows, if that is evaluated, else the last
            logged loss; None without either.
    """

    path: Path
    value: float | None


class Objects(NamedTuple):
    """Objects that a training consists of."""

    trainer: Trainer
    sampler: Sampler  # of the previews
    spec: DataSpec
    validation: Validation | None
    data: Split
    initial: str | None  # description of the weights of init=


def train(
    request: Request,
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: cpu_threads.Threads = "auto",
) -> Outcome:
    """Start or resume a run, and train it to its last step; called on every process.

    Args:
        request: the options.
        device: ``auto`` uses a GPU if there is one.
        threads: CPU threads per process; see :mod:`ddpm.distributed.cpu_threads`.

    Raises:
        ConfigError: invalid options, data or files; nothing that exists is changed.
        Stopped: a signal stopped the training after a step, with a checkpoint.
    """
    with StopSignal() as stop, recording() as warnings:
        planned = plan(request)
        return _Training(request, device, threads, stop, warnings)(planned)


class _Training:
    """One training, on each of its processes."""

    def __init__(
        self,
        request: Request,
        device: devices.Device,
        threads: cpu_threads.Threads,
        stop: StopSignal,
        warnings: list[str],
    ) -> None:
        self.request = request
        self.device: devices.Device = device
        self.threads: cpu_threads.Threads = threads
        self.stop, self.warnings, self.out = stop, warnings, Path(request.out)
        self.initial: Checkpoint | None = None  # of init=

    def __call__(self, planned: Plan) -> Outcome:
        """Build all objects, lock the run folder, and train."""
        objects, planned = self._build(planned)
        accelerator = objects.trainer.accelerator
        label = initialization.label(self.request, self.initial)
        path = planned.path or _new_folder(accelerator, self.out, label)
        run = Run(path, Trackers(objects.trainer.options.trackers), self.warnings)
        lock = Lock(run.path)
        try:
            if accelerator.is_main_process:
                lock.acquire(planned.key, note)
            wait_for_all(accelerator)
            if planned.path is not None and not planned.exists:
                # Another process may have started the run before this one had the lock.
                again = plan(self.request)
                if again.exists:
                    objects, planned = self._build(again, objects.data)
            return self._train(planned.adapted(objects.trainer), objects, run)
        finally:
            lock.release()

    def _build(self, planned: Plan, data: Split | None = None) -> tuple[Objects, Plan]:
        """Return the objects of a plan, in its precision, and the plan for their device."""
        options = instantiate.trainer_options(planned.config)
        accelerator = devices.accelerator(
            self.device,
            options.precision,
            key="trainer.precision",
            accumulate=options.first_accumulate,
            deterministic=options.deterministic,
        )
        device, precision = accelerator.device, accelerator.mixed_precision
        devices.use_fast_kernels(device, precision, deterministic=options.deterministic)
        self.initial = initialization.find(planned, accelerator, self.initial)
        planned = initialization.started(planned, self.request, self.initial).sized(device.type)
        return build(planned, accelerator, self.out, data, self.initial), planned

    def _train(self, planned: Plan, objects: Objects, run: Run) -> Outcome:
        """Resume, choose what depends on the machine, and train; the folder is locked."""
        accelerator, trainer = objects.trainer.accelerator, objects.trainer
        source = planned.checkpoint(accelerator, objects.spec, len(trainer.data))
        if source is not None:
            trainer.resume(source)
        began = time.monotonic()
        if trainer.options.accumulate == "auto":  # before other trials, which use this memory
            info_once(accelerator, accumulation.choose(trainer))
        choice = _choose_threads(self.threads, trainer, source)
        planned = planned.adapted(trainer)
        if source is None:
            planned, objects, seconds = self._choose_arithmetic(planned, objects, choice.seconds)
            choice = choice._replace(seconds=seconds)
            accelerator, trainer = objects.trainer.accelerator, objects.trainer
        measured = choice.seconds if source is None else None
        timing = Timing(trainer, objects.sampler, measured, began=began)
        planned = timing.planned(planned)
        pending = scheduled(trainer.options, trainer.step, trainer.max_steps)
        pending &= missing(run, trainer.step)
        if trainer.step >= trainer.max_steps and not pending:
            done = f"{run.path} is done: {trainer.step} steps; add trainer.max_steps=..."
            info_once(accelerator, done)
            return _outcome(run, trainer)
        with _events(run, trainer):
            _begin(run, planned, trainer, self._latest(run))
            info_once(accelerator, summary(trainer, objects.spec, run, planned.chosen))
            if source is None and objects.initial is not None:
                info_once(accelerator, objects.initial)
            expected = timing.line()
            if expected:
                info_once(accelerator, expected)
            self._fit(run, planned, objects, choice)
        wait_for_all(accelerator)  # all leave together
        info_once(accelerator, f"done: {run.path} (loss.png, samples/, checkpoints/)")
        plugins = self.request.plugins
        options = f" plugins={render(plugins)}" if plugins else ""
        info_once(accelerator, f"sample it with: ddpm-sample ckpt={run.path}{options}")
        accelerator.end_training()
        return _outcome(run, trainer)

    def _choose_arithmetic(
        self, planned: Plan, objects: Objects, seconds: float | None
    ) -> tuple[Plan, Objects, float | None]:
        """Try half precision and compilation where the options leave them open.

        Args:
            planned: plan of a new run, which stores the choice.
            objects: in float32 and without compilation, where the options leave this open.
            seconds: duration of a step, if it is known.

        Returns:
            Plan, objects and duration of a step with the choice.
        """
        trainer = objects.trainer
        compiles = trainer.options.compile == "auto"
        minutes = trainer.options.max_minutes if planned.timed else None

        if minutes is None and trainer.max_steps < automatic.MIN_STEPS:
            return planned, objects, seconds

        def left(seconds: float) -> float:
            return trainer.max_steps * seconds if minutes is None else 60 * minutes

        if automatic.tries_bf16(trainer):
            tried = automatic.try_bf16(trainer, left, seconds)
            if tried is not None:
                info_once(trainer.accelerator, tried.line)
                seconds = tried.seconds
            if tried is not None and tried.use:
                options = {**planned.config["trainer"], "precision": "bf16"}
                planned = replace(planned, config={**planned.config, "trainer": options})
                objects, planned = self._build(planned, objects.data)
        if compiles:
            tried = automatic.try_compiling(objects.trainer, left, seconds)
            if tried is not None:
                info_once(objects.trainer.accelerator, tried.line)
                seconds = None if tried.use else tried.seconds
        return planned.adapted(objects.trainer), objects, seconds

    def _latest(self, run: Run) -> Path:
        """Return the path of the link to the last run: in the parent folder of all runs."""
        inside = run.path.resolve().is_relative_to(self.out.resolve())
        return (self.out if inside else run.path.parent) / "latest"

    def _fit(self, run: Run, planned: Plan, objects: Objects, choice: cpu_threads.Choice) -> None:
        """Run the training loop with previews and evaluations."""
        trainer, spec, config = objects.trainer, objects.spec, planned.config
        previews = Previews(
            objects.sampler,
            trainer.diffusion,
            spec,
            trainer.accelerator,
            seed=config["seed"],
            run=run,
        )
        metadata = CheckpointMetadata(
            ddpm=__version__,
            config=paths.stored(config),
            data=spec.state(),
            num_samples=len(trainer.data),
            processes=trainer.accelerator.num_processes,
            threads=choice.threads,
            seconds_per_step=choice.seconds,
        )
        if objects.validation is not None:
            objects.validation.prepare()
        loop = TrainingLoop(trainer, run, metadata, previews, objects.validation, stop=self.stop)
        loop.train()


def build(
    planned: Plan,
    accelerator: Accelerator,
    out: Path,
    data: Split | None = None,
    initial: Checkpoint | None = None,
) -> Objects:
    """Return the objects of a planned training.

    Args:
        planned: the plan.
        accelerator: processes, device and precision.
        out: parent folder of all runs.
        data: the data, if they have been read before.
        initial: checkpoint whose averaged weights the network starts from.

    Raises:
        ConfigError: data that cannot be read, or options that do not fit one another.
    """
    config = planned.config
    fetching = config["data"].get("download", False)  # one process downloads for all
    if data is None:
        with main_first(accelerator) if fetching else nullcontext():
            data = instantiate.splits(config)
        warn_once(accelerator, data.train.warnings)
    data = planned.relabelled(data)
    config = instantiate.measured(config, data.train)
    spec = DataSpec.from_dataset(data.train)
    process = instantiate.diffusion(config, spec)
    sampler = instantiate.sampler(config["sampler"])
    network, copied = initialization.network(config, spec, process, initial)
    trainer = instantiate.trainer(config, network, process, data.train, accelerator)
    check_steps(sampler, process)
    validation = None
    config = planned.adapted(trainer).config
    options, cache = trainer.options, out / "references"
    if options.evaluate_every:
        validation = Validation(config, spec, data, accelerator, best=options.best, cache=cache)
        validation.check(trainer)
    return Objects(trainer, sampler, spec, validation, data, copied)


def _new_folder(accelerator: Accelerator, out: Path, label: str) -> Path:
    """Create the folder of a new run on the main process; return it on every process."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{label}"
    return agreed(accelerator, lambda: new_folder(out, name))


def _begin(run: Run, planned: Plan, trainer: Trainer, latest: Path) -> None:
    """Write the config and the first event, and remove records after the checkpoint."""
    accelerator = trainer.accelerator
    for key, (old, new) in planned.changed.items():
        info_once(accelerator, f"{key}: {old} until step {trainer.step}, from now on {new}")
    if accelerator.is_main_process:
        run.create(to_yaml(paths.stored(planned.config)), latest)
        run.rewind(trainer.step)
        remove_partial(run.path)
        snapshots.rewind(run.path, trainer.step)
        run.event(
            "resumed" if trainer.step else "started",
            trainer.step,
            host=socket.gethostname(),
            processes=accelerator.num_processes,
            device=accelerator.device.type,
            ddpm=__version__,
            torch=torch.__version__,
            **({"changed": planned.changed} if planned.changed else {}),
        )
        run.start_trackers(planned.config, trainer.step)
    wait_for_all(accelerator)


def _choose_threads(
    threads: cpu_threads.Threads, trainer: Trainer, source: Checkpoint | None
) -> cpu_threads.Choice:
    """Set the threads and the parts of a batch; warn of other threads than in the checkpoint."""

    def measure(seconds: float, steps: int) -> float:
        trainer.choose_batch_parts()
        with in_eager_mode(trainer):  # else each number of threads would be compiled
            return seconds_per_step(trainer, seconds=seconds, passes=steps)

    def trial() -> cpu_threads.Trial:
        timed = source is None and trainer.options.max_minutes is not None
        steps = math.inf if timed else trainer.max_steps - trainer.step
        trainer.choose_batch_parts()
        independent = 1 < trainer.batch_parts == torch.get_num_threads()
        return cpu_threads.Trial(measure, steps, "step", independent)

    metadata = None if source is None else source.metadata
    choice = cpu_threads.use(threads, trainer.accelerator, trial=trial, stored=metadata)
    trainer.choose_batch_parts()
    if source is not None and trainer.accelerator.is_main_process:
        warn_of_threads(source, choice.threads)
    return choice._replace(seconds=None) if trainer.compile else choice


def _outcome(run: Run, trainer: Trainer) -> Outcome:
    """Return the path of a run, and the value that sweeps compare."""
    return Outcome(run.path, _value(run, trainer.options.best))


def _value(run: Run, best: str | None) -> float | None:
    if best is None or best in LOGGED:
        return run.last_loss()
    score = best_of(listed(run.path), best)
    return None if score is None else score.value


@contextmanager
def _events(run: Run, trainer: Trainer) -> Iterator[None]:
    """Context manager that writes the end of a run to events.jsonl, if the run has started."""
    ending, details = "failed", {}
    try:
        yield
        ending = "done"
    except Stopped as stopped:
        ending, details = "stopped", {"error": str(stopped)}
        trainer.accelerator.end_training()
        raise Stopped(f"{stopped}; to resume: ddpm-train resume={run.path}") from None
    except Exception as error:
        details = {"error": str(error)}
        raise
    finally:
        if trainer.accelerator.is_main_process and run.began:
            run.event(ending, trainer.step, **details)
            run.trackers.finish()
