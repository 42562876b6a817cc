"""Result of a training step, and the decision about its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class StepResult:
    """Gradient norm and losses of a step, on this process in M micro-batches of B samples.

    Attributes:
        step, samples: numbers of steps and of samples before it.
        norm: norm of the gradient over all processes, before clipping, ().
        t: timesteps (M, B), integer or real.
        losses: loss per sample (M, B).
        weights: importance weights of the timesteps (M, B); None without importance sampling.
    """

    step: int
    samples: int
    norm: Tensor
    t: Tensor
    losses: Tensor
    weights: Tensor | None


class GradientDecision(NamedTuple):
    """Use of a gradient.

    Attributes:
        use: pass it to the optimizer.
        counts: advance the learning rate and the moving average by a step.
    """

    use: bool
    counts: bool
