"""U-Net of denoising-diffusion-pytorch, for images and for sequences.

Parameters have the names of that library's ``Unet``. The network for sequences differs only in its
downsampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ddpm.errors import require
from ddpm.models.embeddings import FourierEmbedding, SinusoidalEmbedding
from ddpm.models.layers import Network, check_positive, conv_nd
from ddpm.models.sizes import Fit, describe_size, fit_levels
from ddpm.models.unet_blocks import AttnNorm, UNetBuilder

DIM_MULTS = (1, 2, 4, 8)  # default of denoising-diffusion-pytorch


class UNet(Network):
    """U-Net of denoising-diffusion-pytorch (Ho 2020, with the linear attention of Shen 2018).

    ``dims=2`` is that library's ``Unet``, ``dims=1`` with ``full_attn=False`` its ``Unet1D``.
    Version 1.8.14 of the library has ``block_norm="group"`` and ``num_mem_kv=0``; version 2.3.4 has
    ``block_norm="rms"`` and ``num_mem_kv=4``. Version 1.0.7 has ``weight_standardized``,
    ``attn_norm="layer"``, full attention only in the middle, and, for images, ``divide_values``.

    Args:
        channels: channels of the data.
        out_channels: channels of the output.
        size: spatial size of the data. It only determines the defaults of ``dim_mults`` and
            ``pad``: the network accepts all sizes that its levels can halve, and with ``pad`` all
            sizes.
        num_classes: number of classes; the label embedding is added to the time embedding.
        self_condition: also receive an earlier estimate of x0.
        dim: base number of channels.
        init_dim: channels of the first convolution; None = ``dim``.
        dim_mults: channels of each level, in units of ``dim``; None = (1, 2, 4, 8), or its first
            entries if the size allows fewer levels
            (see :func:`~ddpm.models.sizes.choose_halvings`).
        pad: pad inputs whose size the levels cannot halve, and crop the output; None = only if
            ``dim_mults`` is None and ``size`` allows too few levels.
        full_attn: full attention, instead of linear attention, per level or at all levels; None =
            only at the innermost. The middle always has full attention.
        attn_heads: attention heads, per level or of all levels.
        attn_dim_head: channels per head, per level or of all levels.
        mid_attn_heads: attention heads in the middle; None = those of the innermost level.
        mid_attn_dim_head: channels per head in the middle; None = those of the innermost level.
        num_mem_kv: learned pairs of key and value that each attention adds.
        block_norm: normalisation in the residual blocks.
        resnet_block_groups: groups of ``block_norm="group"``.
        weight_standardized: standardise the weights of the blocks' convolutions (Qiao 2019).
        attn_norm: normalisation in the attention.
        divide_values: divide the values of linear attention by the number of positions.
        learned_sinusoidal_cond: embed the timestep by learned frequencies.
        random_fourier_features: embed the timestep by random, fixed frequencies.
        learned_sinusoidal_dim: width of these two embeddings, even.
        sinusoidal_pos_emb_theta: largest period of the default embedding.
        dropout: probability, in the first block of each pair.
        dims: number of spatial axes.

    Raises:
        ConfigError: invalid options, or data with another number of spatial axes.
    """

    thread_safe = True
    adaptive = ("dim_mults", "pad")
    legacy_defaults = {"dim_mults": list(DIM_MULTS), "pad": False}
    cpu_defaults = {"dim": 16, "attn_heads": 2, "attn_dim_head": 16}

    def __init__(
        self,
        channels: int,
        out_channels: int,
        size: tuple[int, ...],
        num_classes: int | None = None,
        self_condition: bool = False,
        *,
        dim: int = 64,
        init_dim: int | None = None,
        dim_mults: tuple[int, ...] | None = None,
        pad: bool | None = None,
        full_attn: tuple[bool, ...] | bool | None = None,
        attn_heads: int | tuple[int, ...] = 4,
        attn_dim_head: int | tuple[int, ...] = 32,
        mid_attn_heads: int | None = None,
        mid_attn_dim_head: int | None = None,
        num_mem_kv: int = 0,
        block_norm: Literal["group", "rms"] = "group",
        resnet_block_groups: int = 8,
        weight_standardized: bool = False,
        attn_norm: AttnNorm = "rms",
        divide_values: bool = False,
        learned_sinusoidal_cond: bool = False,
        random_fourier_features: bool = False,
        learned_sinusoidal_dim: int = 16,
        sinusoidal_pos_emb_theta: int = 10000,
        dropout: float = 0.0,
        dims: Literal[1, 2] = 2,
    ) -> None:
        _check_dims(dims, size)
        check_positive(dim=dim, dim_mults=dim_mults, resnet_block_groups=resnet_block_groups)
        dim_mults, fit, levels = _choose_levels(dim_mults, size, pad)
        groups = resnet_block_groups if block_norm == "group" else None
        builder = UNetBuilder(
            dims=dims,
            widths=_widths(dim, init_dim, dim_mults, groups),
            embedding_channels=4 * dim,
            full_attn=_full_attention(full_attn, levels),
            attn_heads=_per_level("attn_heads", attn_heads, levels),
            attn_dim_head=_per_level("attn_dim_head", attn_dim_head, levels),
            mid_attn_heads=mid_attn_heads,
            mid_attn_dim_head=mid_attn_dim_head,
            num_mem_kv=num_mem_kv,
            groups=groups,
            dropout=dropout,
            weight_standardized=weight_standardized,
            attn_norm=attn_norm,
            divide_values=divide_values,
        )
        builder.check()
        factors = (2 ** (levels.count - 1),) * dims
        super().__init__(channels, out_channels, num_classes, self_condition, factors, fit)
        if learned_sinusoidal_cond or random_fourier_features:
            embedding = _fourier(learned_sinusoidal_dim, learned=not random_fourier_features)
        else:
            embedding = _sinusoidal(dim, sinusoidal_pos_emb_theta)
        self._build(builder, *embedding)

    def _build(self, builder: UNetBuilder, embedding: nn.Module, embedding_width: int) -> None:
        stem, levels = builder.widths[0], range(len(builder.full_attn))
        self.init_conv = conv_nd(builder.dims, self.in_channels, stem, 7, padding=3)
        self.time_mlp = nn.Sequential(
            embedding,
            nn.Linear(embedding_width, builder.embedding_channels),
            nn.GELU(),
            nn.Linear(builder.embedding_channels, builder.embedding_channels),
        )
        if self.num_classes is not None:
            self.label_emb = nn.Embedding(self.num_classes, builder.embedding_channels)
        self.downs = nn.ModuleList([builder.down(level) for level in levels])
        self.ups = nn.ModuleList([builder.up(level) for level in reversed(levels)])
        self.mid_block1 = builder.residual(builder.widths[-1], builder.widths[-1])
        self.mid_attn = builder.middle_attention()
        self.mid_block2 = builder.residual(builder.widths[-1], builder.widths[-1])
        # As wide as the stem, whose output is concatenated here. denoising-diffusion-pytorch 1.8.14
        # uses dim instead and crashes if init_dim differs from it; 2.3.4 is as here.
        self.final_res_block = builder.residual(2 * stem, stem)
        self.final_conv = conv_nd(builder.dims, stem, self.out_channels, 1)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        x_self_cond: Tensor | None = None,
    ) -> Tensor:
        """Return the prediction ``(B, out_channels, *spatial)``.

        Args:
            x: ``(B, channels, *spatial)``.
            t: timesteps ``(B,)``, integer or real.
            y: labels ``(B,)``, required if and only if the network has classes.
            x_self_cond: earlier estimate of x0, of the shape of x.

        Raises:
            ValueError: see :meth:`~ddpm.models.layers.Network.prepare`.
        """
        h = stem = self.init_conv(self.prepare(x, y, x_self_cond))
        embedding = self._embed(t, y, x.dtype)
        skips: list[Tensor] = []
        for level in self.downs:
            block1, block2, attention, resample = _unpack(level)
            h = block1(h, embedding)
            skips.append(h)
            h = block2(h, embedding)
            h = attention(h) + h
            skips.append(h)
            h = resample(h)
        h = self.mid_block1(h, embedding)
        h = self.mid_attn(h) + h
        h = self.mid_block2(h, embedding)
        for level in self.ups:
            block1, block2, attention, resample = _unpack(level)
            h = block1(torch.cat((h, skips.pop()), dim=1), embedding)
            h = block2(torch.cat((h, skips.pop()), dim=1), embedding)
            h = resample(attention(h) + h)
        h = self.final_res_block(torch.cat((h, stem), dim=1), embedding)
        return self.crop(self.final_conv(h), x)

    def _embed(self, t: Tensor, y: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return the embedding ``(B, E)`` of the timesteps and, if any, the labels."""
        embedding, *layers = self.time_mlp
        h = embedding(t, dtype)
        for layer in layers:
            h = layer(h)
        return h if y is None else h + self.label_emb(y)


def _unpack(level: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """Return the two blocks, the attention and the resampling of a level."""
    assert isinstance(level, nn.ModuleList)
    block1, block2, attention, resample = level
    return block1, block2, attention, resample


def _check_dims(dims: int, size: tuple[int, ...]) -> None:
    """Raise ConfigError unless ``dims`` is the number of spatial axes of the data."""
    others = {1: "model=unet1d", 2: "model=unet", 3: "model=iddpm_unet"}
    kinds = {1: "unet1d is a sequence network", 2: "unet is an image network"}
    require(dims in kinds, "dims", dims, "must be 1 or 2; for videos use model=iddpm_unet")
    require(
        dims == len(size),
        "dims",
        dims,
        f"{kinds[dims]} but the data are {describe_size(size)}; "
        f"use {others.get(len(size), 'other data')}",
    )


def _widths(
    dim: int, init_dim: int | None, dim_mults: tuple[int, ...], groups: int | None
) -> tuple[int, ...]:
    """Return the channels of the stem and of each level; check that the groups divide them."""
    stem = dim if init_dim is None else init_dim
    check_positive(init_dim=stem)
    widths = (stem, *(dim * mult for mult in dim_mults))
    if groups is not None:
        for index, width in enumerate(widths):
            key, value = ("dim", dim) if index or init_dim is None else ("init_dim", stem)
            require(
                width % groups == 0,
                key,
                value,
                f"a level has {width} channels, not divisible into {groups} groups; make {key} "
                f"a multiple of {groups}, lower resnet_block_groups or set block_norm=rms",
            )
    return widths


@dataclass(frozen=True)
class _Levels:
    """Number of levels, and a phrase on its origin for messages."""

    count: int
    origin: str


def _choose_levels(
    dim_mults: tuple[int, ...] | None, size: tuple[int, ...], pad: bool | None
) -> tuple[tuple[int, ...], Fit, _Levels]:
    """Return the channel multipliers, the adaptation to the size, and the levels."""
    origin = "" if dim_mults is not None else f"=null for {describe_size(size)}"
    mults, fit = fit_levels("dim_mults", dim_mults, DIM_MULTS, size, pad)
    return mults, fit, _Levels(len(mults), f"dim_mults{origin} makes {len(mults)} levels")


def _per_level(key: str, value: int | tuple[int, ...], levels: _Levels) -> tuple[int, ...]:
    """Return one number per level, from a tuple of that length or one number for all."""
    numbers = (value,) * levels.count if isinstance(value, int) else tuple(value)
    _check_length(key, numbers, levels)
    return numbers


def _full_attention(value: tuple[bool, ...] | bool | None, levels: _Levels) -> tuple[bool, ...]:
    """Return one flag per level; None stands for full attention only at the innermost level."""
    if value is None:
        return (*(False,) * (levels.count - 1), True)
    flags = (value,) * levels.count if isinstance(value, bool) else tuple(value)
    _check_length("full_attn", flags, levels)
    return flags


def _check_length(key: str, value: tuple[object, ...], levels: _Levels) -> None:
    """Raise ConfigError unless ``value`` has one entry per level."""
    require(
        len(value) == levels.count,
        key,
        value,
        f"has {len(value)} entries, but {levels.origin}; "
        f"set {levels.count} entries or a single value for all",
    )


def _fourier(dim: int, *, learned: bool) -> tuple[nn.Module, int]:
    """Return the embedding by random frequencies, fixed or learned, and its width."""
    require(
        dim >= 2 and dim % 2 == 0,
        "learned_sinusoidal_dim",
        dim,
        "must be even and positive: half sines, half cosines",
    )
    return FourierEmbedding(dim, learned=learned), dim + 1


def _sinusoidal(dim: int, theta: int) -> tuple[nn.Module, int]:
    """Return the embedding by geometric frequencies, and its width."""
    require(
        dim >= 4,
        "dim",
        dim,
        "is also the width of the time embedding, which needs two frequencies; use 4 or more",
    )
    check_positive(sinusoidal_pos_emb_theta=theta)
    return SinusoidalEmbedding(dim, max_period=theta, cos_first=False, reach_end=True), dim
