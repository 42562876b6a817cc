"""The parts of OpenAI's two U-Nets, and the plan that says which parts there are."""

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
    """By how much each axis shrinks between levels; the first of three, time, keeps its length.

    Halving time as well would be as natural, but the original's weights are for this.
    """
    return (1, 2, 2) if dims == 3 else (2,) * dims


class Downsample(nn.Module):
    """Halve the spatial axes, by a strided convolution or by means over neighbours."""

    def __init__(self, dims: int, channels: int, use_conv: bool) -> None:
        super().__init__()
        factor = resample_factor(dims)
        self.op: nn.Module
        if use_conv:
            self.op = conv_nd(dims, channels, channels, 3, stride=factor, padding=1)
        else:
            # The original gives the window where its pool takes the number of axes, and crashes.
            self.op = avg_pool_nd(dims, factor)

    def forward(self, x: Tensor) -> Tensor:
        """Take ``(B, C, *spatial)`` to half the size."""
        return self.op(x)


class Upsample(nn.Module):
    """Double the spatial axes by repeating neighbours, then a convolution where ``use_conv``."""

    def __init__(self, dims: int, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.scale = [float(n) for n in resample_factor(dims)]
        self.conv = conv_nd(dims, channels, channels, 3, padding=1) if use_conv else None

    def forward(self, x: Tensor) -> Tensor:
        """Take ``(B, C, *spatial)`` to twice the size."""
        x = F.interpolate(x, scale_factor=self.scale, mode="nearest")
        return x if self.conv is None else self.conv(x)


def _maybe_checkpoint(enabled: bool, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Call ``function``, forgetting its activations until the backward pass where ``enabled``.

    The random state is restored for the second run, so that dropout drops the same units; the
    original's own checkpointing draws another mask and gives the gradient of another function.
    """
    if enabled and torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)


class ResBlock(nn.Module):
    """Two convolutions around a residual, told the time by a shift or by a scale and a shift.

    ``resample``, a module without parameters, changes the size of both branches: of the residual
    after its first norm and before its first convolution (Brock 2018, "BigGAN").
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
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.use_scale_shift_norm, self.use_checkpoint = use_scale_shift_norm, use_checkpoint
        told = 2 * out_channels if use_scale_shift_norm else out_channels
        self.in_layers = nn.Sequential(
            GroupNorm(NUM_GROUPS, channels),
            nn.SiLU(),
            conv_nd(dims, channels, out_channels, 3, padding=1),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding_channels, told))
        self.out_layers = nn.Sequential(
            GroupNorm(NUM_GROUPS, out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_module(conv_nd(dims, out_channels, out_channels, 3, padding=1)),
        )
        self.resample = nn.Identity() if resample is None else resample
        self.skip_connection: nn.Module = nn.Identity()
        if out_channels != channels:
            self.skip_connection = conv_nd(dims, channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Take ``(B, channels, *spatial)`` and ``(B, E)`` to ``(B, out_channels, *resampled)``."""
        return _maybe_checkpoint(self.use_checkpoint, self._forward, x, embedding)

    def _forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        norm, activation, conv = self.in_layers
        h = conv(self.resample(activation(norm(x))))
        told = self.emb_layers(embedding).to(h.dtype)
        told = told.reshape(*told.shape, *(1,) * (h.ndim - 2))
        if self.use_scale_shift_norm:
            scale, shift = told.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
            h = self.out_layers[1:](h)
        else:
            h = self.out_layers(h + told)
        return self.skip_connection(self.resample(x)) + h


class AttentionBlock(nn.Module):
    """Softmax attention between all positions, around a residual.

    The channels of ``qkv`` are heads x (q, k, v) x channels of a head, from the outside in, or
    (q, k, v) x heads x channels of a head where ``qkv_outside``; weights don't show which.
    """

    def __init__(
        self, channels: int, num_heads: int, *, qkv_outside: bool, use_checkpoint: bool
    ) -> None:
        super().__init__()
        self.num_heads, self.use_checkpoint = num_heads, use_checkpoint
        self.qkv_outside = qkv_outside
        self.norm = GroupNorm(NUM_GROUPS, channels)
        self.qkv = conv_nd(1, channels, 3 * channels, 1)
        self.proj_out = zero_module(conv_nd(1, channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Take ``(B, C, *spatial)`` to the same shape."""
        return _maybe_checkpoint(self.use_checkpoint, self._forward, x)

    def _forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        axis = 1 if self.qkv_outside else 2
        split = (3, self.num_heads, -1) if self.qkv_outside else (self.num_heads, 3, -1)
        qkv = self.qkv(self.norm(flat)).unflatten(1, split)
        q, k, v = qkv.transpose(-1, -2).unbind(axis)
        h = attend(q, k, v).transpose(-1, -2).flatten(1, 2)
        return (flat + self.proj_out(h)).reshape(x.shape)


class TimestepSequential(nn.Sequential):
    """Layers in a row, of which the residual blocks are told the time."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        """Take ``(B, C, *spatial)`` and ``(B, E)`` through all layers."""
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x


@dataclass(frozen=True)
class Plan:
    """What the whole network is made of; it knows how to make each kind of part."""

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

    @property
    def widths(self) -> list[int]:
        """The channels of each level."""
        return [int(self.model_channels * mult) for mult in self.channel_mult]

    @property
    def stem_channels(self) -> int:
        """The channels that the first convolution gives."""
        return self.widths[0] if self.scale_stem else self.model_channels

    @property
    def embedding_channels(self) -> int:
        """The channels of the embedded time."""
        return 4 * self.model_channels

    def attends(self, level: int) -> bool:
        """Whether a level, which is downsampled 2**level times, has attention."""
        return 2**level in self.attention_rates

    def heads(self, channels: int, num_heads: int) -> int:
        """How many heads a level of so many channels has: ``num_heads``, or as many as fit."""
        return num_heads if self.num_head_channels is None else channels // self.num_head_channels

    def residual(
        self, channels: int, out_channels: int, resample: nn.Module | None = None
    ) -> ResBlock:
        """A residual block."""
        return ResBlock(
            self.dims,
            channels,
            out_channels,
            self.embedding_channels,
            dropout=self.dropout,
            use_scale_shift_norm=self.use_scale_shift_norm,
            use_checkpoint=self.use_checkpoint,
            resample=resample,
        )

    def attention(self, channels: int, num_heads: int) -> AttentionBlock:
        """An attention block."""
        return AttentionBlock(
            channels,
            self.heads(channels, num_heads),
            qkv_outside=self.use_new_attention_order,
            use_checkpoint=self.use_checkpoint,
        )

    def downsample(self, channels: int) -> nn.Module:
        """The way to the next coarser level."""
        if self.resblock_updown:
            plain = Downsample(self.dims, channels, use_conv=False)
            return self.residual(channels, channels, plain)
        return Downsample(self.dims, channels, self.conv_resample)

    def upsample(self, channels: int) -> nn.Module:
        """The way to the next finer level."""
        if self.resblock_updown:
            return self.residual(channels, channels, Upsample(self.dims, channels, use_conv=False))
        return Upsample(self.dims, channels, self.conv_resample)


def make_encoder(plan: Plan, in_channels: int) -> tuple[nn.ModuleList, list[int]]:
    """The blocks from the finest level to the coarsest, and the channels each of them gives."""
    width = plan.stem_channels
    blocks: list[nn.Module] = [
        TimestepSequential(conv_nd(plan.dims, in_channels, width, 3, padding=1))
    ]
    given = [width]
    for level, level_width in enumerate(plan.widths):
        for _ in range(plan.num_res_blocks):
            layers: list[nn.Module] = [plan.residual(width, level_width)]
            width = level_width
            if plan.attends(level):
                layers.append(plan.attention(width, plan.num_heads))
            blocks.append(TimestepSequential(*layers))
            given.append(width)
        if level < len(plan.widths) - 1:
            blocks.append(TimestepSequential(plan.downsample(width)))
            given.append(width)
    return nn.ModuleList(blocks), given


def make_middle(plan: Plan) -> TimestepSequential:
    """The blocks at the coarsest level; they always attend."""
    width = plan.widths[-1]
    return TimestepSequential(
        plan.residual(width, width),
        plan.attention(width, plan.num_heads),
        plan.residual(width, width),
    )


def make_decoder(plan: Plan, given: list[int]) -> nn.ModuleList:
    """The blocks from the coarsest level to the finest, each taking one of the encoder's too."""
    given, width = list(given), plan.widths[-1]
    blocks: list[nn.Module] = []
    for level in reversed(range(len(plan.widths))):
        for index in range(plan.num_res_blocks + 1):
            layers: list[nn.Module] = [plan.residual(width + given.pop(), plan.widths[level])]
            width = plan.widths[level]
            if plan.attends(level):
                layers.append(plan.attention(width, plan.num_heads_upsample))
            if level > 0 and index == plan.num_res_blocks:
                layers.append(plan.upsample(width))
            blocks.append(TimestepSequential(*layers))
    return nn.ModuleList(blocks)
