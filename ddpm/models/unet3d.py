"""Video U-Net that covers those of video-diffusion-pytorch and DiffPhyCon.

The axes are ``(B, C, F, H, W)``, frames before height and width. Parameters have the names of the
original implementations, without their wrappers around attention (see ``ddpm.interop.video``).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ddpm.errors import require
from ddpm.models.embeddings import SinusoidalEmbedding
from ddpm.models.layers import Network, check_positive
from ddpm.models.sizes import describe_size, fit_levels
from ddpm.models.unet import DIM_MULTS
from ddpm.models.unet3d_attention import FrameAxis, RelativePositionBias, Rotary
from ddpm.models.unet3d_blocks import UNet3DBuilder, conv3d


class UNet3D(Network):
    """U-Net for videos that halves height and width, but not time (Ho 2022).

    ``conv="factorised"`` is ``Unet3D`` of video-diffusion-pytorch ("Video Diffusion Models"):
    version 0.7.0 has ``block_norm="rms"``, version 0.6.0 has ``"group"``. ``conv="full"`` with
    ``block_norm="group"`` is ``Unet3D_with_Conv3D`` of DiffPhyCon.

    Samples that focus on the present have temporal attention of each frame to itself only.

    Args:
        channels: channels of the data.
        out_channels: channels of the output.
        size: (frames, height, width) of the data. It only determines the defaults of ``dim_mults``
            and ``pad``: the network accepts any number of frames, heights and widths that its
            levels can halve, and with ``pad`` all heights and widths.
        num_classes: number of classes; the label embedding is added to the time embedding.
        self_condition: also receive an earlier estimate of x0.
        dim: base number of channels.
        init_dim: channels of the first convolution; None = ``dim``.
        dim_mults: channels of each level, in units of ``dim``; see :class:`~ddpm.models.UNet`.
        pad: pad height and width if necessary; see :class:`~ddpm.models.UNet`.
        conv: kernels within frames ("factorised"), or also across frames ("full").
        init_kernel_size: kernel length of the first convolution, in pixels; odd.
        block_norm: normalisation in the residual blocks.
        resnet_groups: groups of ``block_norm="group"``.
        attn_heads: attention heads.
        attn_dim_head: channels per head of temporal attention.
        use_sparse_linear_attn: linear attention within frames at every level; the middle always has
            full attention.
        cond_dim: width of condition vectors; None = the network has no condition.
        null_cond_prob: probability in training that a condition is replaced by the learned null
            condition.
        prob_focus_present: probability in training that a sample focuses on the present.
        focus_init: apply the focus also to the attention before the first level; the original
            implementations do not.

    Raises:
        ConfigError: invalid options, or data that are not videos.
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
        dim_mults, fit = fit_levels("dim_mults", dim_mults, DIM_MULTS, size, pad, num_fixed_axes=1)
        _check_probabilities(null_cond_prob=null_cond_prob, prob_focus_present=prob_focus_present)
        _check_condition(cond_dim, null_cond_prob)
        require(dim >= 4, "dim", dim, "is also the width of the time embedding; use 4 or more")
        odd = init_kernel_size > 0 and init_kernel_size % 2 == 1
        require(odd, "init_kernel_size", init_kernel_size, "must be odd")
        factor = 2 ** (len(dim_mults) - 1)
        factors = (1, factor, factor)
        super().__init__(channels, out_channels, num_classes, self_condition, factors, fit)
        self.cond_dim, self.null_cond_prob = cond_dim, null_cond_prob
        self.prob_focus_present, self.focus_init = prob_focus_present, focus_init
        self.thread_safe = null_cond_prob == prob_focus_present == 0
        groups = resnet_groups if block_norm == "group" else None
        builder = UNet3DBuilder(
            kernel=_kernel(conv, 3),
            widths=_widths(dim, init_dim, dim_mults, groups),
            embedding_channels=4 * dim + (cond_dim or 0),
            groups=groups,
            heads=attn_heads,
            dim_head=attn_dim_head,
            linear_attention=use_sparse_linear_attn,
        )
        self._build(builder, dim, _kernel(conv, init_kernel_size))

    def _build(self, builder: UNet3DBuilder, dim: int, init_kernel: tuple[int, int, int]) -> None:
        stem, levels = builder.widths[0], range(len(builder.widths) - 1)
        self.rotary_emb = Rotary(min(32, builder.dim_head))
        self.time_rel_pos_bias = RelativePositionBias(builder.heads)
        self.init_conv = conv3d(self.in_channels, stem, init_kernel)
        self.init_temporal_attn = builder.temporal(stem)
        self.time_mlp = nn.Sequential(
            SinusoidalEmbedding(dim, cos_first=False, reach_end=True),
            nn.Linear(dim, 4 * dim),
            nn.GELU(),
            nn.Linear(4 * dim, 4 * dim),
        )
        # Labels, which the originals lack, are added to the time as in the other networks.
        if self.num_classes is not None:
            self.label_emb = nn.Embedding(self.num_classes, 4 * dim)
        self.null_cond_emb: nn.Parameter | None = None
        if self.cond_dim is not None:
            self.null_cond_emb = nn.Parameter(torch.randn(1, self.cond_dim))
        self.downs = nn.ModuleList([builder.down(level) for level in levels])
        self.ups = nn.ModuleList([builder.up(level) for level in reversed(levels)])
        self.mid_block1 = builder.residual(builder.widths[-1], builder.widths[-1])
        self.mid_spatial_attn = builder.spatial(builder.widths[-1])
        self.mid_temporal_attn = builder.temporal(builder.widths[-1])
        self.mid_block2 = builder.residual(builder.widths[-1], builder.widths[-1])
        # As wide as the stem, whose output is concatenated here. The originals use twice dim
        # instead, and crash if init_dim differs from dim.
        self.final_conv = nn.Sequential(
            builder.residual(2 * stem, dim, embedded=False),
            conv3d(dim, self.out_channels, (1, 1, 1)),
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
        """Return the prediction ``(B, out_channels, F, H, W)``.

        Args:
            x: ``(B, channels, F, H, W)``.
            t: timesteps ``(B,)``, integer or real.
            y: labels ``(B,)``, required if and only if the network has classes.
            x_self_cond: earlier estimate of x0, of the shape of x.
            cond: conditions ``(B, cond_dim)``; None = the null condition.
            null_cond: bool ``(B,)``, true to replace ``cond`` by the null condition; None = at
                random in training, nowhere in evaluation.
            focus_present_mask: bool ``(B,)``, true for samples that focus on the present; None = at
                random in training, none in evaluation.

        Raises:
            ValueError: a condition without ``cond_dim``, a tensor of the wrong shape, or see
                :meth:`~ddpm.models.layers.Network.prepare`.
        """
        h = self.init_conv(self.prepare(x, y, x_self_cond))
        embedding = self._embed(t, y, x.dtype)
        if self.cond_dim is not None or cond is not None or null_cond is not None:
            condition = self._condition(x.shape[0], cond, null_cond)
            embedding = torch.cat((embedding, condition.to(embedding.dtype)), dim=1)
        axis = self._axis(x, focus_present_mask)
        unfocused = FrameAxis(axis.angles, axis.bias, None)
        h = stem = self.init_temporal_attn(h, axis if self.focus_init else unfocused)
        skips: list[Tensor] = []
        for level in self.downs:
            block1, block2, spatial, temporal, resample = _unpack(level)
            h = temporal(spatial(block2(block1(h, embedding), embedding)), axis)
            skips.append(h)
            h = resample(h)
        h = self.mid_spatial_attn(self.mid_block1(h, embedding))
        h = self.mid_block2(self.mid_temporal_attn(h, axis), embedding)
        for level in self.ups:
            block1, block2, spatial, temporal, resample = _unpack(level)
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
        """Return the prediction with classifier-free guidance (Ho, Salimans 2022).

        Both predictions come from one call on twice the batch, with the same focus; the original
        draws the focus twice. No condition is dropped at random. The inputs are those of
        :meth:`forward`.

        Args:
            x: ``(B, channels, F, H, W)``.
            t: timesteps ``(B,)``, integer or real.
            y: labels ``(B,)``, required if and only if the network has classes.
            x_self_cond: earlier estimate of x0, of the shape of x.
            cond: conditions ``(B, cond_dim)``; None = no guidance.
            cond_scale: guidance scale; 0 = unconditional, 1 = conditional.
            focus_present_mask: bool ``(B,)``, true for samples that focus on the present.

        Returns:
            ``(B, out_channels, F, H, W)``.
        """
        if cond is None:
            return self(x, t, y, x_self_cond, focus_present_mask=focus_present_mask)
        focus = self._focus(x, focus_present_mask)
        keep = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        if cond_scale == 1:
            return self(x, t, y, x_self_cond, cond=cond, null_cond=keep, focus_present_mask=focus)
        output = self(
            *(_repeat_batch(each) for each in (x, t, y, x_self_cond)),
            cond=_repeat_batch(cond),
            null_cond=torch.cat((keep, ~keep)),
            focus_present_mask=_repeat_batch(focus),
        )
        conditional, unconditional = output.chunk(2)
        return unconditional + (conditional - unconditional) * cond_scale

    def _embed(self, t: Tensor, y: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return the embedding ``(B, 4 * dim)`` of the timesteps and, if any, the labels."""
        embedding, *layers = self.time_mlp
        h = embedding(t, dtype)
        for layer in layers:
            h = layer(h)
        return h if y is None else h + self.label_emb(y)

    def _condition(self, batch: int, cond: Tensor | None, null_cond: Tensor | None) -> Tensor:
        """Return the conditions ``(B, cond_dim)``, some replaced by the null condition."""
        if self.null_cond_emb is None:
            raise ValueError("a condition requires a network with cond_dim")
        if cond is None:
            return self.null_cond_emb.expand(batch, -1)
        _check_shape("cond", cond, (batch, self.null_cond_emb.shape[1]))
        if null_cond is None:
            drop = self.null_cond_prob if self.training else 0.0
            null_cond = torch.rand(batch, device=cond.device) < drop
        _check_shape("null_cond", null_cond, (batch,))
        return torch.where(null_cond[:, None], self.null_cond_emb, cond)

    def _axis(self, x: Tensor, focus_present_mask: Tensor | None) -> FrameAxis:
        """Return the positions of the frames of x, for temporal attention."""
        frames = x.shape[2]
        focus = self._focus(x, focus_present_mask)
        return FrameAxis(self.rotary_emb(frames), self.time_rel_pos_bias(frames), focus)

    def _focus(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        """Return the focus mask ``(B,)``; if ``mask`` is None, training may draw one at random."""
        if mask is not None:
            _check_shape("focus_present_mask", mask, (len(x),))
        elif self.training and self.prob_focus_present > 0:
            return torch.rand(len(x), device=x.device) < self.prob_focus_present
        return mask


def _repeat_batch(value: Tensor | None) -> Tensor | None:
    """Return a batch concatenated with itself; None stays None."""
    return None if value is None else torch.cat((value, value))


def _unpack(level: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module, nn.Module]:
    """Return two blocks, spatial attention, temporal attention and resampling of a level."""
    assert isinstance(level, nn.ModuleList)
    block1, block2, spatial, temporal, resample = level
    return block1, block2, spatial, temporal, resample


def _kernel(conv: str, width: int) -> tuple[int, int, int]:
    """Return the kernel (F, H, W) of a convolution; across frames it has length 1 unless full."""
    return (width if conv == "full" else 1, width, width)


def _check_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless ``value`` has this shape."""
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
        require(0 <= value <= 1, key, value, "must be a probability, from 0 to 1")


def _check_condition(cond_dim: int | None, null_cond_prob: float) -> None:
    """Raise ConfigError for an invalid width, or for null conditions without conditions."""
    if cond_dim is not None:
        check_positive(cond_dim=cond_dim)
        return
    require(
        null_cond_prob == 0,
        "null_cond_prob",
        null_cond_prob,
        "requires conditions; set cond_dim or use 0",
    )


def _widths(
    dim: int, init_dim: int | None, dim_mults: tuple[int, ...], groups: int | None
) -> tuple[int, ...]:
    """Return the channels of the stem and of each level; check that the groups divide them."""
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
                f"a level has {width} channels, not divisible into {groups} groups; make {key} "
                f"a multiple of {groups}, lower resnet_groups or set block_norm=rms",
            )
    return widths
