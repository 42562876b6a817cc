"""Which steps t the network is trained at, and with what weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from ddpm.errors import require


class Timesteps(ABC):
    """A distribution over the steps 0..T-1; the weights keep the mean of the loss what it is.

    Args:
        num_steps: T.
    """

    learns = False
    """Whether :meth:`update` wants to be told the losses."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    @abstractmethod
    def weights(self) -> Tensor:
        """The probability of each step, (T,) float64."""

    def draw(self, count: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Steps (count,) of torch's global generator and importance weights 1 / (T p), None = 1."""
        # On the CPU, where the probabilities are: a GPU draws by a cumulative sum, which several
        # versions of torch refuse under trainer.deterministic.
        p = self.weights()
        t = torch.multinomial(p, count, replacement=True)
        return t.to(device), (1 / (self.num_steps * p[t])).float().to(device)

    def update(self, t: Tensor, losses: Tensor) -> None:  # noqa: B027 - most learn nothing
        """Learn from the unweighted losses (B,) at steps t (B,), those of all processes."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to keep."""
        return {}

    def load(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Take up what :meth:`state` gave."""


class Uniform(Timesteps):
    """Every step as often as any other."""

    def weights(self) -> Tensor:
        """``1 / T`` everywhere."""
        return torch.full((self.num_steps,), 1 / self.num_steps, dtype=torch.float64)

    def draw(self, count: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Steps (count,), all of weight 1."""
        return torch.randint(0, self.num_steps, (count,), device=device), None


class LossSecondMoment(Timesteps):
    """Steps in proportion to the root mean square of their recent losses.

    Importance sampling for the variational bound, whose terms differ by orders of magnitude
    (Nichol & Dhariwal 2021, section 3.3). Until every step has a full history all are alike.

    Args:
        num_steps: T.
        history_per_term: how many losses of each step are remembered.
        uniform_prob: the share of the probability that all steps have alike.
    """

    learns = True

    def __init__(
        self, num_steps: int, *, history_per_term: int = 10, uniform_prob: float = 0.001
    ) -> None:
        super().__init__(num_steps)
        size, share = history_per_term, uniform_prob
        require(size >= 1, "history_per_term", size, "must be at least 1")
        require(0 < share <= 1, "uniform_prob", share, "must be above 0 and at most 1")
        self.history_per_term, self.uniform_prob = size, share
        self._history = torch.zeros(num_steps, size, dtype=torch.float64)
        self._counts = torch.zeros(num_steps, dtype=torch.int64)

    def weights(self) -> Tensor:
        """The probability of each step, (T,) float64."""
        share = 1 / self.num_steps
        moment = (self._history**2).mean(dim=1).sqrt()
        if bool((self._counts < self.history_per_term).any()) or float(moment.sum()) == 0:
            return torch.full((self.num_steps,), share, dtype=torch.float64)
        return moment / moment.sum() * (1 - self.uniform_prob) + self.uniform_prob * share

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Add losses (B,) at steps t (B,) to the histories, in order; the oldest fall out.

        A loss that is not finite, as a half-precision overflow makes, is not remembered.
        """
        for step, loss in zip(t.tolist(), losses.tolist(), strict=True):
            if not math.isfinite(loss):
                continue
            count = int(self._counts[step])
            if count == self.history_per_term:
                self._history[step] = self._history[step].roll(-1)
                count -= 1
            self._history[step, count] = loss
            self._counts[step] = count + 1

    def state(self) -> dict[str, Any]:
        """The histories and how much of each is filled."""
        return {"history": self._history.clone(), "counts": self._counts.clone()}

    def load(self, state: dict[str, Any]) -> None:
        """Take the histories up; ValueError for those of another T or length."""
        if state["history"].shape != self._history.shape:
            shapes = tuple(state["history"].shape), tuple(self._history.shape)
            raise ValueError(f"a history of shape {shapes[0]} is not one of {shapes[1]}")
        self._history.copy_(state["history"])
        self._counts.copy_(state["counts"])
