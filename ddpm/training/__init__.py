"""Training: the loop, the feed of batches, the average of the weights, checkpoints and runs."""

from ddpm.training.ema import EMA
from ddpm.training.feed import Feed
from ddpm.training.trainer import Trainer

__all__ = ["EMA", "Feed", "Trainer"]
