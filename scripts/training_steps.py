"""Training steps of a trainer as the training loop takes them, without logs and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

from ddpm.training import Trainer
from ddpm.training.batch_loader import Batch
from ddpm.training.meter import Meter
from ddpm.training.updates import Updates, if_finite


class TrainingSteps:
    """Takes training steps, to be timed.

    Args:
        trainer: computes and applies the gradients; its network is set to training mode.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        trainer.network.train()
        self.batches: Iterator[Batch] = trainer.loader.batches(trainer.samples)
        self.updates = Updates(trainer, if_finite)
        self.meter = Meter(trainer.accelerator, trainer.diffusion.num_steps)

    def take(self, count: int) -> None:
        """Run ``count`` steps; on a GPU they may still be in progress."""
        for _ in range(count):
            result = self.trainer.accumulate_gradient(self.batches)
            self.updates.apply(result)
            self.meter.add(result.losses, result.t, result.weights)
        self.updates.settle()
