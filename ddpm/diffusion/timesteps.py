"""Distributions of the timesteps at which the network is trained."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from ddpm.errors import require


class Timesteps(ABC):
    """Base class of distributions over the timesteps 0 to T-1.

    Importance weights make the expected loss that of uniform timesteps.

    Args:
        num_steps: T.
    """

    adaptive = False
    """True if :meth:`update` requires the losses of training."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    @abstractmethod
    def weights(self) -> Tensor:
        """Return the probability of each timestep, (T,) float64."""

    def draw(self, count: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Sample timesteps with torch's global generator.

        Args:
            count: number of timesteps.
            device: of the results.

        Returns:
            Timesteps (count,) int64 and importance weights ``1 / (T p)`` (count,) float32, None if
            all are 1.
        """
        # On the CPU: multinomial on a GPU needs a cumulative sum, for which several versions of
        # torch have no deterministic kernel (trainer.deterministic).
        p = self.weights()
        t = torch.multinomial(p, count, replacement=True)
        return t.to(device), (1 / (self.num_steps * p[t])).float().to(device)

    def update(self, t: Tensor, losses: Tensor) -> None:  # noqa: B027 - most need no losses
        """Use the unweighted losses (B,) at timesteps t (B,) of all processes."""

    def state(self) -> dict[str, Any]:
        """Return the state that a checkpoint stores."""
        return {}

    def load(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Restore the state that :meth:`state` returned."""


class Uniform(Timesteps):
    """The uniform distribution."""

    def weights(self) -> Tensor:
        """Return ``1 / T`` for each timestep, (T,) float64."""
        return torch.full((self.num_steps,), 1 / self.num_steps, dtype=torch.float64)

    def draw(self, count: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Sample timesteps (count,) int64, without importance weights."""
        return torch.randint(0, self.num_steps, (count,), device=device), None


class LossSecondMoment(Timesteps):
    """Distribution in proportion to the root mean square of the recent losses of each timestep.

    Importance sampling for the variational bound, whose terms differ by orders of magnitude
    (Nichol & Dhariwal 2021, section 3.3). It is uniform until the history of every timestep is
    full.

    Args:
        num_steps: T.
        history_per_term: number of stored losses per timestep.
        uniform_prob: share of the probability that is distributed uniformly, in (0, 1].

    Raises:
        ConfigError: an option outside its range.
    """

    adaptive = True

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
        """Return the probability of each timestep, (T,) float64."""
        share = 1 / self.num_steps
        moment = (self._history**2).mean(dim=1).sqrt()
        if bool((self._counts < self.history_per_term).any()) or float(moment.sum()) == 0:
            return torch.full((self.num_steps,), share, dtype=torch.float64)
        return moment / moment.sum() * (1 - self.uniform_prob) + self.uniform_prob * share

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Append losses (B,) at timesteps t (B,) to the histories, which drop their oldest.

        Losses that are not finite, the result of overflow in half precision, are ignored.
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
        """Return the histories and the number of losses in each."""
        return {"history": self._history.clone(), "counts": self._counts.clone()}

    def load(self, state: dict[str, Any]) -> None:
        """Restore the histories.

        Raises:
            ValueError: histories of another T or length.
        """
        if state["history"].shape != self._history.shape:
            shapes = tuple(state["history"].shape), tuple(self._history.shape)
            raise ValueError(f"the history has shape {shapes[0]}; expected {shapes[1]}")
        self._history.copy_(state["history"])
        self._counts.copy_(state["counts"])
