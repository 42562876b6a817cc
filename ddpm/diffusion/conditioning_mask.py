"""The mask of the entries of a sample that are conditions: given clean, not generated."""

from __future__ import annotations

import torch
from torch import Tensor


class ConditioningMask:
    """Mask of the conditioning entries of a sample, which get no noise and no loss.

    A conditioning channel is one whose entries are all conditions: it is an input of the network
    but not an output. In the other, generated channels the network predicts every entry, and the
    predictions of conditioning entries are discarded. Samples are (B, C, *spatial).

    Args:
        mask: bool, broadcastable to (C, *spatial) with C entries on its first axis; True at
            conditioning entries. None = the whole sample is generated.

    Attributes:
        channels: indices of the conditioning channels, ascending.
    """

    def __init__(self, mask: Tensor | None = None) -> None:
        self.mask = mask
        self._copies: dict[tuple[str, torch.device], Tensor] = {}
        full = torch.zeros(0, dtype=torch.bool) if mask is None else mask.flatten(1).all(dim=1)
        self.channels: list[int] = full.nonzero().flatten().tolist()
        self._generated = (~full).nonzero().flatten() if self.channels else None

    def __bool__(self) -> bool:
        return self.mask is not None

    def apply(self, x: Tensor, clean: Tensor) -> Tensor:
        """Return the samples ``x`` with their conditioning entries set to those of ``clean``."""
        if self.mask is None:
            return x
        return torch.where(self._on(x.device, "mask", self.mask), clean, x)

    def _on(self, device: torch.device, name: str, values: Tensor) -> Tensor:
        """Return ``values`` on a device; each is copied once, since a copy synchronizes.

        The copy is not an inference tensor, even if sampling makes it: autograd could not save it.
        """
        if (name, device) not in self._copies:
            with torch.inference_mode(False):
                self._copies[name, device] = values.to(device)
        return self._copies[name, device]

    def select_generated(self, x: Tensor) -> Tensor:
        """Return the generated channels of the samples ``x``."""
        if self._generated is None:
            return x
        return x[:, self._on(x.device, "generated", self._generated)]

    def merge(self, generated: Tensor, x: Tensor) -> Tensor:
        """Return the samples ``x`` with other generated channels; the inverse of the selection."""
        if self._generated is None:
            return generated
        index = self._on(x.device, "generated", self._generated)
        return x.to(generated.dtype).index_copy(1, index, generated)

    def masked_mean(self, values: Tensor) -> Tensor:
        """Return the mean (B,) of (B, generated channels, *spatial) without conditions."""
        if self.mask is None:
            return values.flatten(1).mean(1)
        mask = self._on(values.device, "mask", self.mask)
        counted = self.select_generated(~mask[None]).expand(1, *values.shape[1:])
        return (values * counted).flatten(1).sum(1) / counted.sum()
