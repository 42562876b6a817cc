"""The training loop: steps with logs, checkpoints, previews and evaluations between them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ddpm import checkpoint_paths
from ddpm.console import duration, note, progress, warn
from ddpm.distributed.consensus import Agreed, agree, broadcast
from ddpm.distributed.stopping import AgreedStopping, GivenUpError, Stopping
from ddpm.errors import ConfigError, Stopped
from ddpm.signals import StopSignal
from ddpm.training import checkpoint, gradient_check
from ddpm.training.checkpoint import CheckpointMetadata
from ddpm.training.due import (
    PREVIEW_EVERY,
    Shown,
    is_due,
    missing,
    scheduled,
)
from ddpm.training.meter import LOGGED, Meter
from ddpm.training.pace import PREVIEW_SHARE, SaveTimer
from ddpm.training.retention import prune
from ddpm.training.run import Run
from ddpm.training.saving import Saver
from ddpm.training.slowdown import Slowdown
from ddpm.training.snapshots import SnapshotWriter
from ddpm.training.step import GradientDecision, StepResult
from ddpm.training.trainer import Trainer
from ddpm.training.updates import Updates

_MAX_SCALER_SKIPS = 100  # in a row: far more than the loss scale can be halved


class StepEvaluation(NamedTuple):
    """Result of an evaluation during training.

    Attributes:
        numbers: values by name.
        write: writes them into a folder, with their provenance.
    """

    numbers: dict[str, float]
    write: Callable[[Path], None]


# Evaluates the averaged weights, on every process. It calls the stop check regularly, equally often
# on each process, and returns None on a stop.
Evaluate = Callable[[Trainer, Stopping], StepEvaluation | None]
# Draws samples with the averaged weights. It calls the stop check in the same way, and raises
# GivenUpError on a stop.
Preview = Callable[[Trainer, Stopping], None]


class TrainingLoop:
    """Trains up to ``max_steps``: logs, writes checkpoints, draws previews, evaluates.

    Args:
        trainer: computes and applies the gradients.
        run: run folder for the results; only the main process writes.
        metadata: metadata of the checkpoints; step and metrics are filled in.
        preview: see :data:`Preview`; called on every process.
        evaluate: see :data:`Evaluate`; called on every process.
        stop: checked after each step; a checkpoint is written before training stops.
    """

    def __init__(
        self,
        trainer: Trainer,
        run: Run,
        metadata: CheckpointMetadata,
        preview: Preview | None = None,
        evaluate: Evaluate | None = None,
        *,
        stop: StopSignal | None = None,
    ) -> None:
        self.trainer, self.run, self.metadata = trainer, run, metadata
        self.options = trainer.options
        self.preview = preview if self.options.preview_interval else None
        self.evaluate = evaluate if self.options.evaluate_every else None
        self.accelerator, self.stop = trainer.accelerator, StopSignal() if stop is None else stop
        self.stopping = AgreedStopping(trainer.accelerator, self.stop)
        self.saved = trainer.step  # last step with a checkpoint, written or being written
        self.pending: set[Shown] = set()  # due at this step and not done yet
        self.has_skipped = False  # True once a preview was skipped
        self.saver = Saver(run.path, self._prune, warn)
        self.save_timer = SaveTimer(self.options.checkpoint_minutes)
        self.snapshots = SnapshotWriter(trainer, run)
        self.meter = Meter(trainer.accelerator, trainer.diffusion.num_steps)
        self.slowdown = self._slowdown()
        self.updates = Updates(trainer, self._decide)
        self.agreed = Agreed(finite=True, stop=False, failed=False)  # at the latest decision
        self.metrics: dict[str, Any] = {}

    def train(self) -> float:
        """Train to the last step and return the last logged loss.

        Raises:
            ConfigError: a gradient is not finite, and was not applied; or checkpoints cannot be
                written.
            Stopped: a process received a signal, and all processes stopped at the same step.
        """
        try:
            with self.stop.deferred():
                self._steps()
                self._end()
        except RuntimeError as error:
            raise self.trainer.loader.worker_error(error) or error from error
        finally:
            self.saver.wait()
            self.snapshots.wait()
        if self.accelerator.is_main_process:
            with self.run.warn_on_io_error("loss.png"):
                self.run.plot()
        loss = self.metrics.get("loss")
        return math.nan if loss is None else loss

    def _steps(self) -> None:
        """Run the remaining steps, and after each of them the tasks that are due."""
        trainer, last = self.trainer, self.trainer.max_steps
        trainer.network.train()
        batches = trainer.loader.batches(trainer.samples)
        first = next(batches)
        trainer.warm_up_ddp(first)
        batches = chain([first], batches)
        main, done = self.accelerator.is_main_process, trainer.step
        trainer.pace.begin()
        self.save_timer.restart()
        self.pending = self._scheduled() & missing(self.run, trainer.step)
        self.snapshots.complete()
        self._run_pending()
        with progress(last, "training", "step", initial=done, shown=main) as bar:
            while trainer.step < last and not self.agreed.stop:
                result = trainer.accumulate_gradient(batches)
                self._apply(result)
                self.meter.add(result.losses, result.t, result.weights)
                bar.update()
                self.slowdown.tick()
                if self._has_tasks():
                    self.updates.settle()
                if self._due(self.options.log_every):
                    self._log(float(result.norm))
                    bar.set_postfix_str(self._speed(), refresh=False)
                if self.snapshots.is_due():
                    self.snapshots.start()
                    self._restart_clock()
                self.pending = self._scheduled()
                decisive = "evaluation" in self.pending and self._follows_evaluation()
                if self._due(self.options.checkpoint_every) or self.agreed.save or decisive:
                    self._save()
                    self._restart_clock()
                self._run_pending()

    def _slowdown(self) -> Slowdown:
        """Return the slowdown check, enabled on the main process of a training on the CPU."""
        main, cpu = self.accelerator.is_main_process, self.accelerator.device.type == "cpu"
        # The trial includes neither data workers nor communication between processes. A run that is
        # resumed may read data from the disk cache that workers decoded before.
        reads = self.trainer.data.in_memory and self.trainer.loader.num_workers == 0
        alone = reads and self.accelerator.num_processes == 1
        expected = self.metadata.seconds_per_step if alone else None
        return Slowdown(expected, self.metadata.threads or 1, enabled=main and cpu)

    def _restart_clock(self) -> None:
        """Exclude the time until now from the speed of training."""
        self.meter.restart_clock()
        self.slowdown.restart_clock()

    def _due(self, every: int) -> bool:
        """Return True if a task with this interval is due now, as all are on a stop."""
        return is_due(every, self.trainer.step, self.trainer.max_steps) or self.agreed.stop

    def _has_tasks(self) -> bool:
        """Return True if anything is due now, equal on every process."""
        logged, saved = self._due(self.options.log_every), self._due(self.options.checkpoint_every)
        shown = scheduled(self.options, self.trainer.step, self.trainer.max_steps)
        return logged or saved or self.agreed.save or bool(shown) or self.snapshots.is_due()

    def _scheduled(self) -> set[Shown]:
        """Return the previews and evaluations that are due at this step."""
        callables = {"preview": self.preview, "evaluation": self.evaluate}
        due = scheduled(self.options, self.trainer.step, self.trainer.max_steps)
        enabled: set[Shown] = {each for each in due if callables[each] is not None}
        if "preview" in enabled and self._skips_preview():
            enabled.discard("preview")
        return enabled

    def _skips_preview(self) -> bool:
        """Return True if this preview would exceed the share of previews; equal on all processes.

        The last one is always drawn, and so are all if the user sets their interval.
        """
        trainer, pace = self.trainer, self.trainer.pace
        if self.options.preview_every is not None or trainer.step == trainer.max_steps:
            return False
        allowed = broadcast(self.accelerator, pace.allows_preview(trainer.step))
        if not allowed and not self.has_skipped and self.accelerator.is_main_process:
            note(
                f"preview of step {trainer.step} skipped, as others may be: it would take about "
                f"{duration(pace.cost(trainer.step))}, and previews at most {PREVIEW_SHARE:.0%} of "
                f"the time; trainer.preview_every={PREVIEW_EVERY} draws them all"
            )
        self.has_skipped = self.has_skipped or not allowed
        return not allowed

    def _run_pending(self) -> None:
        """Draw the preview and evaluate, where pending; after a signal both stay pending."""
        if "preview" in self.pending and not self.agreed.stop:
            self._preview()
        if "evaluation" in self.pending and not self.agreed.stop:
            self._evaluate()

    def _apply(self, result: StepResult) -> None:
        """Apply the gradient of a step, and tell the other processes the status of this one."""
        self.updates.apply(
            result,
            stop=self.stop.received is not None,
            failed=self.saver.error() is not None,
            save=self.save_timer.is_due(),
        )

    def _decide(self, result: StepResult, agreed: Agreed) -> GradientDecision:
        """Return the decision about a gradient, equal on every process.

        With fp16 a gradient that is not finite goes to the scaler, which skips the step and lowers
        its scale. Training ends after many such steps in a row.

        Raises:
            ConfigError: the gradient is not finite, or checkpoints cannot be written.
        """
        self.agreed, trainer = agreed, self.trainer
        if self.agreed.failed:
            error = self.saver.error()
            self._report(error)
            raise error or _remote_failure()
        if self.agreed.finite:
            return GradientDecision(use=True, counts=True)
        if self.accelerator.scaler is not None and trainer.skipped < _MAX_SCALER_SKIPS:
            return GradientDecision(use=True, counts=False)
        skips = self.options.max_skips if self.options.on_nonfinite == "skip" else 0
        if trainer.skipped < skips:
            # A scaler must skip the step itself before it accepts another gradient.
            return GradientDecision(use=self.accelerator.scaler is not None, counts=False)
        self.saver.wait()
        trainer.step, trainer.samples = result.step, result.samples  # the step was not taken
        raise self._nonfinite(result)

    def _nonfinite(self, result: StepResult) -> ConfigError:
        """Return the error about a gradient that is not finite, equal on every process."""
        trainer, step = self.trainer, result.step + 1
        items = trainer.loader.order.items(result.samples, trainer.batch_size)
        indices = [index for index, _ in items]
        samples = gradient_check.gather_samples(self.accelerator, result.t, result.losses, indices)
        details = ""
        if self.accelerator.is_main_process:
            with self.run.warn_on_io_error("the list of its samples"):
                details = f", all in {gradient_check.dump(self.run.path, step, samples)}"
        details = broadcast(self.accelerator, details)  # any process may be the first to report it
        good = [p for p in checkpoint.listed(self.run.path) if checkpoint_paths.step_of(p) < step]
        last = f"the last good checkpoint is {good[0]}" if good else "no checkpoint was written yet"
        skipped = f" after {trainer.skipped} skipped steps" if trainer.skipped else ""
        problem = (
            f"the gradient of step {step} is not finite{skipped} "
            f"({gradient_check.describe(samples)}{details}); it was not applied, and {last}; lower "
            "trainer.lr, or use trainer.precision=bf16 or no, or trainer.on_nonfinite=skip"
        )
        return ConfigError("trainer.lr", trainer.lr, problem)

    def _log(self, norm: float) -> None:
        """Write one line of metrics.jsonl."""
        trainer, scaler = self.trainer, self.accelerator.scaler
        record = {
            "step": trainer.step,
            "samples": trainer.samples,
            **self.meter.read(),
            "grad_norm": norm,
            "lr": trainer.learning_rate(max(trainer.num_updates - 1, 0)),
            "ema_decay": trainer.ema.decay,
            "skipped": trainer.num_skipped,
            **({"loss_scale": float(scaler.get_scale())} if scaler is not None else {}),
        }
        self.metrics = {key: _finite(value) for key, value in record.items()}
        if self.accelerator.is_main_process:
            self.run.log(self.metrics)

    def _speed(self) -> str:
        """Return the loss and the speed for the progress bar."""
        speed, unit = self.metrics["samples_per_second"], self.trainer.data.codec.unit
        loss = self.metrics["loss"]
        return f"loss {'not finite' if loss is None else f'{loss:.4f}'}, {speed:.0f} {unit}/s"

    def _follows_evaluation(self) -> bool:
        """Return True if an evaluated metric determines the best checkpoint."""
        return self.options.best not in (None, *LOGGED)

    def _preview(self) -> None:
        """Draw the preview."""
        assert self.preview is not None
        began = time.monotonic()
        try:
            self.preview(self.trainer, self.stopping)
            self.pending.discard("preview")
            self.trainer.pace.add_preview(time.monotonic() - began)
        except GivenUpError:
            self._give_up()
        self.trainer.network.train()
        self._restart_clock()

    def _give_up(self) -> None:
        """Stop at this step, with a checkpoint; pending tasks run when the run is resumed."""
        self.agreed = self.agreed._replace(stop=True)
        if self.saved != self.trainer.step:
            self._save()

    def _evaluate(self) -> None:
        """Evaluate, and write the result into the checkpoint of this step, if there is one."""
        trainer = self.trainer
        assert self.evaluate is not None
        result = self.evaluate(trainer, self.stopping)
        trainer.network.train()
        self._restart_clock()
        if result is None:
            self._give_up()
            return
        self.pending.discard("evaluation")
        if self.accelerator.is_main_process:
            self.saver.wait()
            folder = checkpoint.place(self.run.path / checkpoint.FOLDER, trainer.step)
            with self.run.warn_on_io_error("evaluation.json"):
                if folder.is_dir():
                    result.write(folder)
                    self._prune(trainer.step)
            numbers = {name: _finite(value) for name, value in result.numbers.items()}
            self.run.log_evaluation(trainer.step, numbers)

    def _save(self) -> None:
        """Start to write a checkpoint of this step."""
        self.saved, self.agreed = self.trainer.step, self.agreed._replace(save=False)
        self.save_timer.restart()
        if self.accelerator.is_main_process:
            trainer = self.trainer
            self.saver.start(
                replace(self.metadata, step=trainer.step, metrics=self.metrics),
                raw=trainer.network.state_dict(),
                ema=trainer.ema.model.state_dict(),
                state=trainer.state(),
            )

    def _prune(self, step: int) -> None:
        options = self.options
        every, best = options.keep_every, options.best
        prune(self.run.path, options.keep_last, keep_every=every, best=best, step=step)

    def _report(self, error: Exception | None) -> None:
        """Print the error of one of several processes, before a launcher ends it."""
        if error is not None and self.accelerator.num_processes > 1:
            warn(str(error))

    def _end(self) -> None:
        """Wait for the last checkpoint, on all processes, so that no launcher ends one of them."""
        error, done = self.saver.error(last=True), torch.zeros(())
        ended = agree(self.accelerator, done, stop=False, failed=error is not None)
        if ended.failed:
            self._report(error)
            raise error or _remote_failure()
        self.stop.finish()
        step = self.trainer.step
        if step < self.trainer.max_steps or self.pending:
            folder = checkpoint.place(self.run.path / checkpoint.FOLDER, step)
            raise Stopped(f"stopped at step {step}, with a checkpoint in {folder}")


def _finite(value: float | None) -> float | None:
    """Return a number for JSON: None instead of NaN and infinities."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _remote_failure() -> ConfigError:
    """Return the error of a process when another one, the main process, cannot write."""
    return ConfigError("out", None, "the main process cannot write checkpoints; see its message")
