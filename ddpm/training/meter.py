"""Running means of the loss."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

QUARTERS = tuple(f"loss_q{i}" for i in range(4))  # of t, from the clean end
LOGGED = ("loss", *QUARTERS)  # what training knows of itself, without any evaluation


class Meter:
    """Means since the last reading, kept on the device so that no step waits for them.

    Args:
        accelerator: whose processes are averaged over.
        num_steps: T, cut into four quarters.
    """

    def __init__(self, accelerator: Accelerator, num_steps: int) -> None:
        self.accelerator, self.num_steps = accelerator, num_steps
        self._clear()

    def _clear(self) -> None:
        self.sums = torch.zeros(2, 4, dtype=torch.float64, device=self.accelerator.device)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave the time until now out of the speed."""
        self.began, self.counted = time.perf_counter(), 0

    def add(self, losses: Tensor, t: Tensor, weights: Tensor | None = None) -> None:
        """Add losses of timesteps t, with importance weights; all are of the same shape."""
        losses, quarter = losses.flatten(), t.flatten() * 4 // self.num_steps
        share = torch.ones_like(losses) if weights is None else weights.flatten()
        both = torch.stack([losses.double() * share, share.double()])
        both = both.where(losses.isfinite(), 0.0)  # those are counted as skipped steps
        self.sums.index_add_(1, quarter, both)
        self.counted += len(losses)

    def read(self) -> dict[str, Any]:
        """Mean loss, the same by quarter of t (None where none was drawn), samples a second.

        Losses that are not finite are left out.

        With importance weights they are weighted means: what uniform steps would give.
        """
        reduced = self.accelerator.reduce(self.sums, reduction="sum")
        assert isinstance(reduced, Tensor)
        total, count = reduced.tolist()
        speed = self.counted * self.accelerator.num_processes / (time.perf_counter() - self.began)
        quarters = {q: s / n if n else None for q, s, n in zip(QUARTERS, total, count, strict=True)}
        loss = sum(total) / sum(count) if sum(count) else math.nan
        self._clear()
        return {"loss": loss, **quarters, "samples_per_second": speed}
