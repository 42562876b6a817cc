"""Distributions of the times at which the network is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddpm.diffusion import Schedule
from ddpm.errors import require

Draws = tuple[Tensor, Tensor | None]


def _copied(values: Tensor, device: torch.device) -> Tensor:
    """Return values on a device, without waiting for a GPU."""
    on_host = values.device.type == "cpu"
    pinned = values.pin_memory() if on_host and device.type == "cuda" else values
    return pinned.to(device, non_blocking=True)


@dataclass(frozen=True)
class BatchPart:
    """Part of the batch of an optimizer step: a micro-batch of a process.

    Attributes:
        index: of the part, from 0.
        count: number of parts in the batch.
        uniform: random number in [0, 1), the same in all parts.
    """

    index: int
    count: int
    uniform: float


class Timesteps(ABC):
    """Base class of distributions over the timesteps 0 to T-1.

    Importance weights make the expected loss that of uniform timesteps.

    Args:
        schedule: the noise schedule.
    """

    adaptive = False
    """True if :meth:`update` requires the losses of training."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.num_steps = schedule, schedule.num_steps

    @abstractmethod
    def weights(self) -> Tensor:
        """Return the probability of each timestep, (T,) float64; real times are rounded.

        It is on the device of the losses where it depends on them, else on the CPU.
        """

    def draw(self, count: int, device: torch.device, part: BatchPart | None = None) -> Draws:
        """Sample timesteps with torch's global generator.

        Args:
            count: number of timesteps, the same in all parts of a batch.
            device: of the results.
            part: place of these timesteps in the batch; None = they are the whole batch. By
                default, parts are independent.

        Returns:
            Timesteps (count,) int64, or real times (count,) float32, and importance weights
            ``1 / (T p)`` (count,) float32, None if all are 1.
        """
        p = self.weights()
        uniform = _copied(torch.rand(count, dtype=torch.float64), p.device)
        # Whole numbers: their sum is the same in any order, so that GPUs have a deterministic
        # kernel for the cumulative sum, and the timesteps do not depend on the device.
        ends = (p * 2**52).round().long().cumsum(0)
        t = torch.searchsorted(ends, (uniform * ends[-1]).ceil().long())
        weights = (1 / (self.num_steps * p[t])).float()
        return _copied(t, device), _copied(weights, device)

    def update(self, t: Tensor, losses: Tensor) -> None:  # noqa: B027 - most need no losses
        """Use the unweighted losses (B,) at timesteps t (B,) of all processes."""

    def state(self) -> dict[str, Any]:
        """Return the state that a checkpoint stores."""
        return {}

    def load(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Restore the state that :meth:`state` returned."""


class Uniform(Timesteps):
    """The uniform distribution, without importance weights."""

    def weights(self) -> Tensor:
        return torch.full((self.num_steps,), 1 / self.num_steps, dtype=torch.float64)

    def draw(self, count: int, device: torch.device, part: BatchPart | None = None) -> Draws:
        return torch.randint(0, self.num_steps, (count,), device=device), None


class Stratified(Uniform):
    """The uniform distribution with low discrepancy (Kingma et al. 2021, arXiv 2107.00630, I.1).

    In a batch of N samples over all processes and micro-batches, sample i has the timestep
    ``floor(T (i + u) / N)`` with one random u: each timestep is as probable as with
    :class:`Uniform`, and the mean of the losses of a batch varies less. Each part of the batch has
    every n-th stratum, and is itself stratified.
    """

    def draw(self, count: int, device: torch.device, part: BatchPart | None = None) -> Draws:
        part = BatchPart(0, 1, float(torch.rand(()))) if part is None else part
        strata = torch.arange(count, dtype=torch.float64) * part.count + part.index
        t = self.num_steps * (strata + part.uniform) / (count * part.count)
        return _copied(t.long().clamp(max=self.num_steps - 1), device), None


class _NormalTimes(Timesteps):
    """Base class of densities over real times that are functions of a normal variable.

    They define the loss, without importance weights. The times are real, because solvers call
    the network at real times, and because the law does not depend on the number of timesteps.
    """

    def __init__(self, schedule: Schedule, mean: float, std: float) -> None:
        super().__init__(schedule)
        self._mean, self._std = mean, std

    @abstractmethod
    def _times(self, values: Tensor) -> Tensor:
        """Return the times of values of the normal variable, float64."""

    @abstractmethod
    def _values(self, t: Tensor) -> Tensor:
        """Return the values of the normal variable at times, float64."""

    def weights(self) -> Tensor:
        edges = self._values(torch.arange(self.num_steps - 1, dtype=torch.float64) + 0.5)
        inner = torch.special.ndtr((edges - self._mean) / self._std)
        return torch.cat([torch.zeros(1), inner, torch.ones(1)]).diff()

    def draw(self, count: int, device: torch.device, part: BatchPart | None = None) -> Draws:
        normal = torch.randn(count, dtype=torch.float64)  # on the CPU: the same on every device
        return _copied(self._times(self._mean + self._std * normal).float(), device), None


class LogitNormal(_NormalTimes):
    """Times whose place u in the table has a normal logit (Esser et al. 2024, section 3.1).

    ``t = T u - 1``, at least 0, with ``u = sigmoid(mean + std z)``: on the schedule ``rectified``
    without a shift, u is the time of the flow.

    Args:
        mean: of the logit; below 0 prefers little noise.
        std: standard deviation of the logit, above 0.
    """

    def __init__(self, schedule: Schedule, *, mean: float = 0.0, std: float = 1.0) -> None:
        require(std > 0, "std", std, "must be above 0")
        super().__init__(schedule, mean, std)

    def _times(self, values: Tensor) -> Tensor:
        return (self.num_steps * values.sigmoid() - 1).clamp(min=0)

    def _values(self, t: Tensor) -> Tensor:
        return ((t + 1) / self.num_steps).logit()


class LogNormal(_NormalTimes):
    """Times whose noise level ``sigma / alpha`` is log-normal, as in EDM (Karras et al. 2022).

    Noise levels outside those of the schedule become its first or last timestep.

    Args:
        p_mean: mean of the logarithm.
        p_std: standard deviation of the logarithm, above 0.
    """

    def __init__(self, schedule: Schedule, *, p_mean: float = -1.2, p_std: float = 1.2) -> None:
        require(p_std > 0, "p_std", p_std, "must be above 0")
        super().__init__(schedule, p_mean, p_std)

    def _times(self, values: Tensor) -> Tensor:
        times = [self.schedule.time(-2 * value) for value in values.tolist()]
        return torch.tensor(times, dtype=torch.float64)

    def _values(self, t: Tensor) -> Tensor:
        return -self.schedule.log_snr(t) / 2


class LossSecondMoment(Timesteps):
    """Distribution in proportion to the root mean square of the recent losses of each timestep.

    Importance sampling for the variational bound, whose terms differ by orders of magnitude
    (Nichol & Dhariwal 2021, section 3.3). It is uniform until the history of every timestep is
    full. The state is the histories and the number of losses in each; it is never changed in place.

    Args:
        history_per_term: number of stored losses per timestep.
        uniform_prob: share of the probability that is distributed uniformly, in (0, 1].
    """

    adaptive = True

    def __init__(
        self, schedule: Schedule, *, history_per_term: int = 10, uniform_prob: float = 0.001
    ) -> None:
        super().__init__(schedule)
        size, share = history_per_term, uniform_prob
        require(size >= 1, "history_per_term", size, "must be at least 1")
        require(0 < share <= 1, "uniform_prob", share, "must be above 0 and at most 1")
        self.history_per_term, self.uniform_prob = size, share
        self._history = torch.zeros(self.num_steps, size, dtype=torch.float64)
        self._counts = torch.zeros(self.num_steps, dtype=torch.int64)

    def weights(self) -> Tensor:
        share = 1 / self.num_steps
        moment = (self._history**2).mean(dim=1).sqrt()
        total, is_full = moment.sum(), self._counts.min() == self.history_per_term
        weights = moment / total * (1 - self.uniform_prob) + self.uniform_prob * share
        return torch.where(is_full & (total > 0), weights, share)

    def draw(self, count: int, device: torch.device, part: BatchPart | None = None) -> Draws:
        self._move(device)
        return super().draw(count, device, part)

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Append losses (B,) at timesteps t (B,) to the histories, which drop their oldest.

        Losses that are not finite, the result of overflow in half precision, are ignored. The host
        reads nothing.
        """
        self._move(losses.device)
        size, device = self.history_per_term, losses.device
        t = torch.where(losses.isfinite(), t, self.num_steps)  # behind the last one: ignored
        order = t.argsort(stable=True)
        t, losses = t[order], losses[order].double()
        rows = torch.arange(self.num_steps, device=device)
        first, end = torch.searchsorted(t, rows), torch.searchsorted(t, rows, right=True)
        before, after = self._counts, self._counts + end - first
        # Places of the new history in the old one, which the new losses continue.
        places = torch.arange(size, device=device) + (after - size).clamp(min=0)[:, None]
        old = self._history.gather(1, places.clamp(max=size - 1))
        new = losses[(first - before)[:, None].add(places).clamp(0, len(losses) - 1)]
        is_old, is_used = places < before[:, None], places < after[:, None]
        self._history = torch.where(is_old, old, torch.where(is_used, new, 0.0))
        self._counts = after.clamp(max=size)

    def _move(self, device: torch.device) -> None:
        """Keep the state on a device: that of the losses."""
        self._history, self._counts = self._history.to(device), self._counts.to(device)

    def state(self) -> dict[str, Any]:
        return {"history": self._history.cpu(), "counts": self._counts.cpu()}

    def load(self, state: dict[str, Any]) -> None:
        """Restore the state; raise ValueError if it is that of another T or history length."""
        if state["history"].shape != self._history.shape:
            shapes = tuple(state["history"].shape), tuple(self._history.shape)
            raise ValueError(f"the history has shape {shapes[0]}; expected {shapes[1]}")
        self._history = torch.empty_like(self._history).copy_(state["history"])
        self._counts = torch.empty_like(self._counts).copy_(state["counts"])
