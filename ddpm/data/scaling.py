"""Scaling of raw values to model space, -1..1, and back.

Each class maps ``low``..``high`` linearly to -1..1. Raw values are whole numbers if ``whole``;
decoding then rounds them, and clamps them to the range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from ddpm.errors import ConfigError


@dataclass(frozen=True)
class ByteScaling:
    """Scaling of uint8 0..255 to -1..1."""

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 255.0
    whole: ClassVar[bool] = True

    def encode(self, raw: torch.Tensor) -> torch.Tensor:
        """Convert uint8 to float32 in -1..1."""
        return raw.to(torch.float32, copy=True).div_(127.5).sub_(1)

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Convert model space to uint8, rounded and clamped."""
        return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class RangeScaling:
    """Scaling of float32 ``low``..``high`` to -1..1, without clamping.

    Raises:
        ConfigError: (key ``low``) the range is empty or infinite.
    """

    low: float
    high: float
    whole: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not -np.inf < self.low < self.high < np.inf:
            raise ConfigError("low", self.low, f"must be finite and less than high={self.high}")

    def encode(self, raw: torch.Tensor) -> torch.Tensor:
        """Convert raw values to float32, ``low`` to -1 and ``high`` to 1."""
        return (raw.float() - self.low).div_(self.high - self.low).mul_(2).sub_(1)

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Convert model space to raw float32."""
        return (x.float() + 1) / 2 * (self.high - self.low) + self.low


@dataclass(frozen=True)
class IntegerScaling(RangeScaling):
    """Scaling of whole numbers in float32 ``low``..``high`` to -1..1.

    Raises:
        ConfigError: (key ``low``) the range is empty or infinite.
    """

    whole: ClassVar[bool] = True

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Convert model space to the nearest whole numbers, clamped to the range."""
        return super().decode(x).round().clamp(self.low, self.high)


Scaling = ByteScaling | RangeScaling
