"""How raw values become those of model space, -1..1, and come back: what the codecs are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ddpm.errors import ConfigError


@dataclass(frozen=True)
class Bytes:
    """Raw uint8 0..255 is -1..1."""

    def encode(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw uint8 to float32 in -1..1."""
        return raw.float() / 127.5 - 1

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Model space to uint8: the nearest of the 256 values, clamped to 0 and 255."""
        return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Range:
    """Raw float32 from ``low`` to ``high`` is -1..1; never clamped. Raises ConfigError."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not -np.inf < self.low < self.high < np.inf:
            raise ConfigError("low", self.low, f"must be finite and less than high={self.high}")

    def encode(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw values to float32, ``low`` to -1 and ``high`` to 1."""
        return (raw.float() - self.low) / (self.high - self.low) * 2 - 1

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Model space to raw float32."""
        return (x.float() + 1) / 2 * (self.high - self.low) + self.low


@dataclass(frozen=True)
class Whole(Range):
    """Raw whole numbers, as float32, from ``low`` to ``high`` are -1..1. Raises ConfigError."""

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Model space to the nearest whole numbers, clamped to ``low`` and ``high``."""
        return super().decode(x).round().clamp(self.low, self.high)
