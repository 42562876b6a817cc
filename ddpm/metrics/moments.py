"""Mean and covariance of features, accumulated batch by batch."""

from __future__ import annotations

import torch
from torch import Tensor

from ddpm.metrics.scores import Statistics, require_size

_ROWS = 1024  # features that are combined at once


class Moments:
    """Count, mean and scatter matrix of features (n, D), in float64.

    Batches are combined pairwise around their own means (Chan et al. 1979), so that a large mean
    costs no digits. The rounding differs from :meth:`Statistics.from_features`, whose mean is a sum
    in float32 as in torch-fidelity.

    Args:
        dim: features per image.

    Raises:
        ConfigError: more features than :data:`ddpm.metrics.scores.LARGEST`.
    """

    def __init__(self, dim: int) -> None:
        require_size(dim)
        self.count, self.dtype = 0, torch.float32
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)
        self._waiting: list[Tensor] = []

    def add(self, features: Tensor) -> None:
        """Add features (n, D)."""
        self.dtype = features.dtype
        self._waiting.append(features)
        if sum(map(len, self._waiting)) >= _ROWS:
            self.settle()

    def settle(self) -> None:
        """Combine all added features into the moments."""
        rows = [each for each in self._waiting if len(each)]
        self._waiting = []
        if rows:
            values = torch.cat(rows).double()
            mean = values.mean(0)
            centred = values - mean
            self.combine(len(values), mean, centred.T @ centred)

    def combine(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        """Add the moments of other features: their count, mean (D,) and scatter matrix (D, D)."""
        if count == 0:
            return
        apart, total = mean - self.mean, self.count + count
        self.scatter += scatter
        self.scatter.addr_(apart, apart, alpha=self.count * count / total)
        self.mean += apart * (count / total)
        self.count = total

    def statistics(self) -> Statistics:
        """Return mean (D,) and covariance (D, D) of at least 2 images."""
        self.settle()
        assert self.count >= 2, self.count
        mean = self.mean.to(self.dtype).numpy()
        return Statistics(mean, (self.scatter / (self.count - 1)).numpy(), self.count)
