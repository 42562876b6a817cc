"""The sampling loop, and the interface of its update rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor

from ddpm.diffusion import (
    Clip,
    Conditioning,
    DenoiserProtocol,
    GaussianDiffusion,
    Prediction,
    Schedule,
    without_gradients,
)
from ddpm.errors import require
from ddpm.samplers.grids import Spacing, Steps, check_steps_option, sampling_times

RandnLike = Callable[[Tensor], Tensor]
OnStep = Callable[[int, int, Tensor], None]


class SamplingPath:
    """Times of a path of N steps, its length, and the process's coefficients there, as floats.

    Attributes:
        diffusion, schedule: the process and its noise schedule.
        times: N+1 real times, descending; the last is -1 for clean data.
        pairs: (t, s) of each step, from t to s.
        alphas, sigmas: ``alpha(t)`` and ``sigma(t)`` per time; 1 and 0 for clean data.
        lambdas: half of ``log_snr(t)`` per time, the lambda of DPM-Solver; infinity for clean data.
    """

    def __init__(self, diffusion: GaussianDiffusion, times: Sequence[float]) -> None:
        self.diffusion, self.schedule, self.times = diffusion, diffusion.schedule, times
        self.pairs = list(pairwise(times))
        self.alphas = [self.schedule.alpha(t) for t in times]
        self.sigmas = [self.schedule.sigma(t) for t in times]
        self.lambdas = [self.schedule.log_snr(t) / 2 for t in times]

    def __len__(self) -> int:
        return len(self.pairs)


@dataclass
class StepContext:
    """Inputs of one step of a sampling path.

    Attributes:
        x: x_t (B, C, *spatial), float32.
        index: of the step, from 0.
        path: times and their coefficients.
        coefficients: of this step, see :meth:`Sampler.coefficients`.
        denoise: ``denoise(x, t)`` calls the network, with conditioning and self-conditioning.
        randn_like: the only source of randomness.
        predictions: of :meth:`predict` in this and the preceding steps, the newest first.
        t, s: times of x and of the result, of which -1 is clean data.
        diffusion, schedule: those of the path.
    """

    x: Tensor
    index: int
    path: SamplingPath
    coefficients: Any
    denoise: Callable[[Tensor, float], Prediction]
    randn_like: RandnLike
    predictions: list[Prediction] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.t, self.s = self.path.pairs[self.index]
        self.diffusion, self.schedule = self.path.diffusion, self.path.schedule

    def predict(self) -> Prediction:
        """Call the network at x and t; the prediction becomes the first of ``predictions``."""
        self.predictions.insert(0, self.denoise(self.x, self.t))
        return self.predictions[0]


@dataclass(kw_only=True, eq=False)
class Sampler(ABC):
    """Base class of samplers. Subclasses implement :meth:`step`.

    A sampler has options and no state: a step depends on its :class:`StepContext` only.

    Args:
        steps: number of steps from pure noise to data, 1 to T, with one network call each unless
            the class says otherwise; null = the sampler's default. Also in improved-diffusion's
            notation: ``ddim50`` for an even stride from timestep 0, and ``[10,15,20]`` for the
            number of steps in each of equal sections.
        spacing: of the times. ``uniform`` goes from T-1 to 0 in equal strides, rounded to timesteps
            as in improved-diffusion's respacing; ``quadratic`` is denser near the data (Song et
            al. 2020, appendix D.2); ``trailing`` ends one stride above 0, as in
            denoising-diffusion-pytorch; ``leading`` begins one stride below T, as in diffusers;
            ``log_snr`` is uniform in the log-SNR (Lu et al. 2022), and ``karras`` in
            sigma^(1/7) (Karras et al. 2022), both at real times. All end with a step to clean data.
        clip, dynamic_quantile: see :class:`ddpm.diffusion.Clipping`.
    """

    default_steps: ClassVar[int | None] = None
    """Number of steps for ``steps`` null; None = one per timestep."""

    steps: Steps = None
    spacing: Spacing = "uniform"
    clip: Clip = "static"
    dynamic_quantile: float = 0.995

    def __post_init__(self) -> None:
        check_steps_option(self.steps)
        good, quantile = 0 < self.dynamic_quantile <= 1, self.dynamic_quantile
        require(good, "dynamic_quantile", quantile, "must be above 0 and at most 1")

    @property
    def history(self) -> int:
        """Number of preceding steps whose predictions a step uses."""
        return 0

    def timesteps(
        self, schedule: Schedule, *, start: int | None = None, stop: int = -1
    ) -> list[float]:
        """Return the times of a path, descending from ``start`` (T-1) to ``stop`` (clean data).

        Raises:
            ConfigError: steps in improved-diffusion's notation that do not fit T.
        """
        start = schedule.num_steps - 1 if start is None else start
        steps = self.default_steps if self.steps is None else self.steps
        return sampling_times(schedule, steps, self.spacing, start=start, stop=stop)

    def num_calls(self, num_steps: int, clean: bool = True) -> int:
        """Return the number of network calls of a path, which may end with ``clean`` data."""
        return num_steps

    def coefficients(self, path: SamplingPath) -> Sequence[Any]:
        """Return the coefficients of each step, computed once per path on the host."""
        return [None] * len(path)

    @abstractmethod
    def step(self, context: StepContext) -> Tensor:
        """Return x_s (B, C, *spatial), float32."""

    def sample(
        self,
        denoiser: DenoiserProtocol,
        x: Tensor,
        *,
        randn_like: RandnLike,
        start: int | None = None,
        stop: int = -1,
        times: Sequence[float] | None = None,
        conditioning: Conditioning | None = None,
        condition: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Sample x at ``stop`` from x at ``start``; returns (B, C, *spatial), float32.

        Args:
            denoiser: predicts x0 and the noise.
            x: (B, C, *spatial) at ``start``; standard normal noise for the default start.
            randn_like: draws the noise of stochastic steps.
            start, stop: timesteps of x, default T-1, and of the result, default clean data.
            times: of the path, descending; default those of :meth:`timesteps`.
            conditioning: of the batch; None for an unconditional network.
            condition: (B, C, *spatial) clean data in model space, whose conditioning entries
                replace those of x; required if and only if the process has a conditioning mask.
            on_step: called after each step, once per network call of the step, with (finished
                calls, all calls, current x).
        """
        mask = denoiser.diffusion.conditioning_mask
        problem = "a condition is required if and only if the process has a conditioning mask"
        assert (condition is not None) == bool(mask), problem
        if times is None:
            times = self.timesteps(denoiser.diffusion.schedule, start=start, stop=stop)
        path = SamplingPath(denoiser.diffusion, times)
        total = self.num_calls(len(path), clean=times[-1] < 0)
        denoise, reported, predictions = _NetworkCalls(denoiser, conditioning), 0, []
        with without_gradients(denoiser):
            x = x if condition is None else mask.apply(x, condition)
            for index, factors in enumerate(self.coefficients(path)):
                context = StepContext(x, index, path, factors, denoise, randn_like, predictions)
                x = self.step(context)
                x = x if condition is None else mask.apply(x, condition)
                del predictions[self.history :]
                while on_step is not None and reported < denoise.count:
                    reported += 1
                    on_step(reported, total, x)
        return x


class _NetworkCalls:
    """Calls of a denoiser, each with the preceding prediction of x0 for self-conditioning."""

    def __init__(self, denoiser: DenoiserProtocol, conditioning: Conditioning | None) -> None:
        self.denoiser, self.conditioning = denoiser, conditioning
        self.count, self.previous_x0 = 0, None

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        self.count += 1
        prediction = self.denoiser(x_t, t, self.previous_x0, self.conditioning)
        self.previous_x0 = prediction.x0
        return prediction
