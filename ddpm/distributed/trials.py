"""Parts of the trials that choose precision and compilation."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

FASTER = 0.95
"""Fraction to which a choice has to shorten a step or a call."""


def relative_distance(values: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """Return the norm of the difference over the norm of ``expected``; NaN if one is not finite."""
    difference = norm = 0.0
    for a, b in zip(values, expected, strict=True):
        difference += float((a.double() - b.double()).square().sum())
        norm += float(b.double().square().sum())
    return difference**0.5 / max(norm**0.5, 1e-30)


def undo_compilation(network: nn.Module) -> None:
    """Undo ``network.compile()``, for which torch has no public method."""
    network._compiled_call_impl = None  # pyright: ignore
