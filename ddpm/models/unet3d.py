"""The video U-Nets of video-diffusion-pytorch and DiffPhyCon, in one.

Inside and out the axes are ``(B, C, F, H, W)``, frames before height and width. Parameters have
the originals' names without the wrappers around attention (see ``ddpm.interop.video``).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ddpm.errors import require
from ddpm.models.layers import Network, SinusoidalEmbedding, check_positive
from ddpm.models.sizes import describe_size, fit_levels
from ddpm.models.unet import DIM_MULTS
from ddpm.models.unet3d_attention import FrameAxis, RelativePositionBias, Rotary
from ddpm.models.unet3d_blocks import Plan, conv3d


class UNet3D(Network):
    """A U-Net over videos that halves height and width alone: any number of frames will do.

    ``conv="factorised"`` convolves within frames, so that frames meet in temporal attention alone
    (Ho 2022, "Video Diffusion Models"; ``Unet3D`` of video-diffusion-pytorch: 0.7.0 has
    ``block_norm="rms"``, 0.6.0 has ``"group"``); ``conv="full"`` with ``block_norm="group"`` is
    DiffPhyCon's ``Unet3D_with_Conv3D``. ``size`` is (frames, height, width); ``dim_mults`` and
    ``pad`` are as in :class:`~ddpm.models.UNet`, and frames are never padded.
    ``use_sparse_linear_attn`` is attention within frames at every level, linear in the pixels; the
    middle always has full attention. With ``cond_dim`` the network takes condition vectors, and
    has a learned one that stands for none, in whose favour training forgets ``null_cond_prob`` of
    them. Samples that focus on the present keep each frame to itself in temporal attention:
    ``prob_focus_present`` of them in training, or those that the call says; without
    ``focus_init``, as in the originals, the attention before the first level does not. Raises
    ConfigError for settings that no network can have.
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
        conv: Literal["factorised", "full"] = "factorised",
        init_kernel_size: int = 7,
        block_norm: Literal["rms", "group"] = "rms",
        resnet_groups: int = 8,
        attn_heads: int = 8,
        attn_dim_head: int = 32,
        use_sparse_linear_attn: bool = True,
        cond_dim: int | None = None,
        null_cond_prob: float = 0.0,
        prob_focus_present: float = 0.0,
        focus_init: bool = True,
    ) -> None:
        _check_size(size)
        check_positive(dim=dim, dim_mults=dim_mults, resnet_groups=resnet_groups)
        check_positive(attn_heads=attn_heads, attn_dim_head=attn_dim_head)
        dim_mults, fit = fit_levels("dim_mults", dim_mults, DIM_MULTS, size, pad, num_kept=1)
        _check_probabilities(null_cond_prob=null_cond_prob, prob_focus_present=prob_focus_present)
        _check_condition(cond_dim, null_cond_prob)
        require(dim >= 4, "dim", dim, "is the width of the timestep's embedding too; use 4 or more")
        odd = init_kernel_size > 0 and init_kernel_size % 2 == 1
        require(odd, "init_kernel_size", init_kernel_size, "needs a middle: choose an odd number")
        factor = 2 ** (len(dim_mults) - 1)
        factors = (1, factor, factor)
        super().__init__(channels, out_channels, num_classes, self_condition, factors, fit)
        self.cond_dim, self.null_cond_prob = cond_dim, null_cond_prob
        self.prob_focus_present, self.focus_init = prob_focus_present, focus_init
        groups = resnet_groups if block_norm == "group" else None
        plan = Plan(
            kernel=_kernel(conv, 3),
            widths=_widths(dim, init_dim, dim_mults, groups),
            embedding_channels=4 * dim + (cond_dim or 0),
            groups=groups,
            heads=attn_heads,
            dim_head=attn_dim_head,
            linear_attention=use_sparse_linear_attn,
        )
        self._build(plan, dim, _kernel(conv, init_kernel_size))

    def _build(self, plan: Plan, dim: int, init_kernel: tuple[int, int, int]) -> None:
        stem, levels = plan.widths[0], range(len(plan.widths) - 1)
        self.rotary_emb = Rotary(min(32, plan.dim_head))
        self.time_rel_pos_bias = RelativePositionBias(plan.heads)
        self.init_conv = conv3d(self.in_channels, stem, init_kernel)
        self.init_temporal_attn = plan.temporal(stem)
        self.time_mlp = nn.Sequential(
            SinusoidalEmbedding(dim, cos_first=False, reach_end=True),
            nn.Linear(dim, 4 * dim),
            nn.GELU(),
            nn.Linear(4 * dim, 4 * dim),
        )
        # The originals know no labels; here they are told with the time, as in the other networks.
        if self.num_classes is not None:
            self.label_emb = nn.Embedding(self.num_classes, 4 * dim)
        self.null_cond_emb: nn.Parameter | None = None
        if self.cond_dim is not None:
            self.null_cond_emb = nn.Parameter(torch.randn(1, self.cond_dim))
        self.downs = nn.ModuleList([plan.down(level) for level in levels])
        self.ups = nn.ModuleList([plan.up(level) for level in reversed(levels)])
        self.mid_block1 = plan.residual(plan.widths[-1], plan.widths[-1])
        self.mid_spatial_attn = plan.spatial(plan.widths[-1])
        self.mid_temporal_attn = plan.temporal(plan.widths[-1])
        self.mid_block2 = plan.residual(plan.widths[-1], plan.widths[-1])
        # As wide as the stem, whose output comes back here; the originals have twice dim in its
        # place and crash where init_dim is another number.
        self.final_conv = nn.Sequential(
            plan.residual(2 * stem, dim, told=False), conv3d(dim, self.out_channels, (1, 1, 1))
        )

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        x_self_cond: Tensor | None = None,
        *,
        cond: Tensor | None = None,
        null_cond: Tensor | None = None,
        focus_present_mask: Tensor | None = None,
    ) -> Tensor:
        """Predict ``(B, out_channels, F, H, W)`` from x ``(B, channels, F, H, W)``.

        ``t`` is ``(B,)``, whole or fractional; ``y`` is ``(B,)`` labels, given where the network
        has classes and only there; ``x_self_cond`` has the shape of x. ``cond`` is
        ``(B, cond_dim)``; the null embedding stands where ``null_cond`` ``(B,)`` is true, and
        everywhere without ``cond``. ``focus_present_mask`` is ``(B,)``, true where each frame is
        kept to itself. ValueError for what the network cannot take.
        """
        h = self.init_conv(self.prepare(x, y, x_self_cond))
        embedding = self._embed(t, y, x.dtype)
        if self.cond_dim is not None or cond is not None or null_cond is not None:
            condition = self._condition(len(x), cond, null_cond)
            embedding = torch.cat((embedding, condition.to(embedding.dtype)), dim=1)
        axis = self._axis(x, focus_present_mask)
        unfocused = FrameAxis(axis.angles, axis.bias, None)
        h = stem = self.init_temporal_attn(h, axis if self.focus_init else unfocused)
        skips: list[Tensor] = []
        for level in self.downs:
            block1, block2, spatial, temporal, resample = _parts(level)
            h = temporal(spatial(block2(block1(h, embedding), embedding)), axis)
            skips.append(h)
            h = resample(h)
        h = self.mid_spatial_attn(self.mid_block1(h, embedding))
        h = self.mid_block2(self.mid_temporal_attn(h, axis), embedding)
        for level in self.ups:
            block1, block2, spatial, temporal, resample = _parts(level)
            h = block1(torch.cat((h, skips.pop()), dim=1), embedding)
            h = resample(temporal(spatial(block2(h, embedding)), axis))
        return self.crop(self.final_conv(torch.cat((h, stem), dim=1)), x)

    def forward_with_cond_scale(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        x_self_cond: Tensor | None = None,
        *,
        cond: Tensor | None = None,
        cond_scale: float = 2.0,
        focus_present_mask: Tensor | None = None,
    ) -> Tensor:
        """Go ``cond_scale`` times from the answer to no condition towards that to ``cond``.

        Both answers come from one call on twice the batch, with the same focus (the original draws
        one for each); a scale of 1 needs one answer. Inputs are those of ``forward``, where
        training forgets no condition. (Ho, Salimans 2022, "Classifier-Free Diffusion Guidance".)
        """
        if cond is None:
            return self(x, t, y, x_self_cond, focus_present_mask=focus_present_mask)
        focus = self._focus(x, focus_present_mask)
        given = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        if cond_scale == 1:
            return self(x, t, y, x_self_cond, cond=cond, null_cond=given, focus_present_mask=focus)
        answer = self(
            *(_twice(each) for each in (x, t, y, x_self_cond)),
            cond=_twice(cond),
            null_cond=torch.cat((given, ~given)),
            focus_present_mask=_twice(focus),
        )
        told, untold = answer.chunk(2)
        return untold + (told - untold) * cond_scale

    def _embed(self, t: Tensor, y: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The timestep, and the label where there is one, as ``(B, 4 * dim)``."""
        embedding, *layers = self.time_mlp
        h = embedding(t).to(dtype)
        for layer in layers:
            h = layer(h)
        return h if y is None else h + self.label_emb(y)

    def _condition(self, batch: int, cond: Tensor | None, null_cond: Tensor | None) -> Tensor:
        """The conditions ``(B, cond_dim)``, with the null embedding where there is none."""
        if self.null_cond_emb is None:
            raise ValueError("a condition was given to a network without cond_dim")
        if cond is None:
            return self.null_cond_emb.expand(batch, -1)
        _check_shape("cond", cond, (batch, self.null_cond_emb.shape[1]))
        if null_cond is None:
            forget = self.null_cond_prob if self.training else 0.0
            null_cond = torch.rand(batch, device=cond.device) < forget
        _check_shape("null_cond", null_cond, (batch,))
        return torch.where(null_cond[:, None], self.null_cond_emb, cond)

    def _axis(self, x: Tensor, focus_present_mask: Tensor | None) -> FrameAxis:
        """What attention along time knows of the frames of x."""
        frames = x.shape[2]
        focus = self._focus(x, focus_present_mask)
        return FrameAxis(self.rotary_emb(frames), self.time_rel_pos_bias(frames), focus)

    def _focus(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        """Which samples focus: those said, else in training a random share, else none."""
        if mask is not None:
            _check_shape("focus_present_mask", mask, (len(x),))
        elif self.training and self.prob_focus_present > 0:
            return torch.rand(len(x), device=x.device) < self.prob_focus_present
        return mask


def _twice(value: Tensor | None) -> Tensor | None:
    """A batch, if there is one, and the same again."""
    return None if value is None else torch.cat((value, value))


def _parts(level: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module, nn.Module]:
    """The two blocks, the attention within frames and along time, and the resampling of a level."""
    assert isinstance(level, nn.ModuleList)
    block1, block2, spatial, temporal, resample = level
    return block1, block2, spatial, temporal, resample


def _kernel(conv: str, width: int) -> tuple[int, int, int]:
    """A kernel of that width within frames, and across them where convolutions are full."""
    return (width if conv == "full" else 1, width, width)


def _check_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless an input has its shape."""
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, not {shape}")


def _check_size(size: tuple[int, ...]) -> None:
    """Raise ConfigError unless the data are videos."""
    others = {1: "model=unet1d", 2: "model=unet"}
    require(
        len(size) == 3,
        "_target_",
        "UNet3D",
        f"unet3d is a video network but the data are {describe_size(size)}; "
        f"use {others.get(len(size), 'other data')}",
    )


def _check_probabilities(**values: float) -> None:
    """Raise ConfigError for the first value that is not a probability."""
    for key, value in values.items():
        require(0 <= value <= 1, key, value, "is a probability: choose from 0 to 1")


def _check_condition(cond_dim: int | None, null_cond_prob: float) -> None:
    """Raise ConfigError for conditions without features, and where there are none to forget."""
    if cond_dim is not None:
        check_positive(cond_dim=cond_dim)
        return
    require(
        null_cond_prob == 0,
        "null_cond_prob",
        null_cond_prob,
        "there are no conditions to forget; set cond_dim or leave it 0",
    )


def _widths(
    dim: int, init_dim: int | None, dim_mults: tuple[int, ...], groups: int | None
) -> tuple[int, ...]:
    """The channels of the stem and of every level; ConfigError where the groups do not divide."""
    stem = dim if init_dim is None else init_dim
    check_positive(init_dim=stem)
    widths = (stem, *(dim * mult for mult in dim_mults))
    if groups is not None:
        for index, width in enumerate((*widths, dim)):
            key, value = ("dim", dim) if index or init_dim is None else ("init_dim", stem)
            require(
                width % groups == 0,
                key,
                value,
                f"a level has {width} channels, which {groups} groups do not divide; make {key} "
                f"a multiple of {groups}, lower resnet_groups or set block_norm=rms",
            )
    return widths
