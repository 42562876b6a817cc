"""Embeddings of timesteps, computed in float32 or better in a network of any type.

The phase of a timestep is up to T radians; in bfloat16, whose numbers have 8 bits, it would be
wrong by radians.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.models.layers import at_least_float32


class Float32Module(nn.Module):
    """Module whose own parameters and buffers remain in float32 when a network is cast to less.

    ``network.bfloat16()`` and ``network.to(torch.bfloat16)`` do not change them,
    ``network.double()`` does.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            wide = torch.promote_types(result.dtype, torch.float32) == result.dtype
            return result if wide else tensor.to(result.device)

        return super()._apply(keep, recurse)


class SinusoidalEmbedding(Float32Module):
    """Sines and cosines of the timestep at geometric frequencies (Vaswani 2017, 3.5).

    The frequencies are ``max_period ** -(i / n)`` for i = 0..dim//2-1. Two conventions exist:
    OpenAI's code has n = dim//2 and the cosines first, denoising-diffusion-pytorch has
    n = dim//2 - 1 (``reach_end``: the last frequency is exactly ``1 / max_period``) and the sines
    first. An odd ``dim`` is padded with a zero.
    """

    frequencies: Tensor

    def __init__(
        self, dim: int, *, max_period: float = 10000, cos_first: bool, reach_end: bool
    ) -> None:
        super().__init__()
        self.dim, self.cos_first = dim, cos_first
        half = dim // 2
        steps = torch.arange(half, dtype=torch.float64) / (half - 1 if reach_end else half)
        frequencies = torch.exp(-math.log(max_period) * steps).float()
        # Not persistent: the state dicts of the original implementations do not contain it.
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """Return embeddings ``(B, dim)`` of timesteps ``(B,)``, integer or real, as ``dtype``."""
        angles = t.to(self.frequencies.dtype)[:, None] * self.frequencies[None]
        sin, cos = angles.sin(), angles.cos()
        embedding = torch.cat((cos, sin) if self.cos_first else (sin, cos), dim=1)
        return (F.pad(embedding, (0, 1)) if self.dim % 2 else embedding).to(dtype)


class FourierEmbedding(Float32Module):
    """The timestep, and its sines and cosines at ``dim // 2`` random frequencies.

    The frequencies ``weights`` are drawn from N(0, 1), and trained if ``learned`` (Tancik 2020,
    "Fourier Features"; the timestep features of v-diffusion).
    """

    def __init__(self, dim: int, *, learned: bool) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(dim // 2), requires_grad=learned)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """Return embeddings ``(B, 1 + dim)`` of timesteps ``(B,)``, as ``dtype``."""
        weights = at_least_float32(self.weights)  # a state dict may be assigned in another type
        t = t.to(weights.dtype)[:, None]
        angles = t * weights[None] * (2 * math.pi)
        return torch.cat((t, angles.sin(), angles.cos()), dim=1).to(dtype)
