"""The optimizer and its learning rate."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ddpm.errors import require
from ddpm.training.options import ABOVE_0, Options, option

Decay = Literal["constant", "cosine"]

_BATCH, _BATCH_ON_CPU = 128, 16  # on a CPU: more steps in the same time
_LARGE = 10_000_000  # parameters; larger networks need a smaller learning rate
_LR, _LR_LARGE = 1e-3, 2e-4

_MAX_WARMUP = 1000  # updates
_WARMUP_DIVISOR = 20  # the warm-up is one part in 20 of a run


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions(Options):
    """Options of the optimizer, AdamW.

    Attributes:
        lr: learning rate; None = 2e-4, for networks of fewer than 10 million parameters 1e-3.
        lr_warmup: optimizer steps over which the learning rate rises from 0; None = 5 % of
            max_steps, at most 1,000. A resumed run keeps the number that it started with.
        lr_decay: ``constant``, or ``cosine`` to 0 at max_steps.
        weight_decay: decoupled weight decay; 0 = off.
        adam_betas: decay rates of the moments, in [0, 1).
        clip_grad_norm: maximum norm of the gradient; None = no limit.
    """

    lr: float | None = option(None, legacy=2e-4)
    lr_warmup: int | None = option(None, legacy=1000)
    lr_decay: Decay = "constant"
    weight_decay: float = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.999)
    clip_grad_norm: float | None = 1.0

    def _validate(self) -> None:
        good = self.lr is None or 0 < self.lr < math.inf
        require(good, "lr", self.lr, "must be above 0")
        good = self.lr_warmup is None or self.lr_warmup >= 0
        require(good, "lr_warmup", self.lr_warmup, "must be at least 0")
        good = 0 <= self.weight_decay < math.inf
        require(good, "weight_decay", self.weight_decay, "must be 0 (off) or above")
        good = all(0 <= beta < 1 for beta in self.adam_betas)
        require(good, "adam_betas", self.adam_betas, "must both be in [0, 1)")
        limit = self.clip_grad_norm
        require(limit is None or limit > 0, "clip_grad_norm", limit, ABOVE_0)


def _eager(method: Any) -> Any:
    """Return a method of torch's optimizers without its wrappers, which import torch._dynamo."""
    return inspect.unwrap(method)


class AdamW(torch.optim.AdamW):
    """torch's AdamW for eager execution.

    torch wraps these methods for ``torch.compile``, which optimizers here never use. The
    wrappers import torch._dynamo: a second or more at the start of each run.

    Attributes:
        found_inf: 1.0 if the next fused step must be skipped, (), float32, on the device; None = it
            is taken. A gradient scaler sets it, too.
    """

    found_inf: Tensor | None = None

    add_param_group = _eager(torch.optim.AdamW.add_param_group)
    zero_grad = _eager(torch.optim.AdamW.zero_grad)
    state_dict = _eager(torch.optim.AdamW.state_dict)
    load_state_dict = _eager(torch.optim.AdamW.load_state_dict)
    step = torch.no_grad()(_eager(torch.optim.AdamW.step))


def warmup_steps(max_steps: int) -> int:
    """Return the default number of warm-up updates of a run."""
    return min(_MAX_WARMUP, max_steps // _WARMUP_DIVISOR)


def default_batch_size(device: str, parts: int) -> int:
    """Return the default batch size of a run.

    Args:
        device: type of the device.
        parts: number of processes times micro-batches; the batch size is a multiple of it.
    """
    size = _BATCH_ON_CPU if device == "cpu" else _BATCH
    return -(-size // parts) * parts


def default_learning_rate(network: nn.Module) -> float:
    """Return the default learning rate for a network."""
    large = sum(each.numel() for each in network.parameters()) >= _LARGE
    return _LR_LARGE if large else _LR


def learning_rate(update: int, lr: float, *, warmup: int, decay: Decay, max_steps: int) -> float:
    """Return the learning rate of an optimizer update.

    It rises linearly to ``lr`` over ``warmup`` updates, then stays constant, or falls to 0 at
    ``max_steps`` along half a cosine.

    Args:
        update: index of the update, from 0.
        lr: learning rate after the warm-up.
        warmup: number of updates of the warm-up.
        decay: ``constant`` or ``cosine``.
        max_steps: number of updates of the run.
    """
    if update < warmup:
        return lr * (update + 1) / (warmup + 1)
    if decay == "constant":
        return lr
    span = max(max_steps - warmup, 1)
    return lr * 0.5 * (1 + math.cos(math.pi * min((update - warmup) / span, 1)))
