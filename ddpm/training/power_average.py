"""Averages of the weights from which others are computed after the training: post-hoc EMA."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ddpm.errors import require
from ddpm.training.ema import has_average
from ddpm.training.options import Options, option
from ddpm.training.power_profile import MAX_SIGMA_REL, Profile, gamma

NUM_SNAPSHOTS = 20  # of a run, where the user sets no interval


@dataclass(frozen=True, kw_only=True)
class PosthocOptions(Options):
    """Options of the averages for ``ddpm-average``, see :class:`PowerAverages`.

    Attributes:
        posthoc_ema: relative standard deviations (sigma_rel) of the profiles; empty = none.
        posthoc_every: optimizer steps between their snapshots; None = a twentieth of max_steps.
    """

    posthoc_ema: tuple[float, ...] = option((), free=True)
    posthoc_every: int | None = option(None, free=True)

    def _validate(self) -> None:
        for each in self.posthoc_ema:
            check_sigma_rel("posthoc_ema", self.posthoc_ema, each)
        distinct = len(set(self.posthoc_ema)) == len(self.posthoc_ema)
        require(distinct, "posthoc_ema", self.posthoc_ema, "must be different numbers")
        every = self.posthoc_every
        require(every is None or every >= 1, "posthoc_every", every, "must be at least 1")

    def snapshot_interval(self, max_steps: int) -> int:
        """Return the optimizer steps between snapshots; 0 = none."""
        every = self.posthoc_every
        interval = math.ceil(max_steps / NUM_SNAPSHOTS) if every is None else every
        return interval if self.posthoc_ema else 0


def check_sigma_rel(key: str, value: Any, sigma_rel: float) -> None:
    """Raise ConfigError for a relative standard deviation that no power function has.

    Args:
        key, value: the option, for the message.
        sigma_rel: the number.
    """
    problem = f"must be above 0 and below {MAX_SIGMA_REL:.3f}, which averages all steps equally"
    require(0 < sigma_rel < MAX_SIGMA_REL, key, value, problem)


@dataclass
class PowerAverage:
    """Average of weights with a power-function profile.

    Attributes:
        sigma_rel: relative standard deviation of the profile.
        weights: the average; that of nothing before the first update.
        start, updates: see :class:`Profile`; 0 before the first update.
    """

    sigma_rel: float
    weights: list[Tensor]
    start: int = 0
    updates: int = 0
    exponent: float = field(init=False)

    def __post_init__(self) -> None:
        self.exponent = gamma(self.sigma_rel) + 1

    @torch.no_grad()
    def update(self, weights: list[Tensor], updates: int) -> None:
        """Add the current weights.

        Args:
            weights: tensors of the shapes of :attr:`weights`.
            updates: number of updates of the weights so far. It may rise by more than 1: the
                decay is that of all steps since the last call.
        """
        if self.start == 0:
            torch._foreach_copy_(self.weights, weights)
            self.start = updates
        else:
            share = -math.expm1(self.exponent * math.log(self.updates / updates))
            torch._foreach_lerp_(self.weights, weights, share)
        self.updates = updates


class PowerAverages:
    """Power-function averages of the parameters of a network, in its precision and on its device.

    An average that begins late, in a run that is resumed with other options, is that of a training
    whose weights did not change before.

    Args:
        network: the bare network, before any wrapper.
        sigma_rels: relative standard deviations of the profiles; may be empty.
    """

    def __init__(self, network: nn.Module, sigma_rels: Sequence[float]) -> None:
        named = dict(network.named_parameters(remove_duplicate=False)) if sigma_rels else {}
        named = {name: each for name, each in named.items() if has_average(each)}
        self._current: list[Tensor] = list(dict.fromkeys(named.values()))
        index = {each: position for position, each in enumerate(self._current)}
        self._names = {name: index[each] for name, each in named.items()}  # shared ones have two
        self._averages = [
            PowerAverage(each, [p.detach().clone() for p in self._current]) for each in sigma_rels
        ]

    def __len__(self) -> int:
        return len(self._averages)

    @property
    def profiles(self) -> list[Profile]:
        """The profiles of the averages; with 0 updates before the first one."""
        return [Profile(each.sigma_rel, each.updates, each.start) for each in self._averages]

    @property
    def num_bytes(self) -> int:
        """Size of a snapshot of all averages, without buffers."""
        return len(self) * sum(each.numel() * each.element_size() for each in self._current)

    def update(self, updates: int) -> None:
        """Add the current weights of the network, in one operation per average.

        Args:
            updates: number of updates of the weights so far, from 1.
        """
        for each in self._averages:
            each.update(self._current, updates)

    def named(self) -> list[dict[str, Tensor]]:
        """Return the averaged parameters by name, per average."""
        return [
            {name: each.weights[index] for name, index in self._names.items()}
            for each in self._averages
        ]

    def state(self) -> list[dict[str, Any]]:
        """Return the averages and their counters, for a checkpoint."""
        pairs = zip(self.profiles, self.named(), strict=True)
        return [{**profile._asdict(), "weights": weights} for profile, weights in pairs]

    @torch.no_grad()
    def load(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Load the averages of a checkpoint; others begin at the next update."""
        stored = {each["sigma_rel"]: each for each in state}
        for average in self._averages:
            match = stored.get(average.sigma_rel)
            if match is not None:
                average.start, average.updates = int(match["start"]), int(match["updates"])
                for name, index in self._names.items():
                    average.weights[index].copy_(match["weights"][name])
