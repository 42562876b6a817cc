"""Conditioning: inputs of the network besides x_t and its time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Conditioning(dict[str, Tensor]):
    """Mapping from the network's parameters, such as ``y``, to their values for a batch.

    A network that was trained with dropped conditions has a null embedding of its own, which stands
    for "no condition". An empty mapping is an unconditional batch.

    Args:
        values: tensors (B, ...) by name. ``y`` has class numbers, (B,) int64.
        null: value of each name that selects the network's null embedding; for ``y`` it is the
            ``null_label`` of the network. Empty for a network without.
    """

    def __init__(
        self, values: Mapping[str, Tensor] | None = None, null: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(values or {})
        self.null = dict(null or {})

    def to(self, device: torch.device) -> Conditioning:
        """Return the conditioning on a device."""
        return self._map(lambda _, value: value.to(device))

    def dropped(self, rows: Tensor) -> Conditioning:
        """Return the conditioning with the null embedding where ``rows`` (B,) bool is True."""

        def drop(name: str, value: Tensor) -> Tensor:
            if name not in self.null:
                return value
            here = rows.reshape(-1, *[1] * (value.ndim - 1))
            return torch.where(here, self.null[name], value)

        return self._map(drop)

    def unconditional(self) -> Conditioning:
        """Return the conditioning with the null embedding of every name for all samples."""

        def null(name: str, value: Tensor) -> Tensor:
            return torch.full_like(value, self.null[name]) if name in self.null else value

        return self._map(null)

    def followed_by(self, other: Conditioning) -> Conditioning:
        """Return the conditioning of a batch and that of another one after it."""
        return self._map(lambda name, value: torch.cat([value, other[name]]))

    def _map(self, function: Callable[[str, Tensor], Tensor]) -> Conditioning:
        """Return the conditioning with ``function(name, value)`` of each name."""
        return Conditioning({name: function(name, self[name]) for name in self}, self.null)


def class_conditioning(labels: Tensor | None, null: int | None = None) -> Conditioning:
    """Return the conditioning by class numbers (B,) int64; empty for None.

    ``null`` is the label that stands for "no class", the ``null_label`` of the network; None for a
    network that is called with every label.
    """
    if labels is None:
        return Conditioning()
    return Conditioning({"y": labels}, {} if null is None else {"y": null})
