"""Entries of the data that are given clean, as conditions, and not drawn."""

from __future__ import annotations

import torch
from torch import Tensor


class Given:
    """Which entries of a sample are given: in training they get no noise and no loss.

    Channels that are given whole are inputs of the network and none of its outputs; of the other
    channels the network answers about every entry, and the given ones do not count.

    Args:
        mask: bool, broadcastable to (C, *spatial) with C entries on its first axis; True where an
            entry is given. None where nothing is.
    """

    def __init__(self, mask: Tensor | None = None) -> None:
        self.mask = mask
        self._copies: dict[tuple[str, torch.device], Tensor] = {}
        whole = None if mask is None else mask.flatten(1).all(dim=1)
        self.channels = [] if whole is None else whole.nonzero().flatten().tolist()
        self._drawn = None if not self.channels else (~whole).nonzero().flatten()  # pyright: ignore

    def __bool__(self) -> bool:
        return self.mask is not None

    def keep(self, x: Tensor, clean: Tensor) -> Tensor:
        """``x`` (B, C, *spatial) with the given entries of ``clean``."""
        if self.mask is None:
            return x
        return torch.where(self._on(x.device, "mask", self.mask), clean, x)

    def _on(self, device: torch.device, name: str, values: Tensor) -> Tensor:
        """Return ``values`` on a device; they are copied there once, since a copy is waited for.

        Not as a tensor of inference mode, where sampling is the first to use them: autograd could
        not save it.
        """
        if (name, device) not in self._copies:
            with torch.inference_mode(False):
                self._copies[name, device] = values.to(device)
        return self._copies[name, device]

    def drawn(self, x: Tensor) -> Tensor:
        """The channels of ``x`` (B, C, *spatial) that the network answers about."""
        return x if self._drawn is None else x[:, self._on(x.device, "drawn", self._drawn)]

    def whole(self, part: Tensor, x: Tensor) -> Tensor:
        """``x`` with ``part`` in place of the channels that :meth:`drawn` takes."""
        if self._drawn is None:
            return part
        drawn = self._on(x.device, "drawn", self._drawn)
        return x.to(part.dtype).index_copy(1, drawn, part)

    def mean(self, each: Tensor) -> Tensor:
        """The mean (B,) of ``each`` (B, drawn channels, *spatial) over what is not given."""
        if self.mask is None:
            return each.flatten(1).mean(1)
        mask = self._on(each.device, "mask", self.mask)
        counted = self.drawn(~mask[None]).expand(1, *each.shape[1:])
        return (each * counted).flatten(1).sum(1) / counted.sum()
