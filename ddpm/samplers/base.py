"""The sampling loop and its timestep grids."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import accumulate, pairwise, repeat
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ddpm.diffusion import Clip, DenoiserProtocol, Prediction
from ddpm.errors import ConfigError, require

Spacing = Literal["uniform", "quadratic", "trailing"]
RandnLike = Callable[[Tensor], Tensor]
Denoise = Callable[[Tensor, int], Prediction]
OnStep = Callable[[int, int, Tensor], None]
Steps = int | str | tuple[int, ...] | None


class Sampler(ABC):
    """Base class of samplers. Subclasses implement :meth:`step`.

    Args:
        steps: network calls from pure noise to data, 1 to T; null = the sampler's default. Also in
            improved-diffusion's notation: ``ddim50`` for an even stride from timestep 0, and
            ``[10,15,20]`` for the number of steps in each of equal sections; see
            :func:`respaced_timesteps`.
        spacing: of the visited timesteps. ``uniform`` goes from T-1 to 0 in equal strides, rounded
            as in improved-diffusion's respacing; ``quadratic`` is denser near the data (Song et
            al. 2020, appendix D.2); ``trailing`` ends one stride above 0, as in
            denoising-diffusion-pytorch. All end with a step to clean data.
        clip: see :class:`ddpm.diffusion.Denoiser`.
        dynamic_quantile: see :class:`ddpm.diffusion.Denoiser`.

    Raises:
        ConfigError: an option outside its range.
    """

    default_steps: ClassVar[int | None] = None

    def __init__(
        self,
        *,
        steps: Steps = None,
        spacing: Spacing = "uniform",
        clip: Clip = "static",
        dynamic_quantile: float = 0.995,
    ) -> None:
        _check(steps)
        good = 0 < dynamic_quantile <= 1
        require(good, "dynamic_quantile", dynamic_quantile, "must be above 0 and at most 1")
        self.steps = steps
        self.spacing: Spacing = spacing
        self.clip: Clip = clip
        self.dynamic_quantile = dynamic_quantile

    @abstractmethod
    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        t: int,
        s: int,
        denoiser: DenoiserProtocol,
        randn_like: RandnLike,
    ) -> Tensor:
        """Return x_s (B, C, *spatial), float32.

        Args:
            denoise: ``denoise(x, t)`` returns a :class:`~ddpm.diffusion.Prediction`; labels and
                self-conditioning are included.
            x: x_t (B, C, *spatial), float32.
            t: timestep of x.
            s: timestep of the result, lower than t; -1 is clean data.
            denoiser: its ``diffusion`` has the coefficients.
            randn_like: the only source of randomness.
        """

    def timesteps(
        self, start: int, stop: int = -1, *, num_steps: int | None = None
    ) -> list[tuple[int, int]]:
        """Return the steps (t, s), t > s, of a sampling path; each s is the next t.

        The path has the configured number of steps, or fewer if ``start`` and ``stop`` are closer.
        With ``ddim50`` or sections it visits their timesteps within this range; from T-1, which is
        pure noise, it starts at the highest of them.

        Args:
            start: first t.
            stop: last s; -1 is clean data.
            num_steps: T; default ``start + 1``.

        Raises:
            ConfigError: steps in improved-diffusion's notation that do not fit T.
        """
        if isinstance(self.steps, (str, tuple)):
            total = start + 1 if num_steps is None else num_steps
            nodes = [node for node in respaced_timesteps(total, self.steps) if stop < node]
            if start < total - 1 or (not nodes and stop < start):
                nodes = [*(node for node in nodes if node < start), start]
            nodes = [stop, *nodes]
        else:
            nodes = self._nodes(start, stop)
        nodes.reverse()
        return list(pairwise(nodes))

    def _nodes(self, start: int, stop: int) -> list[int]:
        """Return the timesteps of a path with a number of steps, from ``stop`` up to ``start``."""
        assert not isinstance(self.steps, (str, tuple))
        available = start - stop
        count = min(self.steps or self.default_steps or available, available)
        if stop >= 0:
            return spaced_timesteps(stop, start, count + 1, self.spacing)
        if self.spacing == "trailing":
            return [-1, *((i * available) // count - 1 for i in range(1, count + 1))]
        return [-1, *spaced_timesteps(0, start, count, self.spacing)]

    @torch.inference_mode()
    def sample(
        self,
        denoiser: DenoiserProtocol,
        x: Tensor,
        *,
        randn_like: RandnLike,
        start: int | None = None,
        stop: int = -1,
        y: Tensor | None = None,
        condition: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Sample x at ``stop`` from x at ``start``; returns (B, C, *spatial), float32.

        Args:
            denoiser: predicts x0 and the noise.
            x: (B, C, *spatial) at ``start``; standard normal noise for the default start.
            randn_like: draws the noise of stochastic steps.
            start: timestep of x and of the first network call; default T-1.
            stop: timestep of the result; default -1, clean data.
            y: (B,) class labels.
            condition: (B, C, *spatial) clean data in model space, whose conditioning entries
                replace those of x; required if and only if the process has a conditioning mask.
            on_step: called after each step with (finished steps, all steps, current x).
        """
        diffusion = denoiser.diffusion
        mask, total = diffusion.conditioning_mask, diffusion.num_steps
        problem = "a condition is required if and only if the process has a conditioning mask"
        assert (condition is not None) == bool(mask), problem
        pairs = self.timesteps(total - 1 if start is None else start, stop, num_steps=total)
        x = x if condition is None else mask.apply(x, condition)
        previous: Prediction | None = None

        def denoise(x_t: Tensor, t: int) -> Prediction:
            nonlocal previous
            previous = denoiser(x_t, t, None if previous is None else previous.x0, y=y)
            return previous

        for done, (t, s) in enumerate(pairs, start=1):
            x = self.step(denoise, x, t, s, denoiser, randn_like)
            x = x if condition is None else mask.apply(x, condition)
            if on_step is not None:
                on_step(done, len(pairs), x)
        return x


def spaced_timesteps(first: int, last: int, count: int, spacing: Spacing) -> list[int]:
    """Return ``count`` distinct timesteps, ascending from ``first`` to ``last`` inclusive.

    A single one is ``last``. Requires ``count <= last - first + 1``.
    """
    if count == 1:
        return [last]
    if spacing == "quadratic":
        grid = first + np.linspace(0, (last - first) ** 0.5, count) ** 2
        grid[-1] = last
        rising = np.maximum.accumulate(np.floor(grid).astype(int) - np.arange(count))
        return [int(value) for value in rising + np.arange(count)]
    # Summed, not multiplied, and rounded half to even, so that ties round as in the original.
    strides = repeat((last - first) / (count - 1), count - 1)
    return [first + round(value) for value in accumulate(strides, initial=0.0)]


def respaced_timesteps(num_steps: int, steps: str | tuple[int, ...]) -> list[int]:
    """Return the timesteps that improved-diffusion's respacing retains, ascending.

    Args:
        num_steps: T.
        steps: ``ddimN`` for N timesteps in an integer stride from 0; a tuple for the numbers of
            timesteps in equal sections, evenly spaced from the first to the last of each section.

    Raises:
        ConfigError: (key ``steps``) no integer stride gives N timesteps, or a section has fewer
            timesteps than requested.
    """
    if isinstance(steps, str):
        count = int(steps.removeprefix("ddim"))
        for stride in range(1, num_steps + 1):
            timesteps = range(0, num_steps, stride)
            if len(timesteps) == count:
                return list(timesteps)
        remedy = f"use steps={min(count, num_steps)}"
        problem = f"no integer stride selects {count} of {num_steps} steps; {remedy}"
        raise ConfigError("steps", steps, problem)
    size, extra = divmod(num_steps, len(steps))
    timesteps, first = [], 0
    for index, count in enumerate(steps):
        section = size + (1 if index < extra else 0)
        problem = f"section {index + 1} has only {section} steps; request at most {section}"
        require(count <= section, "steps", steps, problem)
        last = first + section - 1
        timesteps += [first] if count == 1 else spaced_timesteps(first, last, count, "uniform")
        first += section
    return timesteps


def _check(steps: Steps) -> None:
    """Raise ConfigError for steps that are invalid for every process."""
    if isinstance(steps, str):
        good = re.fullmatch(r"ddim[1-9][0-9]*", steps) is not None
        problem = "invalid value; expected a number, ddim50, or sections such as [10,15,20]"
        require(good, "steps", steps, problem)
    elif isinstance(steps, tuple):
        good = len(steps) > 0 and all(count >= 1 for count in steps)
        require(good, "steps", steps, "must be sections of at least 1 step each")
    else:
        good = steps is None or steps >= 1
        require(good, "steps", steps, "must be at least 1; null = the default")
