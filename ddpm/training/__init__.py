"""Training: the loop, batches, the average of the weights, checkpoints and runs."""

from ddpm.training.batch_loader import BatchLoader
from ddpm.training.ema import EMA
from ddpm.training.trainer import Trainer

__all__ = ["EMA", "BatchLoader", "Trainer"]
