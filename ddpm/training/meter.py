"""Running means of the loss."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

_MAX_PENDING = 256  # steps whose losses are kept

QUARTERS = tuple(f"loss_q{i}" for i in range(4))  # quarters of the timesteps, from the clean end
LOGGED = ("loss", *QUARTERS)  # losses that training logs without an evaluation


class Meter:
    """Mean losses since the last :meth:`read`, on the device, so that no step waits for them.

    The losses of several steps are added up together: one step costs no operation.

    Args:
        accelerator: of the processes to average over.
        num_steps: number of timesteps T, divided into four quarters.
    """

    def __init__(self, accelerator: Accelerator, num_steps: int) -> None:
        self.accelerator, self.num_steps = accelerator, num_steps
        self._clear()

    def _clear(self) -> None:
        self.sums = torch.zeros(2, 4, dtype=torch.float64, device=self.accelerator.device)
        self._pending: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        """Exclude the time until now from the speed."""
        self.began, self.counted = time.perf_counter(), 0

    def add(self, losses: Tensor, t: Tensor, weights: Tensor | None = None) -> None:
        """Add losses of times t, with importance weights; all have the same shape."""
        self._pending.append((losses, t, weights))
        self.counted += losses.numel()
        if len(self._pending) == _MAX_PENDING:
            self._add_pending()

    def _add_pending(self) -> None:
        """Add the losses of the pending steps to the sums."""
        if not self._pending:
            return
        losses = torch.cat([losses.flatten() for losses, _, _ in self._pending])
        quarter = torch.cat([t.flatten() for _, t, _ in self._pending]) * 4 // self.num_steps
        share = torch.cat([_weights_of(each).flatten() for each in self._pending])
        both = torch.stack([losses.double() * share, share.double()])
        both = both.where(losses.isfinite(), 0.0)  # these are counted as skipped steps
        self.sums.index_add_(1, quarter.long(), both)
        self._pending.clear()

    def read(self) -> dict[str, Any]:
        """Return the mean loss, the mean per quarter of t, and samples per second; then reset.

        Quarters without samples are None. Losses that are not finite are excluded. With importance
        weights the means are weighted, and estimate those of uniform timesteps.
        """
        self._add_pending()
        reduced = self.accelerator.reduce(self.sums, reduction="sum")
        assert isinstance(reduced, Tensor)
        total, count = reduced.tolist()
        speed = self.counted * self.accelerator.num_processes / (time.perf_counter() - self.began)
        quarters = {q: s / n if n else None for q, s, n in zip(QUARTERS, total, count, strict=True)}
        loss = sum(total) / sum(count) if sum(count) else math.nan
        self._clear()
        return {"loss": loss, **quarters, "samples_per_second": speed}


def _weights_of(step: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
    """Return the importance weights of a step, 1 without."""
    losses, _, weights = step
    return torch.ones_like(losses) if weights is None else weights
