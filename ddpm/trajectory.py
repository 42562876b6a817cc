"""Snapshots of samples on their way from noise to data, for films and reports."""

from __future__ import annotations

from torch import Tensor
from tqdm import tqdm

from ddpm.data import Codec
from ddpm.samplers.base import OnStep

GRID = 64
"""Samples in a grid, such as ``grid.png``."""
FRAMES = 50
"""Largest number of snapshots of a trajectory."""


class Trajectory:
    """Snapshots of the first batch at up to :data:`FRAMES` evenly spaced steps of sampling.

    Args:
        codec: of the data.
        calls: number of sampling steps.

    Attributes:
        frames: raw data (B, C, *spatial) of up to :data:`GRID` samples per snapshot, on the CPU.
        finished: True once the first batch is complete; later batches are ignored.
    """

    def __init__(self, codec: Codec, calls: int) -> None:
        self.codec = codec
        self._steps = {round(i * calls / min(calls, FRAMES)) for i in range(1, FRAMES + 1)}
        self.frames: list[Tensor] = []
        self.finished = False

    def record(self, done: int, total: int, x: Tensor) -> None:
        """Append the batch x (B, C, *spatial), in model space, after step ``done`` of ``total``."""
        if done in self._steps and not self.finished:
            self.frames.append(self.codec.decode(x[:GRID]).cpu())
        self.finished |= done == total


def on_step(bar: tqdm, trajectory: Trajectory | None = None) -> OnStep:
    """Return a callback of sampling that advances a progress bar and records a trajectory."""

    def after(done: int, total: int, x: Tensor) -> None:
        bar.update()
        if trajectory is not None:
            trajectory.record(done, total, x)

    return after
