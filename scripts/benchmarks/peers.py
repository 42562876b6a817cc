"""Training loops of the peers and ours.

That of denoising-diffusion-pytorch is the package's own ``Trainer``. That of diffusers follows the
facts of its ``train_unconditional`` example, whose data loading needs another package. The package
registry does not have improved-diffusion: :mod:`scripts.gpu.improved_style` represents it, without
its data loading.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ddpm import diffusion as d
from ddpm.data import Dataset
from ddpm.distributed import devices
from ddpm.training import Trainer
from ddpm.training.trainer import TrainerOptions
from scripts.benchmarks.images import ImageFiles, Memory
from scripts.gpu.improved_style import ImprovedStyle
from scripts.training_steps import TrainingSteps

MANY = 10**7  # steps that no benchmark reaches
Take = Callable[[int], None]


def unet_process() -> d.GaussianDiffusion:
    """Return the default process of denoising-diffusion-pytorch."""
    return d.GaussianDiffusion(d.sigmoid(num_steps=1000), d.PredV())


def our_loop(
    network: nn.Module,
    process: d.GaussianDiffusion,
    data: Dataset,
    precision: Any,
    **options: Any,
) -> Take:
    """Return our training loop.

    Args:
        network: without wrappers.
        process: the diffusion process.
        data: the training data.
        precision: ``no`` or ``bf16``.
        options: of the trainer.
    """
    accelerator = devices.accelerator("cpu", precision, key="precision")
    chosen = TrainerOptions(max_steps=MANY, precision=precision, **options)
    trainer = Trainer(network, process, data, accelerator, 0, options=chosen)
    trainer.choose_batch_parts()  # as ddpm-train does
    return TrainingSteps(trainer).take


def improved_loop(
    network: nn.Module, process: d.GaussianDiffusion, data: Memory, batch: int, bf16: bool
) -> Take:
    """Return a loop in improved-diffusion's style, whose batches are in memory."""
    dtype = torch.bfloat16 if bf16 else None
    style = ImprovedStyle(network.train(), process.schedule, "cpu", dtype)

    def take(count: int) -> None:
        for _ in range(count):
            raw, _ = data.fetch(range(batch), range(batch))
            style.step(raw)

    return take


@contextmanager
def quiet() -> Iterator[None]:
    """Discard progress bars and messages."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def package_loop(network: nn.Module, images: Path, size: int, batch: int, bf16: bool) -> Take:
    """Return denoising-diffusion-pytorch's Trainer, without samples and checkpoints."""
    from denoising_diffusion_pytorch import GaussianDiffusion  # pyright: ignore
    from denoising_diffusion_pytorch import Trainer as PackageTrainer  # pyright: ignore

    AcceleratorState._reset_state(reset_partial_state=True)
    results = images.parent / f"results-{'bf16' if bf16 else 'fp32'}"
    with quiet():
        trainer = PackageTrainer(
            GaussianDiffusion(network, image_size=size),
            str(images),
            train_batch_size=batch,
            amp=bf16,
            mixed_precision_type="bf16",
            save_and_sample_every=MANY,
            calculate_fid=False,
            results_folder=str(results),
        )

    def take(count: int) -> None:
        trainer.train_num_steps = trainer.step + count
        with quiet():
            trainer.train()

    return take


class DiffusersLoop:
    """Training as in diffusers' ``train_unconditional`` example; written anew.

    Args:
        network: a ``UNet2DModel``.
        images: folder of images.
        batch: samples per step.
        bf16: autocast to bf16.
        ema: average the weights, an option of the example that is off by default.
    """

    def __init__(self, network: Any, images: Path, batch: int, bf16: bool, ema: bool) -> None:
        from diffusers import DDPMScheduler  # pyright: ignore
        from diffusers.optimization import get_scheduler  # pyright: ignore
        from diffusers.training_utils import EMAModel  # pyright: ignore

        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no")
        adam = {"lr": 1e-4, "betas": (0.95, 0.999), "weight_decay": 1e-6, "eps": 1e-8}
        optimizer = torch.optim.AdamW(network.parameters(), **adam)
        files = ImageFiles(images, network.config.sample_size)
        loader = DataLoader(files, batch_size=batch, shuffle=True, num_workers=0)
        rates = get_scheduler(
            "cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=MANY
        )
        prepared = self.accelerator.prepare(network.train(), optimizer, loader, rates)
        self.model, self.optimizer, self.loader, self.rates = prepared
        self.noise_scheduler = DDPMScheduler(num_train_timesteps=1000)
        self.average = EMAModel(
            network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75
        ) if ema else None  # fmt: skip
        self.batches = self._batches()

    def _batches(self) -> Iterator[Tensor]:
        while True:
            yield from self.loader

    def take(self, count: int) -> None:
        """Run ``count`` steps, with a progress bar that is discarded."""
        from tqdm.auto import tqdm

        with tqdm(total=count, file=io.StringIO()) as bar:
            for _ in range(count):
                loss = self._step(next(self.batches))
                bar.update(1)
                rate = self.rates.get_last_lr()[0]
                bar.set_postfix(loss=loss.detach().item(), lr=rate)

    def _step(self, clean: Tensor) -> Tensor:
        steps = self.noise_scheduler.config.num_train_timesteps
        noise = torch.randn_like(clean)
        t = torch.randint(0, steps, (len(clean),), device=clean.device).long()
        noisy = self.noise_scheduler.add_noise(clean, noise, t)
        with self.accelerator.accumulate(self.model):
            predicted = self.model(noisy, t).sample
            loss = nn.functional.mse_loss(predicted.float(), noise.float())
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.rates.step()
            self.optimizer.zero_grad()
        if self.average is not None and self.accelerator.sync_gradients:
            self.average.step(self.model.parameters())
        return loss
