"""Protection of the buffers of a network during discarded forward passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def buffers_restored(network: nn.Module) -> Iterator[None]:
    """Context manager that restores the buffers of a network, such as running means, on exit."""
    before = [buffer.clone() for buffer in network.buffers()]
    try:
        yield
    finally:
        for buffer, value in zip(network.buffers(), before, strict=True):
            buffer.copy_(value)
