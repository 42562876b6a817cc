"""Improved pseudo numerical method for diffusion models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ddpm.samplers.base import SamplingPath
from ddpm.samplers.grids import Spacing
from ddpm.samplers.multistep import (
    Combination,
    LinearMultistep,
    integration_weights,
    noise_combination,
)


@dataclass(kw_only=True, eq=False)
class IPNDM(LinearMultistep):
    """iPNDM (Zhang & Chen 2022, arXiv 2204.13902): Adams-Bashforth, one network call per step.

    A step is that of DDIM with a combination of the latest noise predictions. The first steps have
    lower order.

    The Adams-Bashforth weights of the paper, such as 3/2 and -1/2, are those of equal steps in the
    noise level ``sigma / alpha``, for which alone they have their order. For other smooth spacings
    it is at most 2, because the weights ignore that the steps differ; for those of the actual steps
    (``variable``) it holds for every path. In 6 to 20 steps from noise to data, however, whose
    lengths differ a thousandfold, the noise is closer to a polynomial in the position on the path,
    and the published weights have half the error or less on most paths.

    Args:
        steps: network calls; null = 20. See :class:`Sampler`.
        order: 1 (DDIM) to 4; the default is mostly more accurate than 4, the published one.
        weights: ``fixed`` as published, for equal steps; ``variable`` for the actual steps.
    """

    default_steps = 20
    max_order = 4
    predicts = "eps"

    spacing: Spacing = "quadratic"
    order: int = 3
    weights: Literal["variable", "fixed"] = "fixed"

    def combination(self, path: SamplingPath, index: int) -> Combination:
        """Return the factors of step ``index``; the position is 0 at t and 1 at s."""
        order = min(self.order, index + 1)
        if self.weights == "fixed":
            nodes = [-float(k) for k in range(order)]
        else:
            levels = [math.exp(-value) for value in path.lambdas[: index + 2]]
            now, step = levels[index], levels[index + 1] - levels[index]
            finite = [levels[index - k] for k in range(order) if math.isfinite(levels[index - k])]
            nodes = [(level - now) / step for level in finite] or [0.0]
        _, *older = integration_weights(nodes, [1 / (k + 1) for k in range(len(nodes))])
        change = path.sigmas[index + 1] - path.alphas[index + 1] * math.exp(-path.lambdas[index])
        return noise_combination(path, index, [change * weight for weight in older])
