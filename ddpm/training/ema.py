"""The exponential moving average of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ema_pytorch import EMA as LibraryEMA
from torch import Tensor, nn

from ddpm.errors import require
from ddpm.training.options import ABOVE_0, Options, option

_COUNTERS = ("step", "initted")


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


class _Windowed(LibraryEMA):
    """The library's average with an upper limit of the window, see :class:`EMA`."""

    def __init__(self, model: nn.Module, *, window: float | None, **options: Any) -> None:
        super().__init__(model, **options)
        self._window = window

    def get_current_decay(self) -> float:
        """Return the decay of the current update."""
        decay = float(super().get_current_decay())
        if self._window is None:
            return decay
        update = max(int(self.step) - self.update_after_step - 1, 0)
        return min(decay, 1 - 1 / (1 + self._window * update))


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
        self._network = model
        self._ema = _Windowed(
            model,
            window=window if warmup else None,
            beta=decay,
            update_after_step=0,
            update_every=1,
            min_value=0.0 if warmup else decay,
            param_or_buffer_names_no_ema={name for name, _ in model.named_buffers()},
            include_online_model=False,
            use_foreach=True,
        )
        self.model.eval()

    @property
    def model(self) -> nn.Module:
        """The averaged network, always in eval mode."""
        averaged = self._ema.ema_model
        assert isinstance(averaged, nn.Module)
        return averaged

    @property
    def decay(self) -> float:
        """Decay of the last update."""
        return float(self._ema.get_current_decay())

    def update(self) -> None:
        """Update the average with the current weights of the network."""
        self._ema.update()
        # The library skips integer buffers, such as a count of batches.
        for averaged, current in zip(self.model.buffers(), self._network.buffers(), strict=True):
            averaged.copy_(current)

    def state(self) -> dict[str, int]:
        """Return the counters; the weights are ``model.state_dict()``."""
        counters = dict(self._ema.named_buffers(recurse=False))
        return {name: int(counters[name]) for name in _COUNTERS}

    def load(self, state: dict[str, int], weights: dict[str, Tensor]) -> None:
        """Load counters and weights of a checkpoint."""
        self.model.load_state_dict(weights)
        counters = dict(self._ema.named_buffers(recurse=False))
        for name in _COUNTERS:
            counters[name].fill_(state[name])
