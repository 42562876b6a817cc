"""The optimizer and its learning rate."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from ddpm.errors import require

Decay = Literal["constant", "cosine"]

_BATCH, _BATCH_ON_CPU = 128, 16  # on a CPU: more steps in the same time
_LARGE = 10_000_000  # parameters, from which networks need small steps
_LR, _LR_LARGE = 1e-3, 2e-4

_WARMUP = 1000  # updates at most
_WARMUP_SHARE = 20  # of which the warm-up is one part


def warmup_steps(max_steps: int) -> int:
    """Return the length of the warm-up of a run that does not set one."""
    return min(_WARMUP, max_steps // _WARMUP_SHARE)


def default_batch_size(device: str, parts: int) -> int:
    """Return the batch of a run that does not set one.

    Args:
        device: type of the device.
        parts: processes times micro-batches, of which the batch is a multiple.
    """
    size = _BATCH_ON_CPU if device == "cpu" else _BATCH
    return -(-size // parts) * parts


def default_learning_rate(network: nn.Module) -> float:
    """Return the learning rate of a run that does not set one."""
    large = sum(each.numel() for each in network.parameters()) >= _LARGE
    return _LR_LARGE if large else _LR


def adamw(
    network: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """The optimizer, or a refusal of what it cannot work with."""
    require(0 < lr < math.inf, "lr", lr, "must be above 0")
    good = 0 <= weight_decay < math.inf
    require(good, "weight_decay", weight_decay, "must be 0 (off) or above")
    good = all(0 <= beta < 1 for beta in betas)
    require(good, "adam_betas", betas, "must both be in [0, 1)")
    return torch.optim.AdamW(
        network.parameters(), lr=lr, betas=betas, weight_decay=weight_decay, fused=True
    )


def learning_rate(update: int, lr: float, *, warmup: int, decay: Decay, max_steps: int) -> float:
    """The rate of optimizer update ``update`` (from 0), whatever the processes.

    It rises to ``lr`` over ``warmup`` updates, then stays or falls to 0 at ``max_steps`` along half
    a cosine.
    """
    if update < warmup:
        return lr * (update + 1) / (warmup + 1)
    if decay == "constant":
        return lr
    span = max(max_steps - warmup, 1)
    return lr * 0.5 * (1 + math.cos(math.pi * min((update - warmup) / span, 1)))
