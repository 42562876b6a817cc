"""Blocks of the denoising-diffusion-pytorch U-Net, and the builder that configures them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.errors import require
from ddpm.models.layers import (
    GroupNorm,
    LayerNorm,
    RMSNorm,
    at_least_float32,
    attend,
    check_dropout,
    check_positive,
    conv_nd,
    linear_attend,
    variance_eps,
)

AttnNorm = Literal["rms", "layer"]


def _block_norm(dims: int, channels: int, groups: int | None) -> nn.Module:
    """Return group normalisation, or root-mean-square normalisation if ``groups`` is None."""
    return RMSNorm(dims, channels) if groups is None else GroupNorm(groups, channels)


class StandardizedConv(nn.Module):
    """Convolution whose kernels have mean 0 and variance 1 per output channel (Qiao 2019)."""

    def __init__(self, dims: int, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = {1: F.conv1d, 2: F.conv2d}[dims]
        # The initialisation and the parameter names of a convolution.
        plain = conv_nd(dims, channels, out_channels, 3)
        assert isinstance(plain.weight, nn.Parameter) and isinstance(plain.bias, nn.Parameter)
        self.weight, self.bias = plain.weight, plain.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, out_channels, *spatial)``; kernels have length 3, padding is zeros."""
        weight = at_least_float32(self.weight)
        inputs = tuple(range(1, weight.ndim))
        var, mean = torch.var_mean(weight, dim=inputs, correction=0, keepdim=True)
        weight = (weight - mean) * (var + variance_eps(x.dtype)).rsqrt()
        return self.conv(x, weight.to(self.weight.dtype), self.bias, padding=1)


class Block(nn.Module):
    """Convolution, normalisation, scale and shift by the embedding, SiLU, dropout."""

    def __init__(
        self,
        dims: int,
        channels: int,
        out_channels: int,
        groups: int | None,
        dropout: float,
        standardized: bool,
    ) -> None:
        super().__init__()
        self.proj = (
            StandardizedConv(dims, channels, out_channels)
            if standardized
            else conv_nd(dims, channels, out_channels, 3, padding=1)
        )
        self.norm = _block_norm(dims, out_channels, groups)
        self.act = nn.SiLU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, scale_shift: Tensor | None = None) -> Tensor:
        """Return ``(B, out_channels, *spatial)``.

        Args:
            x: ``(B, channels, *spatial)``.
            scale_shift: ``(B, 2 * out_channels, 1, ...)``, applied after normalisation; None = not.
        """
        x = self.norm(self.proj(x))
        if scale_shift is not None:
            scale, shift = scale_shift.chunk(2, dim=1)
            x = x * (scale + 1) + shift
        return self.dropout(self.act(x))


class ResnetBlock(nn.Module):
    """Residual block: two blocks, of which the first has the embedding and dropout."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        dims: int,
        embedding_channels: int,
        groups: int | None,
        dropout: float,
        standardized: bool,
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(embedding_channels, 2 * out_channels))
        self.block1 = Block(dims, channels, out_channels, groups, dropout, standardized)
        self.block2 = Block(dims, out_channels, out_channels, groups, 0.0, standardized)
        self.res_conv: nn.Module = nn.Identity()
        if channels != out_channels:
            self.res_conv = conv_nd(dims, channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return ``(B, out_channels, *spatial)`` for ``(B, channels, *spatial)``, ``(B, E)``."""
        scale_shift = self.mlp(embedding)
        scale_shift = scale_shift.reshape(*scale_shift.shape, *(1,) * (x.ndim - 2))
        return self.block2(self.block1(x, scale_shift)) + self.res_conv(x)


class SelfAttention(nn.Module):
    """Attention over all positions and ``num_mem_kv`` learned pairs of key and value.

    ``full`` attention has a softmax over the positions, at quadratic cost. Otherwise it is linear
    in their number, and ``divide_values`` divides the values by that number. The caller adds the
    residual.
    """

    def __init__(
        self,
        dims: int,
        channels: int,
        *,
        full: bool,
        heads: int,
        dim_head: int,
        num_mem_kv: int,
        norm: AttnNorm = "rms",
        divide_values: bool = False,
    ) -> None:
        super().__init__()
        self.full, self.heads, self.divide_values = full, heads, divide_values
        hidden = heads * dim_head
        make_norm = RMSNorm if norm == "rms" else LayerNorm
        self.norm = make_norm(dims, channels)
        self.mem_kv: nn.Parameter | None = None
        if num_mem_kv > 0:
            memory = (num_mem_kv, dim_head) if full else (dim_head, num_mem_kv)
            self.mem_kv = nn.Parameter(torch.randn(2, heads, *memory))
        self.to_qkv = conv_nd(dims, channels, 3 * hidden, 1, bias=False)
        self.to_out = conv_nd(dims, hidden, channels, 1)
        if not full:
            self.to_out = nn.Sequential(self.to_out, make_norm(dims, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual ``(B, C, *spatial)``, without the input."""
        qkv = self.to_qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1))
        if self.full:
            q, k, v = qkv.transpose(-1, -2).unbind(1)
            out = attend(q, *self._prepend_memory(k, v, dim=-2)).transpose(-1, -2)
        else:
            q, k, v = qkv.unbind(1)
            if self.divide_values:
                v = v / v.shape[-1]
            out = linear_attend(q, *self._prepend_memory(k, v, dim=-1))
        return self.to_out(out.flatten(1, 2).unflatten(-1, x.shape[2:]))

    def _prepend_memory(self, k: Tensor, v: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values with the learned ones in front, along axis ``dim``."""
        if self.mem_kv is None:
            return k, v
        memory = self.mem_kv.to(k.dtype)[:, None].expand(-1, k.shape[0], -1, -1, -1)
        return torch.cat((memory[0], k), dim=dim), torch.cat((memory[1], v), dim=dim)


def downsample(dims: int, channels: int, out_channels: int) -> nn.Module:
    """Return layers that halve the size: pixel unshuffling (2-D), strided convolution (1-D)."""
    if dims == 1:
        return conv_nd(dims, channels, out_channels, 4, stride=2, padding=1)
    return nn.Sequential(nn.PixelUnshuffle(2), conv_nd(dims, 4 * channels, out_channels, 1))


def upsample(dims: int, channels: int, out_channels: int) -> nn.Module:
    """Return layers that double the size: nearest-neighbour interpolation and a convolution."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        conv_nd(dims, channels, out_channels, 3, padding=1),
    )


@dataclass(frozen=True)
class UNetBuilder:
    """Architecture of a U-Net, with methods that build its parts."""

    dims: int
    widths: tuple[int, ...]  # of the stem, then of every level
    embedding_channels: int
    full_attn: tuple[bool, ...]
    attn_heads: tuple[int, ...]
    attn_dim_head: tuple[int, ...]
    mid_attn_heads: int | None  # None = as at the innermost level
    mid_attn_dim_head: int | None
    num_mem_kv: int
    groups: int | None
    dropout: float
    weight_standardized: bool
    attn_norm: AttnNorm
    divide_values: bool

    def check(self) -> None:
        """Raise ConfigError for an invalid dropout, memory or attention."""
        check_dropout(self.dropout)
        require(self.num_mem_kv >= 0, "num_mem_kv", self.num_mem_kv, "must be 0 or more")
        check_positive(
            attn_heads=self.attn_heads,
            attn_dim_head=self.attn_dim_head,
            mid_attn_heads=self.mid_attn_heads,
            mid_attn_dim_head=self.mid_attn_dim_head,
        )

    def residual(self, channels: int, out_channels: int) -> ResnetBlock:
        """Return a residual block."""
        return ResnetBlock(
            channels,
            out_channels,
            dims=self.dims,
            embedding_channels=self.embedding_channels,
            groups=self.groups,
            dropout=self.dropout,
            standardized=self.weight_standardized,
        )

    def attention(self, channels: int, level: int) -> SelfAttention:
        """Return the attention of a level."""
        return SelfAttention(
            self.dims,
            channels,
            full=self.full_attn[level],
            heads=self.attn_heads[level],
            dim_head=self.attn_dim_head[level],
            num_mem_kv=self.num_mem_kv,
            norm=self.attn_norm,
            divide_values=self.divide_values,
        )

    def middle_attention(self) -> SelfAttention:
        """Return the attention between encoder and decoder."""
        return SelfAttention(
            self.dims,
            self.widths[-1],
            full=True,
            heads=self.attn_heads[-1] if self.mid_attn_heads is None else self.mid_attn_heads,
            dim_head=self.attn_dim_head[-1]
            if self.mid_attn_dim_head is None
            else self.mid_attn_dim_head,
            num_mem_kv=self.num_mem_kv,
            norm=self.attn_norm,
            divide_values=self.divide_values,
        )

    def down(self, level: int) -> nn.ModuleList:
        """Return an encoder level: two blocks, attention and, except at the last, downsampling."""
        width, next_width = self.widths[level : level + 2]
        last = level == len(self.full_attn) - 1
        return nn.ModuleList(
            [
                self.residual(width, width),
                self.residual(width, width),
                self.attention(width, level),
                conv_nd(self.dims, width, next_width, 3, padding=1)
                if last
                else downsample(self.dims, width, next_width),
            ]
        )

    def up(self, level: int) -> nn.ModuleList:
        """Return a decoder level: two blocks with skips, attention and, except at 0, upsampling."""
        next_width, width = self.widths[level : level + 2]  # the encoder in reverse
        return nn.ModuleList(
            [
                self.residual(width + next_width, width),
                self.residual(width + next_width, width),
                self.attention(width, level),
                conv_nd(self.dims, width, next_width, 3, padding=1)
                if level == 0
                else upsample(self.dims, width, next_width),
            ]
        )
