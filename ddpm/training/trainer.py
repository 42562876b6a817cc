"""The training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ddpm.data import Dataset
from ddpm.diffusion import GaussianDiffusion, Timesteps, Uniform
from ddpm.errors import ConfigError, require
from ddpm.progress import progress
from ddpm.seeding import For, mix
from ddpm.training import checkpoint
from ddpm.training.ema import EMA
from ddpm.training.feed import Batch, Feed
from ddpm.training.launch import Precision
from ddpm.training.meter import Meter
from ddpm.training.run import Run

Preview = Callable[["Trainer"], None]


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
        lr_decay: Literal["constant", "cosine"] = "constant",
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
        ):
            require(value >= least, key, value, f"must be at least {least}")
        require(0 <= ema_decay < 1, "ema_decay", ema_decay, "must be in [0, 1)")
        limit = clip_grad_norm
        good = limit is None or limit > 0
        require(good, "clip_grad_norm", limit, "must be above 0, or null for none")
        processes = accelerator.num_processes
        parts = accumulate * processes
        problem = f"must be a multiple of {parts} (accumulate {accumulate} x {processes} processes)"
        require(batch_size % parts == 0, "batch_size", batch_size, problem)
        self.max_steps, self.batch_size, self.accumulate = max_steps, batch_size, accumulate
        self.lr, self.lr_warmup, self.lr_decay = lr, lr_warmup, lr_decay
        self.clip_grad_norm, self.log_every = clip_grad_norm, log_every
        self.preview_every, self.preview_samples = preview_every, preview_samples
        self.checkpoint_every, self.keep_last = checkpoint_every, keep_last
        self.diffusion, self.data, self.accelerator, self.seed = diffusion, data, accelerator, seed
        self.timesteps = Uniform(diffusion.num_steps) if timesteps is None else timesteps
        self.step = self.num_updates = self._skipped = 0
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
        optimizer = _adamw(self.network, lr, adam_betas, weight_decay)
        self.model, self.optimizer = accelerator.prepare(self.network, optimizer)

    def learning_rate(self, update: int) -> float:
        """The learning rate of optimizer update ``update`` (from 0), whatever the processes."""
        if update < self.lr_warmup:
            return self.lr * (update + 1) / (self.lr_warmup + 1)
        if self.lr_decay == "constant":
            return self.lr
        span = max(self.max_steps - self.lr_warmup, 1)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min((update - self.lr_warmup) / span, 1)))

    def fit(self, run: Run, header: dict[str, Any], preview: Preview | None = None) -> float:
        """Train up to ``max_steps``; returns the last logged loss.

        Args:
            run: where results go; only the main process writes.
            header: what a checkpoint says of itself, without its step.
            preview: draws samples; called on every process.

        Raises:
            ConfigError: a loss or gradient that is not finite, before it reaches the weights.
        """
        accelerator = self.accelerator
        self.network.train()
        meter = Meter(accelerator, self.diffusion.num_steps)
        batches = self.feed.batches(self.step)
        loss = math.nan
        shown = accelerator.is_main_process
        with progress(self.max_steps, "training", "step", initial=self.step, shown=shown) as bar:
            while self.step < self.max_steps:
                norm = self._optimizer_step(batches, meter, run)
                self.step += 1
                bar.update()
                if self.step % self.log_every == 0 or self.step == self.max_steps:
                    record = self._record(meter, norm)
                    loss = record["loss"]
                    speed = f"{record['samples_per_second']:.0f} {self.data.codec.unit}/s"
                    bar.set_postfix_str(f"loss {loss:.4f}, {speed}", refresh=False)
                    if accelerator.is_main_process:
                        run.log(record)
                last = self.step == self.max_steps
                if last or self.step % self.checkpoint_every == 0:
                    self.save(run, header)
                    meter.restart_clock()
                if preview and self.preview_every and (last or self.step % self.preview_every == 0):
                    preview(self)
                    self.network.train()
                    meter.restart_clock()
        if accelerator.is_main_process:
            run.plot()
        return loss

    def _optimizer_step(self, batches: Iterator[Batch], meter: Meter, run: Run) -> Tensor:
        """One batch, in its micro-batches; returns the norm of the gradient before clipping."""
        accelerator, optimizer = self.accelerator, self.optimizer
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(self.num_updates)
        norm, finite = torch.zeros(()), True
        for micro in range(self.accumulate):
            with accelerator.accumulate(self.model):
                losses, t, weights = self._losses(next(batches), micro)
                accelerator.backward((losses if weights is None else losses * weights).mean())
                meter.add(losses.detach(), t, weights)
                if self.timesteps.learns:
                    self.timesteps.update(*self._of_all_processes(t, losses.detach()))
                if accelerator.sync_gradients:
                    limit = math.inf if self.clip_grad_norm is None else self.clip_grad_norm
                    found = accelerator.clip_grad_norm_(self.network.parameters(), limit)
                    norm = torch.as_tensor(found)
                    finite = self._is_finite(norm, run)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        # Not accelerator.optimizer_step_was_skipped: a fused optimizer skips inside its kernel, out
        # of Accelerate's sight. Without a scaler, what is not finite was refused above.
        if finite:
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

    def _is_finite(self, norm: Tensor, run: Run) -> bool:
        """Whether the gradient is; without a scaler, stop before one that is not is used.

        The scaler of fp16 skips such steps itself and lowers its scale; it is stopped when that
        has not helped for long.
        """
        finite = bool(torch.isfinite(norm))
        if finite or (self.accelerator.scaler is not None and self._skipped < 100):
            return finite
        good = checkpoint.listed(run.path)
        kept = f"the last good checkpoint is {good[0]}" if good else "there is no checkpoint yet"
        problem = (
            f"the gradient of step {self.step + 1} is not finite; nothing of it was kept, {kept}; "
            "lower trainer.lr, or take trainer.precision=bf16 or no"
        )
        raise ConfigError("trainer.lr", self.lr, problem)

    def _record(self, meter: Meter, norm: Tensor) -> dict[str, Any]:
        """What one line of metrics.jsonl says."""
        return {
            "step": self.step,
            "samples": self.step * self.batch_size,
            **meter.read(),
            "grad_norm": float(norm),
            "lr": self.learning_rate(max(self.num_updates - 1, 0)),
            "ema_decay": self.ema.decay,
            **({"loss_scale": self._scale} if self.accelerator.scaler is not None else {}),
        }

    @property
    def _scale(self) -> float:
        assert self.accelerator.scaler is not None
        return float(self.accelerator.scaler.get_scale())

    def save(self, run: Run, header: dict[str, Any]) -> None:
        """Write a checkpoint of this step, and prune older ones."""
        accelerator = self.accelerator
        if accelerator.is_main_process:
            scaler = accelerator.scaler
            state = {
                "step": self.step,
                "num_updates": self.num_updates,
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema.state(),
                "timesteps": self.timesteps.state(),
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            checkpoint.save(
                run.path / checkpoint.FOLDER,
                {**header, "step": self.step},
                raw=self.network.state_dict(),
                ema=self.ema.model.state_dict(),
                state=state,
            )
            checkpoint.prune(run.path, self.keep_last)
        accelerator.wait_for_everyone()

    def resume(self, found: checkpoint.Checkpoint) -> None:
        """Take weights, optimizer and counters from a checkpoint, on every process."""
        state = found.state()
        self.network.load_state_dict(found.weights("raw"))
        self.ema.load(state["ema"], found.weights("ema"))
        if state["optimizer"] is None:  # of an imported checkpoint, whose training was another's
            self.step = state["step"]
            return
        fresh = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, options in zip(self.optimizer.param_groups, fresh, strict=True):
            group.update(options)
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.timesteps.load(state.get("timesteps", {}))
        self.step, self.num_updates = state["step"], state["num_updates"]


def _adamw(
    network: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """The optimizer, or a refusal of what it cannot work with."""
    require(0 < lr < math.inf, "lr", lr, "must be above 0")
    good = 0 <= weight_decay < math.inf
    require(good, "weight_decay", weight_decay, "must be 0 (off) or above")
    good = all(0 <= beta < 1 for beta in betas)
    require(good, "adam_betas", betas, "must both be in [0, 1)")
    return torch.optim.AdamW(
        network.parameters(), lr=lr, betas=betas, weight_decay=weight_decay, fused=True
    )
