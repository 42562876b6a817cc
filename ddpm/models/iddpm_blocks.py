"""Blocks of OpenAI's two U-Nets, and the builder that configures them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ddpm.models.layers import GroupNorm, attend, avg_pool_nd, conv_nd, zero_module

NUM_GROUPS = 32


def resample_factor(dims: int) -> tuple[int, ...]:
    """Return the downsampling factor of each axis between levels; time, the first of three, has 1.

    The weights of the original video networks require that time is not downsampled.
    """
    return (1, 2, 2) if dims == 3 else (2,) * dims


class Downsample(nn.Module):
    """Halve the spatial axes by a strided convolution, or by average pooling.

    Args:
        dims: number of spatial axes.
        channels: of the input and the output.
        use_conv: False for average pooling.
        padding: zeros on both sides of each axis that the convolution halves; 0 = one at its end.
    """

    def __init__(self, dims: int, channels: int, use_conv: bool, padding: int = 1) -> None:
        super().__init__()
        factor = resample_factor(dims)
        self.op: nn.Module
        self.end_padding: list[int] = []
        if use_conv:
            sides = tuple(1 if n == 1 else padding for n in factor)
            self.op = conv_nd(dims, channels, channels, 3, stride=factor, padding=sides)
            if padding == 0:
                self.end_padding = [zeros for n in reversed(factor) for zeros in (0, int(n > 1))]
        else:
            # The original passes the window in place of the number of axes, and crashes.
            self.op = avg_pool_nd(dims, factor)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, C, *spatial)`` of half the size."""
        return self.op(F.pad(x, self.end_padding) if self.end_padding else x)


class Upsample(nn.Module):
    """Double the spatial axes by nearest-neighbour interpolation, then optionally a convolution."""

    def __init__(self, dims: int, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.scale = [float(n) for n in resample_factor(dims)]
        self.conv = conv_nd(dims, channels, channels, 3, padding=1) if use_conv else None

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, C, *spatial)`` of twice the size."""
        x = F.interpolate(x, scale_factor=self.scale, mode="nearest")
        return x if self.conv is None else self.conv(x)


def _maybe_checkpoint(enabled: bool, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Call ``function``; if ``enabled``, recompute its activations in the backward pass.

    The random state is restored for the recomputation, so that dropout drops the same units. The
    original's checkpointing draws a new mask, and returns the gradient of a different function.
    """
    if enabled and torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)


class ResBlock(nn.Module):
    """Residual block of two convolutions; the embedding shifts, or scales and shifts, the second.

    ``norm`` returns the norm of a number of channels. ``resample``, a module without parameters,
    changes the size of both branches; on the residual branch it acts between the first norm and the
    first convolution (Brock 2018, "BigGAN").
    """

    def __init__(
        self,
        dims: int,
        channels: int,
        out_channels: int,
        embedding_channels: int,
        *,
        dropout: float,
        use_scale_shift_norm: bool,
        use_checkpoint: bool,
        norm: Callable[[int], GroupNorm],
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.use_scale_shift_norm, self.use_checkpoint = use_scale_shift_norm, use_checkpoint
        modulation_channels = 2 * out_channels if use_scale_shift_norm else out_channels
        self.in_layers = nn.Sequential(
            norm(channels),
            nn.SiLU(),
            conv_nd(dims, channels, out_channels, 3, padding=1),
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(embedding_channels, modulation_channels)
        )
        self.out_layers = nn.Sequential(
            norm(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_module(conv_nd(dims, out_channels, out_channels, 3, padding=1)),
        )
        self.resample = nn.Identity() if resample is None else resample
        self.skip_connection: nn.Module = nn.Identity()
        if out_channels != channels:
            self.skip_connection = conv_nd(dims, channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return ``(B, out_channels, *resampled)`` for ``(B, channels, *spatial)``, ``(B, E)``."""
        return _maybe_checkpoint(self.use_checkpoint, self._forward, x, embedding)

    def _forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        norm, activation, conv = self.in_layers
        h = conv(self.resample(activation(norm(x))))
        modulation = self.emb_layers(embedding).to(h.dtype)
        modulation = modulation.reshape(*modulation.shape, *(1,) * (h.ndim - 2))
        if self.use_scale_shift_norm:
            scale, shift = modulation.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
            h = self.out_layers[1:](h)
        else:
            h = self.out_layers(h + modulation)
        return self.skip_connection(self.resample(x)) + h


class AttentionBlock(nn.Module):
    """Residual block of softmax attention over all positions.

    The channels of ``qkv`` are ordered as (heads, 3, channels per head), or with ``qkv_outside`` as
    (3, heads, channels per head). The weights do not reveal which.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        qkv_outside: bool,
        use_checkpoint: bool,
        norm: Callable[[int], GroupNorm],
    ) -> None:
        super().__init__()
        self.num_heads, self.use_checkpoint = num_heads, use_checkpoint
        self.qkv_outside = qkv_outside
        self.norm = norm(channels)
        # Convolutions of length 1, as the original; applied to tokens, which copies less.
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_module(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, C, *spatial)`` for an input of the same shape."""
        return _maybe_checkpoint(self.use_checkpoint, self._forward, x)

    def _forward(self, x: Tensor) -> Tensor:
        axis = 2 if self.qkv_outside else 3
        split = (3, self.num_heads, -1) if self.qkv_outside else (self.num_heads, 3, -1)
        tokens = self.norm(x).flatten(2).mT
        qkv = _apply_to_tokens(self.qkv, tokens).unflatten(-1, split)
        q, k, v = (each.transpose(1, 2) for each in qkv.unbind(axis))
        h = _apply_to_tokens(self.proj_out, attend(q, k, v).transpose(1, 2).flatten(2))
        return (x.flatten(2) + h.mT).reshape(x.shape)


def _apply_to_tokens(conv: nn.Conv1d, tokens: Tensor) -> Tensor:
    """Apply a convolution of length 1 to tokens ``(B, N, C)``."""
    return F.linear(tokens, conv.weight.squeeze(-1), conv.bias)


class TimestepSequential(nn.Sequential):
    """Sequence of layers, of which the residual blocks receive the embedding."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        """Apply all layers to ``(B, C, *spatial)``, with the embedding ``(B, E)``."""
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x


@dataclass(frozen=True)
class IDDPMUNetBuilder:
    """Architecture of the network, with methods that build its parts."""

    dims: int
    model_channels: int
    num_res_blocks: int
    attention_rates: tuple[int, ...]
    channel_mult: tuple[float, ...]
    scale_stem: bool
    dropout: float
    conv_resample: bool
    resblock_updown: bool
    num_heads: int
    num_heads_upsample: int
    num_head_channels: int | None
    use_new_attention_order: bool
    use_scale_shift_norm: bool
    use_checkpoint: bool
    norm_num_groups: int
    norm_eps: float
    cos_first: bool
    reach_end: bool
    downsample_padding: int

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [int(self.model_channels * mult) for mult in self.channel_mult]

    @property
    def factors(self) -> tuple[int, ...]:
        """Divisor of each spatial axis of the data."""
        return tuple(n ** (len(self.channel_mult) - 1) for n in resample_factor(self.dims))

    @property
    def stem_channels(self) -> int:
        """Output channels of the first convolution."""
        return self.widths[0] if self.scale_stem else self.model_channels

    @property
    def embedding_channels(self) -> int:
        """Channels of the time embedding."""
        return 4 * self.model_channels

    def attends(self, level: int) -> bool:
        """Return whether a level, whose downsampling rate is 2**level, has attention."""
        return 2**level in self.attention_rates

    def heads(self, channels: int, num_heads: int) -> int:
        """Return the number of heads of a block; ``num_head_channels`` has priority."""
        return num_heads if self.num_head_channels is None else channels // self.num_head_channels

    def norm(self, channels: int) -> GroupNorm:
        """Return a norm."""
        return GroupNorm(self.norm_num_groups, channels, self.norm_eps)

    def residual(
        self, channels: int, out_channels: int, resample: nn.Module | None = None
    ) -> ResBlock:
        """Return a residual block."""
        return ResBlock(
            self.dims,
            channels,
            out_channels,
            self.embedding_channels,
            dropout=self.dropout,
            use_scale_shift_norm=self.use_scale_shift_norm,
            use_checkpoint=self.use_checkpoint,
            norm=self.norm,
            resample=resample,
        )

    def attention(self, channels: int, num_heads: int) -> AttentionBlock:
        """Return an attention block."""
        return AttentionBlock(
            channels,
            self.heads(channels, num_heads),
            qkv_outside=self.use_new_attention_order,
            use_checkpoint=self.use_checkpoint,
            norm=self.norm,
        )

    def downsample(self, channels: int) -> nn.Module:
        """Return the downsampling to the next coarser level."""
        if self.resblock_updown:
            plain = Downsample(self.dims, channels, use_conv=False)
            return self.residual(channels, channels, plain)
        return Downsample(self.dims, channels, self.conv_resample, self.downsample_padding)

    def upsample(self, channels: int) -> nn.Module:
        """Return the upsampling to the next finer level."""
        if self.resblock_updown:
            return self.residual(channels, channels, Upsample(self.dims, channels, use_conv=False))
        return Upsample(self.dims, channels, self.conv_resample)


def make_encoder(builder: IDDPMUNetBuilder, in_channels: int) -> tuple[nn.ModuleList, list[int]]:
    """Return the blocks from the finest level to the coarsest, and the channels of each output."""
    width = builder.stem_channels
    blocks: list[nn.Module] = [
        TimestepSequential(conv_nd(builder.dims, in_channels, width, 3, padding=1))
    ]
    skip_channels = [width]
    for level, level_width in enumerate(builder.widths):
        for _ in range(builder.num_res_blocks):
            layers: list[nn.Module] = [builder.residual(width, level_width)]
            width = level_width
            if builder.attends(level):
                layers.append(builder.attention(width, builder.num_heads))
            blocks.append(TimestepSequential(*layers))
            skip_channels.append(width)
        if level < len(builder.widths) - 1:
            blocks.append(TimestepSequential(builder.downsample(width)))
            skip_channels.append(width)
    return nn.ModuleList(blocks), skip_channels


def make_middle(builder: IDDPMUNetBuilder) -> TimestepSequential:
    """Return the blocks at the coarsest level, which always have attention."""
    width = builder.widths[-1]
    return TimestepSequential(
        builder.residual(width, width),
        builder.attention(width, builder.num_heads),
        builder.residual(width, width),
    )


def make_decoder(builder: IDDPMUNetBuilder, skip_channels: list[int]) -> nn.ModuleList:
    """Return the blocks from the coarsest level to the finest.

    Each block also receives an output of the encoder, last first, whose channels are
    ``skip_channels`` in the encoder's order.
    """
    skip_channels, width = list(skip_channels), builder.widths[-1]
    blocks: list[nn.Module] = []
    for level in reversed(range(len(builder.widths))):
        for index in range(builder.num_res_blocks + 1):
            layers: list[nn.Module] = [
                builder.residual(width + skip_channels.pop(), builder.widths[level])
            ]
            width = builder.widths[level]
            if builder.attends(level):
                layers.append(builder.attention(width, builder.num_heads_upsample))
            if level > 0 and index == builder.num_res_blocks:
                layers.append(builder.upsample(width))
            blocks.append(TimestepSequential(*layers))
    return nn.ModuleList(blocks)
