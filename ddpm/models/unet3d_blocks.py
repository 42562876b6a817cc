"""Blocks of the video U-Nets, and the builder that configures them.

Inputs and outputs are ``(B, C, F, H, W)``: F frames of H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddpm.models.layers import GroupNorm, at_least_float32, unit_vectors
from ddpm.models.unet3d_attention import (
    SPATIAL_DIM_HEAD,
    SpatialAttention,
    SpatialLinearAttention,
    TemporalAttention,
)


def conv3d(channels: int, out_channels: int, kernel: tuple[int, int, int]) -> nn.Conv3d:
    """Return a convolution that preserves the size; ``kernel`` is odd (F, H, W)."""
    frames, height, width = (n // 2 for n in kernel)
    return nn.Conv3d(channels, out_channels, kernel, padding=(frames, height, width))


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the channels of each position (Zhang, Sennrich 2019).

    Unlike that of ``layers.RMSNorm``, the gain has the shape ``(C, 1, 1, 1)`` of the original.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(B, C, F, H, W)``."""
        unit = unit_vectors(at_least_float32(x))
        return (unit * (self.gamma * math.sqrt(x.shape[1]))).to(x.dtype)


class Block(nn.Module):
    """Convolution, normalisation, scale and shift by the embedding, and SiLU.

    The statistics of group normalisation are over all frames; those of RMS normalisation, used if
    ``groups`` is None, are over the channels of one position.
    """

    def __init__(
        self, channels: int, out_channels: int, kernel: tuple[int, int, int], groups: int | None
    ) -> None:
        super().__init__()
        self.proj = conv3d(channels, out_channels, kernel)
        self.norm = RMSNorm(out_channels) if groups is None else GroupNorm(groups, out_channels)
        self.act = nn.SiLU()

    def forward(self, x: Tensor, scale_shift: Tensor | None = None) -> Tensor:
        """Return ``(B, out_channels, F, H, W)``.

        Args:
            x: ``(B, channels, F, H, W)``.
            scale_shift: ``(B, 2 * out_channels, 1, 1, 1)``, applied after normalisation; None =
                not.
        """
        x = self.norm(self.proj(x))
        if scale_shift is not None:
            scale, shift = scale_shift.chunk(2, dim=1)
            x = x * (scale + 1) + shift
        return self.act(x)


class ResnetBlock(nn.Module):
    """Residual block: two blocks, of which the first has the embedding of time and condition."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        kernel: tuple[int, int, int],
        groups: int | None,
        embedding_channels: int | None,
    ) -> None:
        super().__init__()
        self.mlp: nn.Sequential | None = None
        if embedding_channels is not None:
            self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(embedding_channels, 2 * out_channels))
        self.block1 = Block(channels, out_channels, kernel, groups)
        self.block2 = Block(out_channels, out_channels, kernel, groups)
        self.res_conv: nn.Module = nn.Identity()
        if channels != out_channels:
            self.res_conv = conv3d(channels, out_channels, (1, 1, 1))

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Return ``(B, out_channels, F, H, W)`` for ``(B, channels, F, H, W)``, ``(B, E)``."""
        scale_shift = None
        if self.mlp is not None:
            scale_shift = self.mlp(embedding)[:, :, None, None, None]
        return self.block2(self.block1(x, scale_shift)) + self.res_conv(x)


def _resample(conv: Callable[..., nn.Module], channels: int) -> nn.Module:
    """Return a strided convolution that halves height and width; transposed, it doubles them."""
    return conv(channels, channels, (1, 4, 4), stride=(1, 2, 2), padding=(0, 1, 1))


@dataclass(frozen=True)
class UNet3DBuilder:
    """Architecture of a video U-Net, with methods that build its parts."""

    kernel: tuple[int, int, int]  # of the residual blocks
    widths: tuple[int, ...]  # of the stem, then of every level
    embedding_channels: int  # of the time and the condition together
    groups: int | None
    heads: int
    dim_head: int
    linear_attention: bool

    def residual(self, channels: int, out_channels: int, *, embedded: bool = True) -> ResnetBlock:
        """Return a residual block; ``embedded=False`` builds it without the embedding."""
        return ResnetBlock(
            channels,
            out_channels,
            kernel=self.kernel,
            groups=self.groups,
            embedding_channels=self.embedding_channels if embedded else None,
        )

    def temporal(self, channels: int) -> TemporalAttention:
        """Return attention along time."""
        return TemporalAttention(channels, self.heads, self.dim_head)

    def spatial(self, channels: int) -> SpatialAttention:
        """Return full attention within frames, for the middle."""
        return SpatialAttention(channels, self.heads, SPATIAL_DIM_HEAD)

    def down(self, level: int) -> nn.ModuleList:
        """Return an encoder level: two blocks, attention and, except at the last, downsampling."""
        width, next_width = self.widths[level : level + 2]
        last = level == len(self.widths) - 2
        resample = nn.Identity() if last else _resample(nn.Conv3d, next_width)
        return self._level(width, next_width, resample)

    def up(self, level: int) -> nn.ModuleList:
        """Return a decoder level: two blocks, attention and, except at level 0, upsampling."""
        next_width, width = self.widths[level : level + 2]  # the encoder in reverse
        resample = nn.Identity() if level == 0 else _resample(nn.ConvTranspose3d, next_width)
        return self._level(2 * width, next_width, resample)

    def _level(self, channels: int, out_channels: int, resample: nn.Module) -> nn.ModuleList:
        linear = self.linear_attention
        return nn.ModuleList(
            [
                self.residual(channels, out_channels),
                self.residual(out_channels, out_channels),
                SpatialLinearAttention(out_channels, self.heads) if linear else nn.Identity(),
                self.temporal(out_channels),
                resample,
            ]
        )
