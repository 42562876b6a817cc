"""Report of a gradient that is not finite: the samples and timesteps of its batch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from ddpm.errors import require
from ddpm.files import replacing
from ddpm.training.options import Options, option

_MAX_LISTED = 3


@dataclass(frozen=True, kw_only=True)
class GradientCheckOptions(Options):
    """Options for gradients that are not finite.

    Attributes:
        on_nonfinite: ``stop`` training before such a gradient is used, or ``skip`` the step.
        max_skips: maximum number of consecutive skipped steps.
    """

    on_nonfinite: Literal["stop", "skip"] = option("stop", free=True)
    max_skips: int = option(10, free=True)

    def _validate(self) -> None:
        require(self.max_skips >= 1, "max_skips", self.max_skips, "must be at least 1")


def gather_samples(
    accelerator: Accelerator, t: Tensor, losses: Tensor, indices: Sequence[int]
) -> list[dict[str, Any]]:
    """Return the samples of a batch with their timestep and loss, on every process.

    Args:
        accelerator: of the processes that trained on the batch.
        t: timesteps (M, B) of the micro-batches of this process.
        losses: loss per sample (M, B).
        indices: indices of the samples of the whole batch, ordered by micro-batch, then by
            process.
    """
    mine = torch.stack([t.double(), losses.double()], dim=2)
    everyone = accelerator.gather(mine)
    assert isinstance(everyone, Tensor)
    world, micro = accelerator.num_processes, len(losses)
    ordered = everyone.reshape(world, micro, -1, 2).transpose(0, 1).reshape(-1, 2).tolist()
    size = len(ordered) // (world * micro)
    return [
        {"sample": index, "t": int(step), "loss": loss, "process": place // size % world}
        for place, (index, (step, loss)) in enumerate(zip(indices, ordered, strict=True))
    ]


def describe(samples: Sequence[dict[str, Any]]) -> str:
    """Return a description of the first samples whose loss is not finite."""
    broken = [each for each in samples if not math.isfinite(each["loss"])]
    if not broken:
        steps = [each["t"] for each in samples]
        where = f"t from {min(steps)} to {max(steps)}"
        return f"every loss is finite, {where}: the backward pass overflowed"
    words = [f"loss {each['loss']} of sample {each['sample']} at t={each['t']}" for each in broken]
    more = f" and {len(words) - _MAX_LISTED} more" if len(words) > _MAX_LISTED else ""
    return ", ".join(words[:_MAX_LISTED]) + more


def dump(folder: Path, step: int, samples: Sequence[dict[str, Any]]) -> Path:
    """Write all samples of the batch to a file in the run folder; return its path."""
    path = folder / f"nonfinite-step-{step:08d}.json"
    plain = [
        {**each, "loss": each["loss"] if math.isfinite(each["loss"]) else str(each["loss"])}
        for each in samples
    ]
    with replacing(path) as aside:
        aside.write_text(json.dumps({"step": step, "batch": plain}, indent=1), encoding="utf-8")
    return path
