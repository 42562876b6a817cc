"""Buffers of a network around passes that count for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def buffers_restored(network: nn.Module) -> Iterator[None]:
    """Restore the buffers of a network, such as running means, after the passes inside."""
    before = [buffer.clone() for buffer in network.buffers()]
    try:
        yield
    finally:
        for buffer, value in zip(network.buffers(), before, strict=True):
            buffer.copy_(value)
