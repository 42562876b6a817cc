"""The training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ddpm.data import Dataset
from ddpm.diffusion import GaussianDiffusion, Timesteps, Uniform
from ddpm.errors import ConfigError, Stopped, require
from ddpm.progress import progress, warn
from ddpm.seeding import For, mix
from ddpm.signals import StopSignal
from ddpm.training import checkpoint, nonfinite
from ddpm.training.agreement import Agreed, agree
from ddpm.training.ema import EMA
from ddpm.training.feed import Batch, Feed
from ddpm.training.launch import Precision
from ddpm.training.meter import QUARTERS, Meter
from ddpm.training.optimizer import Decay, adamw, learning_rate
from ddpm.training.retention import prune
from ddpm.training.run import Run
from ddpm.training.saving import Saver
from ddpm.training.trackers import Trackers

Preview = Callable[["Trainer"], None]
_SCALER_SKIPS = 100  # in a row: far more than a loss scale can be halved


class Trainer:
    """Trains a network, keeps its average, and writes what the run folder holds.

    The randomness of a step is a function of (seed, step, micro-step, rank) and the order of the
    data one of (seed, epoch): going on from a checkpoint needs its counters and no random state.

    Args:
        model: the bare network, on the CPU.
        diffusion: the process, which has the loss.
        data: what to train on.
        accelerator: processes, device and precision.
        seed: of everything random.
        timesteps: which steps t the network is trained at; None = all alike.
        max_steps: optimizer steps in all.
        batch_size: samples of one optimizer step, over all processes and micro-batches.
        accumulate: micro-batches that a batch is cut into, to need less memory.
        lr: learning rate of AdamW.
        lr_warmup: optimizer steps over which it rises from 0.
        lr_decay: ``constant``, or ``cosine`` to 0 at max_steps.
        weight_decay: of AdamW.
        adam_betas: of AdamW.
        clip_grad_norm: largest norm of the gradient; null = unlimited.
        precision: of the arithmetic: ``no`` (float32), ``fp16`` (GPU only) or ``bf16``.
        ema_decay: of the average, per optimizer step.
        ema_warmup: see :class:`EMA`.
        log_every: optimizer steps between lines of metrics.jsonl.
        preview_every: optimizer steps between sample grids; 0 = none.
        preview_samples: samples in a grid.
        checkpoint_every: optimizer steps between checkpoints; there is one at the end always.
        keep_last: how many checkpoints are kept, at least 2.
        keep_every: checkpoints of steps that are multiples of it are never deleted; null = none.
        best: ``loss``, or a quarter of it (``loss_q0``): the checkpoint with the lowest is kept.
        on_nonfinite: ``stop`` before a gradient that is not finite is used, or ``skip`` the step.
        max_skips: how many steps in a row may be skipped.
        trackers: ``tensorboard``, ``wandb``, ``trackio``: where to log, beside metrics.jsonl.
        deterministic: use algorithms that give the same bits each time (slower on GPUs).
        num_workers: processes that read ahead; null = 0 for data in memory, else 2.
        compile: use torch.compile.
        channels_last: keep 2-D activations with channels last in memory (faster on GPUs).
    """

    def __init__(
        self,
        model: nn.Module,
        diffusion: GaussianDiffusion,
        data: Dataset,
        accelerator: Accelerator,
        seed: int,
        timesteps: Timesteps | None = None,
        *,
        max_steps: int = 100_000,
        batch_size: int = 128,
        accumulate: int = 1,
        lr: float = 2e-4,
        lr_warmup: int = 1000,
        lr_decay: Decay = "constant",
        weight_decay: float = 0.0,
        adam_betas: tuple[float, float] = (0.9, 0.999),
        clip_grad_norm: float | None = 1.0,
        precision: Precision = "no",
        ema_decay: float = 0.9999,
        ema_warmup: bool = True,
        log_every: int = 50,
        preview_every: int = 5000,
        preview_samples: int = 64,
        checkpoint_every: int = 5000,
        keep_last: int = 3,
        keep_every: int | None = None,
        best: str | None = None,
        on_nonfinite: nonfinite.OnNonfinite = "stop",
        max_skips: int = 10,
        trackers: tuple[str, ...] = (),
        deterministic: bool = False,
        num_workers: int | None = None,
        compile: bool = False,
        channels_last: bool = False,
    ) -> None:
        for key, value, least in (
            ("max_steps", max_steps, 1),
            ("batch_size", batch_size, 1),
            ("accumulate", accumulate, 1),
            ("lr_warmup", lr_warmup, 0),
            ("log_every", log_every, 1),
            ("preview_every", preview_every, 0),
            ("preview_samples", preview_samples, 1),
            ("checkpoint_every", checkpoint_every, 1),
            ("keep_last", keep_last, 2),  # the last may be damaged
            ("keep_every", 1 if keep_every is None else keep_every, 1),
            ("max_skips", max_skips, 1),
        ):
            require(value >= least, key, value, f"must be at least {least}")
        require(0 <= ema_decay < 1, "ema_decay", ema_decay, "must be in [0, 1)")
        limit = clip_grad_norm
        good = limit is None or limit > 0
        require(good, "clip_grad_norm", limit, "must be above 0, or null for none")
        known = ("loss", *QUARTERS)
        require(
            best is None or best in known, "best", best, f"must be null or of {', '.join(known)}"
        )
        processes = accelerator.num_processes
        parts = accumulate * processes
        problem = f"must be a multiple of {parts} (accumulate {accumulate} x {processes} processes)"
        require(batch_size % parts == 0, "batch_size", batch_size, problem)
        self.max_steps, self.batch_size, self.accumulate = max_steps, batch_size, accumulate
        self.lr, self.lr_warmup, self.lr_decay = lr, lr_warmup, lr_decay
        self.clip_grad_norm, self.log_every = clip_grad_norm, log_every
        self.preview_every, self.preview_samples = preview_every, preview_samples
        self.checkpoint_every, self.keep_last = checkpoint_every, keep_last
        self.keep_every, self.best = keep_every, best
        self.on_nonfinite: nonfinite.OnNonfinite = on_nonfinite
        self.max_skips, self.deterministic = max_skips, deterministic
        self.trackers = Trackers(trackers)
        self.diffusion, self.data, self.accelerator, self.seed = diffusion, data, accelerator, seed
        self.timesteps = Uniform(diffusion.num_steps) if timesteps is None else timesteps
        self.step = self.samples = self.num_updates = self._skipped = 0
        self._agreed = Agreed(finite=True, stop=False, failed=False)
        self._seen: list[tuple[Tensor, Tensor]] = []  # of this step's micro-batches
        self._metrics: dict[str, Any] = {}
        self.feed = Feed(
            data,
            seed=seed,
            batch_size=batch_size,
            accumulate=accumulate,
            rank=accelerator.process_index,
            world=processes,
            num_workers=num_workers,
            pin_memory=accelerator.device.type == "cuda",
        )
        self.layout = torch.contiguous_format
        if channels_last and len(data.shape) == 3:
            self.layout = torch.channels_last
        self.network = model.to(accelerator.device).to(memory_format=self.layout)  # pyright: ignore
        self.ema = EMA(self.network, decay=ema_decay, warmup=ema_warmup)
        if compile:
            self.network.compile()
        optimizer = adamw(self.network, lr, adam_betas, weight_decay)
        self.model, self.optimizer = accelerator.prepare(self.network, optimizer)

    def learning_rate(self, update: int) -> float:
        """The learning rate of optimizer update ``update`` (from 0)."""
        ends = {"decay": self.lr_decay, "max_steps": self.max_steps}
        return learning_rate(update, self.lr, warmup=self.lr_warmup, **ends)

    def fit(
        self,
        run: Run,
        header: dict[str, Any],
        preview: Preview | None = None,
        *,
        stop: StopSignal | None = None,
    ) -> float:
        """Train up to ``max_steps``; returns the last logged loss.

        Args:
            run: where results go; only the main process writes.
            header: what a checkpoint says of itself, without its step.
            preview: draws samples; called on every process.
            stop: looked at after each step; a checkpoint is written before training stops.

        Raises:
            ConfigError: a gradient that is not finite, before it reaches the weights; checkpoints
                that cannot be written.
            Stopped: some process was told to, and all have stopped at the same step.
        """
        stop = StopSignal() if stop is None else stop
        saver = Saver(run.path, lambda: self._prune(run), warn)
        try:
            with stop.deferred():
                self._steps(run, header, saver, stop, preview)
        except RuntimeError as error:
            raise self.feed.lost(error) or error from error
        finally:
            saver.wait()
        if self.accelerator.is_main_process:
            run.plot()
        return self._metrics.get("loss", math.nan)

    def _steps(
        self,
        run: Run,
        header: dict[str, Any],
        saver: Saver,
        stop: StopSignal,
        preview: Preview | None,
    ) -> None:
        """All steps that are left, with what falls due after some of them."""
        self.network.train()
        meter = Meter(self.accelerator, self.diffusion.num_steps)
        batches = self.feed.batches(self.samples)
        main, first = self.accelerator.is_main_process, self.step
        with progress(self.max_steps, "training", "step", initial=first, shown=main) as bar:
            while self.step < self.max_steps:
                norm = self._optimizer_step(batches, meter, run, saver, stop)
                self.step += 1
                self.samples += self.batch_size
                bar.update()
                last = self.step == self.max_steps
                if last or self._agreed.stop or self.step % self.log_every == 0:
                    self._log(meter, norm, run)
                    bar.set_postfix_str(self._speed(), refresh=False)
                if last or self._agreed.stop or self.step % self.checkpoint_every == 0:
                    self._save(header, saver)
                    meter.restart_clock()
                if self._agreed.stop and not last:
                    break
                if preview and self.preview_every and (last or self.step % self.preview_every == 0):
                    preview(self)
                    self.network.train()
                    meter.restart_clock()
        self._end(run, saver, stop)

    def _end(self, run: Run, saver: Saver, stop: StopSignal) -> None:
        """Wait until the last checkpoint is written; together, so that no launcher ends us."""
        error = saver.error(last=True)
        ended = agree(self.accelerator, torch.zeros(()), stop=False, failed=error is not None)
        if ended.failed:
            raise error or _elsewhere()
        stop.finish()
        if self.step < self.max_steps:
            (kept, *_) = checkpoint.listed(run.path)
            raise Stopped(f"stopped at step {self.step}, with a checkpoint in {kept}")

    def _optimizer_step(
        self, batches: Iterator[Batch], meter: Meter, run: Run, saver: Saver, stop: StopSignal
    ) -> Tensor:
        """One batch, in its micro-batches; returns the norm of the gradient before clipping."""
        accelerator, optimizer = self.accelerator, self.optimizer
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(self.num_updates)
        norm, use = torch.zeros(()), True
        self._seen.clear()
        for micro in range(self.accumulate):
            with accelerator.accumulate(self.model):
                losses, t, weights = self._losses(next(batches), micro)
                accelerator.backward((losses if weights is None else losses * weights).mean())
                meter.add(losses.detach(), t, weights)
                self._seen.append((t, losses.detach()))
                if self.timesteps.learns:
                    self.timesteps.update(*self._of_all_processes(t, losses.detach()))
                if accelerator.sync_gradients:
                    limit = math.inf if self.clip_grad_norm is None else self.clip_grad_norm
                    found = accelerator.clip_grad_norm_(self.network.parameters(), limit)
                    norm = torch.as_tensor(found)
                    use = self._may_use(norm, run, saver, stop)
                if use:
                    optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        # Not accelerator.optimizer_step_was_skipped: a fused optimizer skips inside its kernel, out
        # of Accelerate's sight.
        if self._agreed.finite:
            self.ema.update()
            self.num_updates += 1
            self._skipped = 0
        else:
            self._skipped += 1
        return norm

    def _of_all_processes(self, *tensors: Tensor) -> list[Tensor]:
        """Tensors (B,) of every process behind one another, the same on each."""
        gathered = self.accelerator.gather(tensors)
        assert isinstance(gathered, (tuple, list))
        return list(gathered)

    def _losses(self, batch: Batch, micro: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Losses (B,), steps t (B,) and their importance weights (B,) of a micro-batch."""
        accelerator, diffusion, device = self.accelerator, self.diffusion, self.accelerator.device
        raw, labels = (None if x is None else x.to(device, non_blocking=True) for x in batch)
        assert raw is not None
        x0 = self.data.codec.encode(raw).contiguous(memory_format=self.layout)
        at = self.step, micro
        torch.manual_seed(mix(self.seed, For.STEP, *at, accelerator.process_index))
        t, weights = self.timesteps.draw(len(x0), device)
        noise = diffusion.noise(x0)
        cond: dict[str, Tensor] = {}
        if labels is not None:
            cond["y"] = self._with_dropout(labels)
        heads = mix(self.seed, For.SELF_CONDITIONING, *at) % 2 == 0
        estimator = self.network if diffusion.self_condition and heads else None
        return diffusion.loss(self.model, x0, t, noise, estimator, **cond), t, weights

    def _with_dropout(self, labels: Tensor) -> Tensor:
        """Labels, some of them replaced by the one that stands for "no class"."""
        share = self.diffusion.label_dropout
        if share == 0:
            return labels
        assert self.data.num_classes is not None
        dropped = torch.rand(len(labels), device=labels.device) < share
        return torch.where(dropped, self.data.num_classes, labels)

    def _may_use(self, norm: Tensor, run: Run, saver: Saver, stop: StopSignal) -> bool:
        """Whether the optimizer gets the gradient: it is finite, or the scaler will see to it.

        The scaler of fp16 skips such steps itself and lowers its scale; it is stopped when that
        has not helped for long.
        """
        error = saver.error()
        self._agreed = agree(
            self.accelerator, norm, stop=stop.received is not None, failed=error is not None
        )
        if self._agreed.failed:
            raise error or _elsewhere()
        if self._agreed.finite:
            return True
        if self.accelerator.scaler is not None and self._skipped < _SCALER_SKIPS:
            return True
        if self.on_nonfinite == "skip" and self._skipped < self.max_skips:
            return False
        saver.wait()
        raise self._nonfinite(run)

    def _nonfinite(self, run: Run) -> ConfigError:
        """The error of a gradient that is not finite, which all processes raise alike."""
        items = self.feed.order.items(self.samples, self.batch_size)
        samples = nonfinite.gathered(self.accelerator, self._seen, [index for index, _ in items])
        details = ""
        if self.accelerator.is_main_process:
            details = f", all in {nonfinite.dump(run.path, self.step + 1, samples)}"
        good = checkpoint.listed(run.path)
        kept = f"the last good checkpoint is {good[0]}" if good else "there is no checkpoint yet"
        skipped = f" after {self._skipped} steps that were skipped" if self._skipped else ""
        problem = (
            f"the gradient of step {self.step + 1} is not finite{skipped} "
            f"({nonfinite.told(samples)}{details}); nothing of it was kept, {kept}; lower "
            "trainer.lr, take trainer.precision=bf16 or no, or trainer.on_nonfinite=skip"
        )
        return ConfigError("trainer.lr", self.lr, problem)

    def _log(self, meter: Meter, norm: Tensor, run: Run) -> None:
        """Write one line of metrics.jsonl."""
        scaler = self.accelerator.scaler
        self._metrics = {
            "step": self.step,
            "samples": self.samples,
            **meter.read(),
            "grad_norm": float(norm),
            "lr": self.learning_rate(max(self.num_updates - 1, 0)),
            "ema_decay": self.ema.decay,
            "skipped": self.step - self.num_updates,
            **({"loss_scale": float(scaler.get_scale())} if scaler is not None else {}),
        }
        if self.accelerator.is_main_process:
            run.log(self._metrics)

    def _speed(self) -> str:
        """The end of the progress bar."""
        loss, speed = self._metrics["loss"], self._metrics["samples_per_second"]
        return f"loss {loss:.4f}, {speed:.0f} {self.data.codec.unit}/s"

    def _save(self, header: dict[str, Any], saver: Saver) -> None:
        """Begin to write a checkpoint of this step."""
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {
            "step": self.step,
            "samples": self.samples,
            "num_updates": self.num_updates,
            "skipped": self._skipped,
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state(),
            "timesteps": self.timesteps.state(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        saver.start(
            {**header, "step": self.step, "metrics": self._metrics},
            raw=self.network.state_dict(),
            ema=self.ema.model.state_dict(),
            state=state,
        )

    def _prune(self, run: Run) -> None:
        prune(run.path, self.keep_last, keep_every=self.keep_every, best=self.best)

    def resume(self, found: checkpoint.Checkpoint) -> None:
        """Take weights, optimizer and counters from a checkpoint, on every process."""
        state = found.state()
        self.network.load_state_dict(found.weights("raw"))
        self.ema.load(state["ema"], found.weights("ema"))
        if state["optimizer"] is None:  # of an imported checkpoint, whose training was another's
            self.step = state["step"]
            self.samples = self.step * self.batch_size
            return
        fresh = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, options in zip(self.optimizer.param_groups, fresh, strict=True):
            group.update(options)
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.timesteps.load(state.get("timesteps", {}))
        self.step, self.num_updates = state["step"], state["num_updates"]
        self.samples = state.get("samples", self.step * self.batch_size)
        self._skipped = state.get("skipped", 0)


def _elsewhere() -> ConfigError:
    """The error of a process whose main one cannot write; that one says why."""
    return ConfigError("out", None, "the main process cannot write checkpoints; see its message")
