"""The training loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ddpm.data import Dataset
from ddpm.diffusion import DiffusionLoss, GaussianDiffusion, class_conditioning
from ddpm.diffusion.denoiser import Network
from ddpm.errors import require
from ddpm.memory import is_out_of_memory
from ddpm.models.labels import null_label
from ddpm.seeding import RandomStream, mix
from ddpm.training import batch_parts
from ddpm.training.batch_loader import Batch, BatchLoader, BatchOptions
from ddpm.training.budget import DurationOptions
from ddpm.training.buffers import buffers_restored
from ddpm.training.checkpoint import Checkpoint, damaged
from ddpm.training.due import ReportOptions
from ddpm.training.ema import EMA, EMAOptions
from ddpm.training.gradient_check import GradientCheckOptions
from ddpm.training.hardware import HardwareOptions
from ddpm.training.meter import LOGGED
from ddpm.training.optimizer import (
    AdamW,
    OptimizerOptions,
    default_batch_size,
    default_learning_rate,
    learning_rate,
    warmup_steps,
)
from ddpm.training.options import legacy_defaults
from ddpm.training.pace import Pace
from ddpm.training.power_average import PosthocOptions, PowerAverages
from ddpm.training.saving import CheckpointOptions
from ddpm.training.step import GradientDecision, StepResult
from ddpm.training.timesteps import BatchPart, Timesteps, Uniform
from ddpm.training.trackers import TrackerOptions


@dataclass(frozen=True, kw_only=True)
class TrainerOptions(
    HardwareOptions,
    TrackerOptions,
    GradientCheckOptions,
    CheckpointOptions,
    ReportOptions,
    EMAOptions,
    PosthocOptions,
    OptimizerOptions,
    BatchOptions,
    DurationOptions,
):
    """All options of the config group ``trainer``; each is declared by the code that uses it."""

    def _validate(self) -> None:
        problem = f"must be null or one of {', '.join(LOGGED)}"
        more = "; to follow another metric, set trainer.evaluate_every"
        good = self.best is None or self.best in LOGGED or self.evaluate_every > 0
        require(good, "best", self.best, problem + more)


class Trainer:
    """Computes and applies the gradients of a training, and updates the averaged weights.

    The random numbers of a step are a function of (seed, step, micro-step, rank), and the order of
    the data is one of (seed, epoch), so that resuming needs counters and no random state.

    Attributes:
        step: number of optimizer steps, including skipped ones.
        samples: number of samples in these steps, the position in the stream of the data.
        num_updates: number of steps without skipped ones, for the learning rate and the average.
        skipped, num_skipped: number of latest consecutive skipped steps, and of all skipped steps.
        accumulate, batch_parts, precision, compile, channels_last: the options, with values for
            automatic ones.

    Args:
        model: the network without wrappers, on the CPU.
        diffusion: the diffusion process.
        data: the training data.
        accelerator: processes, device and precision.
        seed: seed of all random numbers.
        timesteps: distribution of the timesteps t; None = uniform.
        options: see :class:`TrainerOptions`; those of the loop are for :class:`TrainingLoop`.

    Raises:
        ConfigError: label dropout with a network that does not have a ``null_label``.
    """

    Options = TrainerOptions
    legacy_defaults = legacy_defaults(TrainerOptions)

    def __init__(
        self,
        model: nn.Module,
        diffusion: GaussianDiffusion,
        data: Dataset,
        accelerator: Accelerator,
        seed: int,
        timesteps: Timesteps | None = None,
        options: TrainerOptions | None = None,
    ) -> None:
        self.options = options = TrainerOptions() if options is None else options
        self.diffusion, self.data, self.accelerator, self.seed = diffusion, data, accelerator, seed
        self.loss, self.null_label = DiffusionLoss(diffusion), None
        if self.loss.options.drops_labels and data.num_classes is not None:
            self.null_label = null_label(model, data.num_classes)
        self.timesteps = Uniform(diffusion.schedule) if timesteps is None else timesteps
        self.max_steps, self.lr_warmup = options.max_steps, options.lr_warmup
        self.lr = default_learning_rate(model) if options.lr is None else options.lr
        self.accumulate = options.first_accumulate
        self.batch_size = self._batch_size()
        self.batch_parts = batch_parts.typed(options.batch_parts, model, accelerator)
        self.step = self.samples = self.num_updates = 0
        self.skipped = self.num_skipped = 0
        self.pace = Pace()
        self._buffers: list[Tensor] | None = None  # after an update that is not concluded
        self.loader = BatchLoader(
            data,
            seed=seed,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            num_workers=options.num_workers,
            pin_memory=accelerator.device.type == "cuda",
        )
        self.precision, self.compile = accelerator.mixed_precision, options.compile is True
        on_gpu, typed = accelerator.device.type == "cuda", options.channels_last
        self.channels_last = on_gpu if typed is None else typed
        self.layout = torch.contiguous_format
        if self.channels_last and len(data.shape) == 3:
            self.layout = torch.channels_last
        self.network = model.to(accelerator.device).to(memory_format=self.layout)  # pyright: ignore
        decay, warmup, window = options.ema_decay, options.ema_warmup, options.ema_window
        self.ema = EMA(self.network, decay=decay, warmup=warmup, window=window)
        self.posthoc = PowerAverages(self.network, options.posthoc_ema)
        if self.compile:
            self.network.compile()
        self._adamw = AdamW(
            self.network.parameters(),
            lr=self.lr,
            betas=options.adam_betas,
            weight_decay=options.weight_decay,
            fused=True,
        )
        # The network is in place: Accelerate would import DTensor, and sympy, before moving it.
        in_place = [False, True]
        prepared = accelerator.prepare(self.network, self._adamw, device_placement=in_place)
        self.model, self.optimizer = prepared

    def _batch_size(self) -> int:
        """Return the samples per optimizer step, a multiple of processes times micro-batches."""
        size, accumulate = self.options.batch_size, self.accumulate
        processes = self.accelerator.num_processes
        parts = accumulate * processes
        if size is None:
            return default_batch_size(self.accelerator.device.type, parts)
        problem = f"must be a multiple of {parts} (accumulate {accumulate} x {processes} processes)"
        require(size % parts == 0, "batch_size", size, problem)
        return size

    def divide_batch(self, accumulate: int) -> None:
        """Set the gradient accumulation steps; their product with the processes divides the batch.

        The order of the data is the same for any number.
        """
        self.accumulate = self.accelerator.gradient_accumulation_steps = accumulate
        self.loader.divide(accumulate)

    def choose_batch_parts(self) -> None:
        """Set :attr:`batch_parts` for the present number of threads if the option is ``auto``."""
        if self.options.batch_parts == "auto" and not self.compile:
            samples = self.batch_size // self.accumulate
            self.batch_parts = batch_parts.automatic(self.network, samples, self.accelerator)

    def learning_rate(self, update: int) -> float:
        """Return the learning rate of optimizer update ``update`` (from 0)."""
        ends = {"decay": self.options.lr_decay, "max_steps": self.max_steps}
        return learning_rate(update, self.lr, warmup=self.warmup_steps, **ends)

    @property
    def warmup_steps(self) -> int:
        """Number of optimizer steps of the warm-up of the learning rate."""
        return warmup_steps(self.max_steps) if self.lr_warmup is None else self.lr_warmup

    def warm_up_ddp(self, batch: Batch) -> None:
        """Run one backward pass, and discard it, so that DDP builds its final buckets.

        DDP arranges the gradients in new buckets after its first pass, and the sum of more than two
        numbers depends on the arrangement: without this pass, new and resumed runs would differ by
        bits.
        """
        if self.accelerator.num_processes > 1:
            with buffers_restored(self.network):
                losses, _, _ = self._losses(batch, 0)
                self.accelerator.backward(losses.mean())
            self.optimizer.zero_grad(set_to_none=True)

    def gradient(self, batch: Batch, micro: int = 0) -> tuple[Tensor | None, ...]:
        """Return the gradient of the loss of a micro-batch, per parameter; nothing is stored.

        It is the gradient of this process alone, outside of DDP.
        """
        losses, _, weights = self._losses(batch, micro, self.network)
        loss = (losses if weights is None else losses * weights).mean()
        trained = (each for each in self.network.parameters() if each.requires_grad)
        return torch.autograd.grad(loss, list(trained), allow_unused=True)

    def accumulate_gradient(self, batches: Iterator[Batch]) -> StepResult:
        """Compute and clip the gradient of one optimizer step; :meth:`apply_gradient` comes next.

        Args:
            batches: micro-batches of this process, from position :attr:`samples` on.
        """
        accelerator, norm = self.accelerator, torch.zeros(())
        steps, all_losses, all_weights = [], [], []
        for micro in range(self.accumulate):
            with accelerator.accumulate(self.model):
                losses, t, weights = self._losses(next(batches), micro)
                accelerator.backward((losses if weights is None else losses * weights).mean())
                steps.append(t)
                all_losses.append(losses.detach())
                all_weights += [] if weights is None else [weights]
                if self.timesteps.adaptive:
                    self.timesteps.update(*self._of_all_processes(t, losses.detach()))
                if accelerator.sync_gradients:
                    norm = self._clip_gradient()
        weights = torch.stack(all_weights) if all_weights else None
        t, losses = torch.stack(steps), torch.stack(all_losses)
        return StepResult(self.step, self.samples, norm, t, losses, weights)

    def _clip_gradient(self) -> Tensor:
        """Clip the gradient; return its norm before that, ()."""
        # Not accelerator.clip_grad_norm_: the same function, after an import of DTensor and sympy.
        self.accelerator.unscale_gradients()
        parameters, limit = self.network.parameters(), self.options.clip_grad_norm
        if limit is not None:
            return nn.utils.clip_grad_norm_(parameters, limit)
        return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

    def apply_gradient(self, decision: GradientDecision) -> None:
        """Finish the optimizer step that :meth:`accumulate_gradient` began."""
        self._update_weights(decision.use)
        self.conclude(decision.counts)

    def apply_if_finite(self, nonfinite: Tensor) -> None:
        """Update the weights unless the gradient is not finite, which the device decides.

        The caller calls :meth:`conclude` once it knows the decision: before the next update of the
        weights, and before anything that depends on the average or on the counters.

        Args:
            nonfinite: 1.0 if the gradient is not finite, else 0.0; (), float32, on the device.
        """
        if self.accelerator.scaler is None:  # else the scaler decides
            self._adamw.found_inf = nonfinite
        try:
            self._update_weights(True)
        finally:
            self._adamw.found_inf = None
        # The next forward pass precedes the update of the average, and may change them.
        self._buffers = self.ema.copy_buffers()

    def conclude(self, counts: bool) -> None:
        """Update the average and the counters after the weights.

        Args:
            counts: advance the learning rate and the moving average by a step.
        """
        # Not accelerator.optimizer_step_was_skipped: a fused optimizer skips inside its kernel, out
        # of Accelerate's sight.
        if counts:
            self.ema.update(self._buffers)
            self.num_updates += 1
            self.posthoc.update(self.num_updates)
        self._buffers = None
        self.skipped = 0 if counts else self.skipped + 1
        self.num_skipped += not counts

    def _update_weights(self, use: bool) -> None:
        """Apply the gradient if ``use``, discard it, and count the step and its samples."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.num_updates)
        if use:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.samples += self.batch_size

    def _of_all_processes(self, *tensors: Tensor) -> list[Tensor]:
        """Return tensors (B,) of all processes, concatenated, on every process."""
        gathered = self.accelerator.gather(tensors)
        assert isinstance(gathered, (tuple, list))
        return list(gathered)

    def _losses(
        self, batch: Batch, micro: int, model: nn.Module | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return losses (B,), timesteps (B,) and importance weights (B,) of a micro-batch."""
        accelerator, device = self.accelerator, self.accelerator.device
        raw, labels = (None if x is None else x.to(device, non_blocking=True) for x in batch)
        assert raw is not None
        x0 = self.data.codec.encode(raw).contiguous(memory_format=self.layout)
        at = self.step, micro
        _seed(mix(self.seed, RandomStream.TRAIN_STEP, *at, accelerator.process_index), device)
        t, weights = self.timesteps.draw(len(x0), device, self._part(micro))
        noise = self.loss.sample_noise(x0)
        conditioning = self.loss.drop(class_conditioning(labels, self.null_label))
        estimator = self._in_parts(self.network) if self.conditions_itself(micro) else None
        network = self._in_parts(self.model if model is None else model)
        return self.loss(network, x0, t, noise, estimator, conditioning), t, weights

    def _in_parts(self, model: nn.Module) -> Network:
        """Return a model that computes the parts of a micro-batch at the same time."""
        return batch_parts.in_parts(model, self.network.parameters(), self.batch_parts)

    def _part(self, micro: int) -> BatchPart:
        """Return the place of a micro-batch of this process in the batch of this step."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        uniform = mix(self.seed, RandomStream.TIMESTEPS, self.step) / 2**63
        return BatchPart(micro * world + rank, self.accumulate * world, uniform)

    def conditions_itself(self, micro: int) -> bool:
        """Return True if a micro-batch of this step uses self-conditioning."""
        heads = mix(self.seed, RandomStream.SELF_CONDITIONING, self.step, micro) % 2 == 0
        return self.diffusion.self_condition and heads

    def state(self) -> dict[str, Any]:
        """Return the state that resuming requires beside the weights."""
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "samples": self.samples,
            "num_updates": self.num_updates,
            "skipped": self.skipped,
            "num_skipped": self.num_skipped,
            "lr_warmup": self.warmup_steps,
            "pace": self.pace.state(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state(),
            "posthoc": self.posthoc.state(),
            "timesteps": self.timesteps.state(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def resume(self, checkpoint: Checkpoint) -> None:
        """Load weights, optimizer and counters from a checkpoint, on every process.

        Raises:
            ConfigError: the checkpoint is damaged, or its weights are those of another network.
        """
        try:
            self._load(checkpoint, checkpoint.state())
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            if is_out_of_memory(error):  # the checkpoint is not damaged
                raise
            reason = "its weights and counters do not fit its config"
            raise damaged(checkpoint.folder, reason) from error

    def _load(self, checkpoint: Checkpoint, state: dict[str, Any]) -> None:
        self.network.load_state_dict(checkpoint.weights("raw"))
        self.ema.load(state["ema"], checkpoint.weights("ema"))
        if state["optimizer"] is None:  # an imported checkpoint without the state of its training
            self.step = state["step"]
            self.samples = self.step * self.batch_size
            return
        fresh = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, options in zip(self.optimizer.param_groups, fresh, strict=True):
            group.update(options)
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.posthoc.load(state.get("posthoc", []))
        self.timesteps.load(state.get("timesteps", {}))
        self.pace.load(state.get("pace", {}))
        if self.lr_warmup is None:  # max_steps may have changed; the learning rate must not
            self.lr_warmup = state.get("lr_warmup")
        self.step, self.num_updates = state["step"], state["num_updates"]
        self.samples = state.get("samples", self.step * self.batch_size)
        self.skipped, self.num_skipped = state.get("skipped", 0), state.get("num_skipped", 0)


def _seed(seed: int, device: torch.device) -> None:
    """Seed the random generators of the CPU and of the current GPU.

    ``torch.manual_seed`` also seeds devices that are not used. Without a GPU that takes longer than
    a layer of a small network: torch formats a stack trace per call.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
