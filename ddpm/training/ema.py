"""The exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from ema_pytorch import EMA as LibraryEMA
from torch import Tensor, nn

from ddpm.errors import require
from ddpm.training.options import ABOVE_0, Options, option

_POWER = 2 / 3  # of the warm-up


@dataclass(frozen=True, kw_only=True)
class EMAOptions(Options):
    """Options of the moving average of the weights, see :class:`EMA`.

    Attributes:
        ema_decay: final decay per optimizer step, in [0, 1).
        ema_warmup: start with a smaller decay.
        ema_window: largest window during the warm-up, as a share of the steps so far; None = no
            limit.
    """

    ema_decay: float = 0.9999
    ema_warmup: bool = True
    ema_window: float | None = option(0.1, legacy=None)

    def _validate(self) -> None:
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "must be in [0, 1)")
        window = self.ema_window
        require(window is None or window > 0, "ema_window", window, ABOVE_0)


class EMA:
    """Exponential moving average of the parameters of a network, with a warm-up.

    The decay of update n = 0, 1, ... is ``min(decay, 1 - (1 + n)**(-2/3))``, ema-pytorch's
    warm-up: 0, a copy, at the first, 0.954 at the 100th, 0.99 at the 1,000th, 0.9978 at the
    10,000th. Without it the average would be mostly the first weights for ``1 / (1 - decay)``
    updates. With ``window`` the decay is also at most ``1 - 1 / (1 + window * n)``, so that the
    average is over at most that share of the updates so far: in a run of a few hundred updates
    the warm-up alone would average over a fifth of them.

    Args:
        model: the bare network, before any wrapper.
        decay: the final decay per update, in [0, 1).
        warmup: False uses ``decay`` from the second update on; the first is always a copy.
        window: largest ``1 / (1 - decay)`` during the warm-up, as a share of the updates so far;
            None = that of the warm-up alone.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        decay: float,
        warmup: bool = True,
        window: float | None = None,
    ) -> None:
        self._decay, self._warmup = decay, warmup
        self._window = window if warmup else None
        averaged = LibraryEMA(model, include_online_model=False).ema_model
        assert isinstance(averaged, nn.Module)
        self._model = averaged.eval()
        # The library's update visits each module, and reads its counters from tensors; that takes
        # several times as long as the single operation on these lists.
        self._averaged, self._current = _weights(averaged), _weights(model)
        pairs = zip(averaged.modules(), model.modules(), strict=True)
        self._with_buffers = [pair for pair in pairs if any(True for _ in pair[1].buffers(False))]
        self._step, self._initialized = 0, False

    @property
    def model(self) -> nn.Module:
        """The averaged network, always in eval mode."""
        return self._model

    @property
    def decay(self) -> float:
        """Decay of the last update."""
        return self._decay_of(max(self._step - 1, 0))

    def _decay_of(self, update: int) -> float:
        """Return the decay of update n = 0, 1, ..."""
        if update == 0:
            return 0.0
        decay = self._decay
        if self._warmup:
            decay = min(decay, 1 - (1 + update) ** -_POWER)
        if self._window is not None:
            decay = min(decay, 1 - 1 / (1 + self._window * update))
        return decay

    def copy_buffers(self) -> list[Tensor]:
        """Return copies of the current buffers of the network, for a later :meth:`update`."""
        return [buffer.clone() for _, buffer in self._buffers()]

    def _buffers(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the buffers of the averaged network, each with that of the network."""
        for averaged, current in self._with_buffers:
            for name, buffer in current.named_buffers(recurse=False):
                yield averaged.get_buffer(name), buffer

    @torch.no_grad()
    def update(self, buffers: Sequence[Tensor] | None = None) -> None:
        """Update the average with the current weights of the network.

        Args:
            buffers: see :meth:`copy_buffers`; None = the current ones.
        """
        decay = self._decay_of(self._step) if self._initialized else 0.0
        if decay == 0:
            torch._foreach_copy_(self._averaged, self._current)
        else:
            torch._foreach_lerp_(self._averaged, self._current, 1 - decay)
        for index, (averaged, current) in enumerate(self._buffers()):
            averaged.copy_(current if buffers is None else buffers[index])
        self._step, self._initialized = self._step + 1, True

    def state(self) -> dict[str, int]:
        """Return the counters; the weights are ``model.state_dict()``."""
        return {"step": self._step, "initted": int(self._initialized)}

    def load(self, state: dict[str, int], weights: dict[str, Tensor]) -> None:
        """Load counters and weights of a checkpoint."""
        self.model.load_state_dict(weights)
        self._step, self._initialized = int(state["step"]), bool(state["initted"])


def _weights(network: nn.Module) -> list[Tensor]:
    """Return the parameters that have an average, all but integers."""
    return [p for p in network.parameters() if has_average(p)]


def has_average(parameter: Tensor) -> bool:
    """Return True unless the values are integers."""
    return parameter.is_floating_point() or parameter.is_complex()
