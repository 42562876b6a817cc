"""Training: the loop, batches, timesteps, the average of the weights, checkpoints and runs."""

from ddpm.training.batch_loader import BatchLoader
from ddpm.training.ema import EMA
from ddpm.training.timesteps import (
    BatchPart,
    LogitNormal,
    LogNormal,
    LossSecondMoment,
    Stratified,
    Timesteps,
    Uniform,
)
from ddpm.training.trainer import Trainer

__all__ = [
    "EMA", "BatchLoader", "Trainer",
    "BatchPart", "LogNormal", "LogitNormal", "LossSecondMoment", "Stratified", "Timesteps",
    "Uniform",
]  # fmt: skip
