"""The only reverse loop, and the time grids that it walks."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import accumulate, pairwise, repeat
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ddpm.diffusion import Clip, Denoises, Prediction
from ddpm.errors import ConfigError, require

Spacing = Literal["uniform", "quadratic", "trailing"]
RandnLike = Callable[[Tensor], Tensor]
Denoise = Callable[[Tensor, int], Prediction]
OnStep = Callable[[int, int, Tensor], None]
Steps = int | str | tuple[int, ...] | None


class Sampler(ABC):
    """From noise to data in a number of steps; a new sampler writes :meth:`step` and no more.

    Args:
        steps: network calls from pure noise to data, 1 to T; null = the sampler's own default.
            Or as improved-diffusion writes it: ``ddim50`` is an even stride from step 0, and
            ``[10,15,20]`` so many from each of as many equal sections; see :func:`respaced`.
        spacing: which steps are visited. ``uniform`` goes from T-1 to 0 in equal strides, rounded,
            as improved-diffusion's respacing does; ``quadratic`` is denser near the data (Song et
            al. 2020, appendix D.2); ``trailing`` ends a stride above 0, as
            denoising-diffusion-pytorch does. All end with a step to clean data.
        clip: see :class:`ddpm.diffusion.Denoiser`.
        dynamic_quantile: see :class:`ddpm.diffusion.Denoiser`.
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
        self, denoise: Denoise, x: Tensor, t: int, s: int, denoiser: Denoises, randn_like: RandnLike
    ) -> Tensor:
        """From x_t to x_s, both (B, C, *spatial), s < t; s = -1 is clean data.

        Args:
            denoise: ``denoise(x, t)`` gives a :class:`~ddpm.diffusion.Prediction`, with labels
                and self-conditioning seen to.
            x: x_t.
            t: where x is.
            s: where to go.
            denoiser: its ``diffusion`` has the coefficients.
            randn_like: the only source of randomness.
        """

    def timesteps(
        self, start: int, stop: int = -1, *, num_steps: int | None = None
    ) -> list[tuple[int, int]]:
        """Pairs (t, s), t > s, that chain from ``start`` to ``stop``; -1 is clean data.

        Takes the configured number of steps, or as many as there are between the two. With
        ``ddim50`` or sections it visits those of their steps that lie between; a walk from T-1,
        which is pure noise, begins at the highest of them.

        Args:
            start: where x is.
            stop: where to go.
            num_steps: T; default ``start + 1``.

        Raises:
            ConfigError: T does not divide into such steps.
        """
        if isinstance(self.steps, (str, tuple)):
            total = start + 1 if num_steps is None else num_steps
            nodes = [node for node in respaced(total, self.steps) if stop < node]
            if start < total - 1 or (not nodes and stop < start):
                nodes = [*(node for node in nodes if node < start), start]
            nodes = [stop, *nodes]
        else:
            nodes = self._nodes(start, stop)
        nodes.reverse()
        return list(pairwise(nodes))

    def _nodes(self, start: int, stop: int) -> list[int]:
        """The steps of a walk in a number of strides, rising from ``stop`` to ``start``."""
        assert not isinstance(self.steps, (str, tuple))
        available = start - stop
        count = min(self.steps or self.default_steps or available, available)
        if stop >= 0:
            return spaced(stop, start, count + 1, self.spacing)
        if self.spacing == "trailing":
            return [-1, *((i * available) // count - 1 for i in range(1, count + 1))]
        return [-1, *spaced(0, start, count, self.spacing)]

    @torch.inference_mode()
    def sample(
        self,
        denoiser: Denoises,
        x: Tensor,
        *,
        randn_like: RandnLike,
        start: int | None = None,
        stop: int = -1,
        y: Tensor | None = None,
        known: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Walk from x at ``start`` to ``stop``; returns x_stop (B, C, *spatial), float32.

        Args:
            denoiser: what is believed of x_t.
            x: (B, C, *spatial) at ``start``, for the default start standard normal noise.
            randn_like: draws the noise of stochastic steps.
            start: the step that x is at, the first the network is asked about; default T-1.
            stop: the step to end at; default -1, clean data.
            y: (B,) class labels.
            known: (B, C, *spatial) clean data, of which the process keeps the given entries.
            on_step: called after each step with (steps done, steps in all, x after it).
        """
        given, total = denoiser.diffusion.given, denoiser.diffusion.num_steps
        assert (known is not None) == bool(given), "known entries are for a process that has given"
        pairs = self.timesteps(total - 1 if start is None else start, stop, num_steps=total)
        x = x if known is None else given.keep(x, known)
        believed: Prediction | None = None

        def denoise(x_t: Tensor, t: int) -> Prediction:
            nonlocal believed
            believed = denoiser(x_t, t, None if believed is None else believed.x0, y=y)
            return believed

        for done, (t, s) in enumerate(pairs, start=1):
            x = self.step(denoise, x, t, s, denoiser, randn_like)
            x = x if known is None else given.keep(x, known)
            if on_step is not None:
                on_step(done, len(pairs), x)
        return x


def spaced(first: int, last: int, count: int, spacing: Spacing) -> list[int]:
    """``count`` different integers that rise from ``first`` to ``last`` inclusive.

    A single one is ``last``. Needs ``count <= last - first + 1``.
    """
    if count == 1:
        return [last]
    if spacing == "quadratic":
        grid = first + np.linspace(0, (last - first) ** 0.5, count) ** 2
        grid[-1] = last
        rising = np.maximum.accumulate(np.floor(grid).astype(int) - np.arange(count))
        return [int(value) for value in rising + np.arange(count)]
    # Summed, not multiplied, and rounded half to even: ties fall as they do in the original.
    strides = repeat((last - first) / (count - 1), count - 1)
    return [first + round(value) for value in accumulate(strides, initial=0.0)]


def respaced(num_steps: int, steps: str | tuple[int, ...]) -> list[int]:
    """The steps of a process of ``num_steps`` that improved-diffusion's respacing keeps, rising.

    ``ddimN`` is every i-th step from 0, with the smallest whole i that gives N of them; a tuple
    gives so many from each of equal sections, in even strides from its first to its last step.

    Raises:
        ConfigError: (key ``steps``) there is no such stride, or a section has not so many.
    """
    if isinstance(steps, str):
        count = int(steps.removeprefix("ddim"))
        for stride in range(1, num_steps + 1):
            kept = range(0, num_steps, stride)
            if len(kept) == count:
                return list(kept)
        remedy = f"try steps={min(count, num_steps)}"
        problem = f"no whole stride takes {count} of {num_steps} steps; {remedy}"
        raise ConfigError("steps", steps, problem)
    size, extra = divmod(num_steps, len(steps))
    kept, first = [], 0
    for index, count in enumerate(steps):
        section = size + (1 if index < extra else 0)
        problem = f"section {index + 1} of {num_steps} steps has {section}; take at most so many"
        require(count <= section, "steps", steps, problem)
        last = first + section - 1
        kept += [first] if count == 1 else spaced(first, last, count, "uniform")
        first += section
    return kept


def _check(steps: Steps) -> None:
    """Raise ConfigError for steps that no process has."""
    if isinstance(steps, str):
        good = re.fullmatch(r"ddim[1-9][0-9]*", steps) is not None
        problem = "is no number of steps; take a number, ddim50, or sections such as [10,15,20]"
        require(good, "steps", steps, problem)
    elif isinstance(steps, tuple):
        good = len(steps) > 0 and all(count >= 1 for count in steps)
        require(good, "steps", steps, "must be sections of at least 1 step each")
    else:
        good = steps is None or steps >= 1
        require(good, "steps", steps, "must be at least 1; null = the default")
