"""The U-Net of denoising-diffusion-pytorch, for images and for sequences in one.

Its parameters have the names of that library's ``Unet``; the sequence version differs in its
downsampling alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ddpm.errors import require
from ddpm.models.layers import (
    FourierEmbedding,
    Network,
    SinusoidalEmbedding,
    check_dropout,
    check_positive,
    conv_nd,
)
from ddpm.models.sizes import describe_size, fit_levels
from ddpm.models.unet_blocks import AttnNorm, Plan

DIM_MULTS = (1, 2, 4, 8)  # of the original


class UNet(Network):
    """The U-Net of denoising-diffusion-pytorch: ``(B, channels, *spatial)`` to ``out_channels``.

    ``dims=2`` is that library's ``Unet``, ``dims=1`` with ``full_attn=False`` its ``Unet1D``.
    Level i has ``dim_mults[i]`` times ``dim`` channels; None takes (1, 2, 4, 8), the original's, or
    as many of these as suit ``size`` (see :func:`~ddpm.models.sizes.choose_halvings`). ``size``
    decides nothing else: the network takes every size that its levels can halve, and with ``pad``
    every other size too, where it pads its input and crops its output. A ``pad`` of None is true
    where ``dim_mults`` is None and the size leaves too few levels. A level has full attention
    where ``full_attn`` says so (None: the innermost alone, True or False: all or none) and linear
    attention elsewhere; the middle always has full attention, with the heads of the innermost
    level unless ``mid_attn_heads`` and ``mid_attn_dim_head`` are given. Version 1.8.14 of the
    library has ``block_norm="group"`` and no ``num_mem_kv``; 2.3.4 has ``block_norm="rms"`` and
    four. 1.0.7 standardises the weights of the blocks' convolutions (Qiao 2019), has
    ``attn_norm="layer"`` and full attention in the middle alone, and in images divides the values
    of linear attention by the number of pixels (``divide_values``). Raises ConfigError for
    settings that no network can have.
    (Ho 2020, with the attention of Shen 2018 and the blocks of lucidrains.)
    """

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
        chosen = "" if dim_mults is not None else f"=null for {describe_size(size)}"
        dim_mults, fit = fit_levels("dim_mults", dim_mults, DIM_MULTS, size, pad)
        check_dropout(dropout)
        require(num_mem_kv >= 0, "num_mem_kv", num_mem_kv, "is a count: 0 for none")
        levels = _Levels(len(dim_mults), f"dim_mults{chosen} makes {len(dim_mults)} levels")
        groups = resnet_block_groups if block_norm == "group" else None
        heads = _per_level("attn_heads", attn_heads, levels)
        dim_heads = _per_level("attn_dim_head", attn_dim_head, levels)
        plan = Plan(
            dims=dims,
            widths=_widths(dim, init_dim, dim_mults, groups),
            embedding_channels=4 * dim,
            full_attn=_full_attention(full_attn, levels),
            attn_heads=heads,
            attn_dim_head=dim_heads,
            mid_attn_heads=heads[-1] if mid_attn_heads is None else mid_attn_heads,
            mid_attn_dim_head=dim_heads[-1] if mid_attn_dim_head is None else mid_attn_dim_head,
            num_mem_kv=num_mem_kv,
            groups=groups,
            dropout=dropout,
            weight_standardized=weight_standardized,
            attn_norm=attn_norm,
            divide_values=divide_values,
        )
        check_positive(
            attn_heads=heads,
            attn_dim_head=dim_heads,
            mid_attn_heads=plan.mid_attn_heads,
            mid_attn_dim_head=plan.mid_attn_dim_head,
        )
        factors = (2 ** (levels.number - 1),) * dims
        super().__init__(channels, out_channels, num_classes, self_condition, factors, fit)
        if learned_sinusoidal_cond or random_fourier_features:
            embedding, width = _fourier(learned_sinusoidal_dim, not random_fourier_features)
        else:
            embedding, width = _sinusoidal(dim, sinusoidal_pos_emb_theta)
        self._build(plan, embedding, width)

    def _build(self, plan: Plan, embedding: nn.Module, embedding_width: int) -> None:
        stem, levels = plan.widths[0], range(len(plan.full_attn))
        self.init_conv = conv_nd(plan.dims, self.in_channels, stem, 7, padding=3)
        self.time_mlp = nn.Sequential(
            embedding,
            nn.Linear(embedding_width, plan.embedding_channels),
            nn.GELU(),
            nn.Linear(plan.embedding_channels, plan.embedding_channels),
        )
        if self.num_classes is not None:
            self.label_emb = nn.Embedding(self.num_classes, plan.embedding_channels)
        self.downs = nn.ModuleList([plan.down(level) for level in levels])
        self.ups = nn.ModuleList([plan.up(level) for level in reversed(levels)])
        self.mid_block1 = plan.residual(plan.widths[-1], plan.widths[-1])
        self.mid_attn = plan.middle_attention()
        self.mid_block2 = plan.residual(plan.widths[-1], plan.widths[-1])
        # As wide as the stem, whose output comes back here; denoising-diffusion-pytorch 1.8.14 has
        # dim in its place and crashes where init_dim is another number (2.3.4 is as here).
        self.final_res_block = plan.residual(2 * stem, stem)
        self.final_conv = conv_nd(plan.dims, stem, self.out_channels, 1)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        x_self_cond: Tensor | None = None,
    ) -> Tensor:
        """Predict ``(B, out_channels, *spatial)`` from x ``(B, channels, *spatial)``.

        ``t`` is ``(B,)``, whole or fractional; ``y`` is ``(B,)`` labels, given where the network
        has classes and only there (ValueError otherwise); ``x_self_cond`` has the shape of x.
        """
        h = stem = self.init_conv(self.prepare(x, y, x_self_cond))
        embedding = self._embed(t, y, x.dtype)
        skips: list[Tensor] = []
        for level in self.downs:
            block1, block2, attention, resample = _parts(level)
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
            block1, block2, attention, resample = _parts(level)
            h = block1(torch.cat((h, skips.pop()), dim=1), embedding)
            h = block2(torch.cat((h, skips.pop()), dim=1), embedding)
            h = resample(attention(h) + h)
        h = self.final_res_block(torch.cat((h, stem), dim=1), embedding)
        return self.crop(self.final_conv(h), x)

    def _embed(self, t: Tensor, y: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The timestep, and the label where there is one, as ``(B, E)``."""
        embedding, *layers = self.time_mlp
        h = embedding(t).to(dtype)
        for layer in layers:
            h = layer(h)
        return h if y is None else h + self.label_emb(y)


def _parts(level: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """The two blocks, the attention and the resampling of a level."""
    assert isinstance(level, nn.ModuleList)
    block1, block2, attention, resample = level
    return block1, block2, attention, resample


def _check_dims(dims: int, size: tuple[int, ...]) -> None:
    """Raise ConfigError unless the network is for data with as many axes as these have."""
    others = {1: "model=unet1d", 2: "model=unet", 3: "model=iddpm_unet"}
    kinds = {1: "unet1d is a sequence network", 2: "unet is an image network"}
    require(dims in kinds, "dims", dims, "can be 1 or 2; model=iddpm_unet also takes videos")
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
    """The channels of the stem and of every level; ConfigError where the groups do not divide."""
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
                f"a level has {width} channels, which {groups} groups do not divide; make {key} "
                f"a multiple of {groups}, lower resnet_block_groups or set block_norm=rms",
            )
    return widths


@dataclass(frozen=True)
class _Levels:
    """Number of levels, and the words for where it comes from."""

    number: int
    origin: str


def _per_level(key: str, value: int | tuple[int, ...], levels: _Levels) -> tuple[int, ...]:
    """One number a level, from a tuple of that length or one number for all."""
    numbers = (value,) * levels.number if isinstance(value, int) else tuple(value)
    _check_length(key, numbers, levels)
    return numbers


def _full_attention(value: tuple[bool, ...] | bool | None, levels: _Levels) -> tuple[bool, ...]:
    """Which levels have full attention: those said, all, none, or (None) the innermost alone."""
    if value is None:
        return (*(False,) * (levels.number - 1), True)
    flags = (value,) * levels.number if isinstance(value, bool) else tuple(value)
    _check_length("full_attn", flags, levels)
    return flags


def _check_length(key: str, value: tuple[object, ...], levels: _Levels) -> None:
    """Raise ConfigError unless ``value`` has one entry a level."""
    require(
        len(value) == levels.number,
        key,
        value,
        f"has {len(value)} entries, but {levels.origin}; "
        f"give {levels.number} entries or a single value for all",
    )


def _fourier(dim: int, learned: bool) -> tuple[nn.Module, int]:
    """The embedding by random frequencies, fixed or learned, and its width."""
    require(
        dim >= 2 and dim % 2 == 0,
        "learned_sinusoidal_dim",
        dim,
        "is as many sines as cosines; choose an even number",
    )
    return FourierEmbedding(dim, learned=learned), dim + 1


def _sinusoidal(dim: int, theta: int) -> tuple[nn.Module, int]:
    """The embedding by fixed frequencies, and its width."""
    require(
        dim >= 4,
        "dim",
        dim,
        "is the width of the timestep's embedding too, which needs two frequencies; use 4 or more",
    )
    check_positive(sinusoidal_pos_emb_theta=theta)
    return SinusoidalEmbedding(dim, max_period=theta, cos_first=False, reach_end=True), dim
