"""Part 2: provoked overflows of fp16; the scaler skips those steps, and training continues."""

from __future__ import annotations

import shutil
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer

from ddpm import data, models
from ddpm import diffusion as d
from ddpm.distributed import devices
from ddpm.training import Trainer
from ddpm.training.checkpoint import CheckpointMetadata
from ddpm.training.loop import TrainingLoop
from ddpm.training.run import Run
from ddpm.training.trainer import TrainerOptions
from scripts.gpu.check import Check, Result, Setting, require

STEPS = 12


class LargeLoss(d.DiffusionLoss):
    """A loss so large that float32 overflows at the largest scale."""

    def __call__(self, *args: Any, **options: Any) -> torch.Tensor:
        """Return the usual losses times a million."""
        return super().__call__(*args, **options) * 1e6


def overflow(setting: Setting) -> Result:
    """Train from a scale at which every gradient overflows until it is low enough."""
    on_gpu = setting.device == "cuda"
    # The largest number of fp16 is 65504; in miniature the arithmetic is float32.
    scaler = torch.amp.GradScaler(setting.device, init_scale=2.0 ** (30 if on_gpu else 127))
    scaler.set_backoff_factor(2.0**-6 if on_gpu else 2.0**-20)
    training = _trainer(setting, scaler)
    before = [p.detach().clone() for p in training.network.parameters()]
    folder = setting.folder / "overflow"
    shutil.rmtree(folder, ignore_errors=True)
    run = Run(folder)
    run.create("{}")
    TrainingLoop(training, run, CheckpointMetadata(config={"made_by": "gpu_check"})).train()
    records = [r for r in run.metrics() if "loss_scale" in r]
    skipped, scale = training.num_skipped, records[-1]["loss_scale"]
    detail = (
        f"{skipped} of {STEPS} steps skipped, scale {records[0]['loss_scale']:.3g} to {scale:.3g}"
    )
    finite = all(bool(p.isfinite().all()) for p in training.network.parameters())
    pairs = zip(training.network.parameters(), before, strict=True)
    moved = any(not torch.equal(now, then) for now, then in pairs)
    require(1 <= skipped < STEPS and finite and moved, detail)
    counted = training.num_updates == STEPS - skipped == training.ema.state()["step"]
    require(counted, f"{detail}; the average or the rate followed a skipped step")
    return Result(detail, {"skipped": skipped, "scale": scale})


def _trainer(setting: Setting, scaler: torch.amp.GradScaler) -> Trainer:
    """Return a trainer of the digits whose loss is scaled, on a CPU too."""
    precision = "fp16" if setting.device == "cuda" else "no"
    accelerator = devices.accelerator("cuda" if precision == "fp16" else "cpu", precision, key="p")
    accelerator.scaler = scaler
    digits = data.Digits()
    network = models.UNet(1, 1, (8, 8), dim=16, dim_mults=(1, 2))
    process = d.GaussianDiffusion(d.cosine(), d.PredV())
    options = TrainerOptions(
        max_steps=STEPS,
        batch_size=32,
        precision=precision,
        log_every=1,
        preview_every=0,
        lr_warmup=0,
    )
    training = Trainer(network, process, digits, accelerator, 0, options=options)
    if precision == "no":  # Accelerate scales nothing on a CPU by itself
        training.loss = LargeLoss(process)
        accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
        inner: Any = training.optimizer
        training.optimizer = AcceleratedOptimizer(inner.optimizer, scaler=scaler)
        accelerator._optimizers = [training.optimizer]
    return training


CHECKS = [Check(2, "fp16 overflow: the scaler skips, and training continues", overflow, 5.0)]
