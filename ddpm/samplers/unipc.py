"""UniPC, a predictor-corrector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from ddpm.errors import require
from ddpm.samplers.base import SamplingPath, StepContext
from ddpm.samplers.grids import Spacing
from ddpm.samplers.multistep import Combination, LinearMultistep, integration_weights, phi


class Coefficients(NamedTuple):
    """Factors of a step: of the correction of x_t, None without, and of the prediction of x_s."""

    corrector: Combination | None
    predictor: Combination


@dataclass(kw_only=True, eq=False)
class UniPC(LinearMultistep):
    """UniPC (Zhao et al. 2023, arXiv 2302.04867) with predictions of x0, in 1 to T steps.

    Each step calls the network once, at the x_t of the last predictor; the corrector UniC, which
    started from the same state, then adds predictions to x_t, and the predictor UniP starts from
    the result. The corrector raises the order by one. The first steps have orders 1, 2, ...

    The step to clean data has order 1, which returns the predicted x0: lambda, half the log-SNR, is
    infinite there, and with it ``B(h) = h`` of ``bh1``. The step from zero terminal SNR, where
    lambda is minus infinity, has order 1 and is not corrected. A learned variance is not used.

    Args:
        steps: network calls; null = 20. See :class:`Sampler`.
        order: of the predictor, 1 to 3. 2 is more stable than 3 under guidance.
        variant: B(h) of the paper: ``bh1`` is h and ``bh2`` is exp(h) - 1, in the direction of the
            integration. They differ at order 2 of the predictor and order 1 of the corrector, where
            the coefficient is 1/2 instead of the solution of the paper's equations.
        corrector: correct x_t.
        uncorrected_steps: number of first steps whose results are not corrected, against
            instability under strong guidance.
        lower_order_final: the last steps have orders ..., 2, 1, as published.
    """

    default_steps = 20

    spacing: Spacing = "trailing"
    order: int = 2
    variant: Literal["bh1", "bh2"] = "bh2"
    corrector: bool = True
    uncorrected_steps: int = 0
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        count = self.uncorrected_steps
        require(count >= 0, "uncorrected_steps", count, "must be 0 or above")

    @property
    def history(self) -> int:
        return self.order if self.corrector else self.order - 1

    def coefficients(self, path: SamplingPath) -> list[Coefficients]:
        result, corrector = [], None
        for index in range(len(path)):
            predictor = self.combination(path, index)
            result.append(Coefficients(corrector, predictor))
            finite = math.isfinite(path.lambdas[index + 1] - path.lambdas[index])
            corrector = None
            if self.corrector and index >= self.uncorrected_steps and finite:
                corrected = self.combination(path, index, correct=True).predictions
                pairs = zip(corrected, (0.0, *predictor.predictions), strict=True)
                corrector = Combination(1.0, tuple(new - old for new, old in pairs))
        return result

    def step(self, context: StepContext) -> Tensor:
        """Correct x_t and return x_s; at most 8 tensor operations."""
        context.predict()
        corrector, predictor = context.coefficients
        if corrector is not None:
            context.x = self.combine(context, corrector)
        return self.combine(context, predictor)

    def combination(self, path: SamplingPath, index: int, correct: bool = False) -> Combination:
        """Return the factors for x_s from x_t in step ``index``.

        The first prediction is that at t for the predictor, that at s for the corrector.
        """
        lambdas, (sigma_t, sigma_s) = path.lambdas, path.sigmas[index : index + 2]
        h = lambdas[index + 1] - lambdas[index]
        # Distances of the other predictions from that at t, in units of h.
        order = self.order_at(path, index, self.lower_order_final)
        ratios = [(lambdas[index - i] - lambdas[index]) / h for i in range(1, order)]
        ratios = [1.0, *ratios] if correct else ratios
        if len(ratios) == 1:
            weights = [(h if self.variant == "bh1" else -math.expm1(-h)) / 2]
        else:
            moments = [h * phi(k + 1, -h) * math.factorial(k) for k in range(1, len(ratios) + 1)]
            weights = integration_weights(ratios, moments)
        differences = [weight / ratio for weight, ratio in zip(weights, ratios, strict=True)]
        differences.insert(int(correct), -math.expm1(-h) - sum(differences))
        alpha = path.alphas[index + 1]
        return Combination(sigma_s / sigma_t, tuple(alpha * weight for weight in differences))
