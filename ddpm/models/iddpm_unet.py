"""U-Net of "Improved Denoising Diffusion Probabilistic Models" (Nichol and Dhariwal, 2021).

It includes the options that "Diffusion Models Beat GANs on Image Synthesis" (Dhariwal and Nichol,
2021) added. Parameters have the names of ``UNetModel`` in improved-diffusion and guided-diffusion,
so that checkpoints are interchangeable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ddpm.errors import render, require
from ddpm.models.embeddings import SinusoidalEmbedding
from ddpm.models.iddpm_blocks import (
    NUM_GROUPS,
    IDDPMUNetBuilder,
    make_decoder,
    make_encoder,
    make_middle,
    resample_factor,
)
from ddpm.models.layers import (
    Network,
    check_dropout,
    check_positive,
    conv_nd,
    zero_module,
)
from ddpm.models.sizes import Fit, describe_size, fit_levels

CHANNEL_MULT = (1, 2, 2, 2)  # default of improved-diffusion for 32x32


class IDDPMUNet(Network):
    """U-Net of OpenAI's improved-diffusion and guided-diffusion, for one to three spatial axes.

    Of three spatial axes the first, time, is never resampled.

    Args:
        channels: channels of the data.
        out_channels: channels of the output.
        size: spatial size of the data. It only determines the defaults of ``channel_mult``, ``pad``
            and ``dims``: the network accepts all sizes that its levels can halve, and with ``pad``
            all sizes.
        num_classes: number of classes; the label embedding is added to the time embedding.
        self_condition: also receive an earlier estimate of x0.
        model_channels: base number of channels.
        num_res_blocks: residual blocks per level.
        attention_resolutions: downsampling rates of the levels with attention.
        channel_mult: channels of each level, in units of ``model_channels``; None = (1, 2, 2, 2),
            or its first entries if the size allows fewer levels
            (see :func:`~ddpm.models.sizes.choose_halvings`), with the attention of these levels.
        pad: pad inputs whose size the levels cannot halve, and crop the output; None = only if
            ``channel_mult`` is None and ``size`` allows too few levels.
        scale_stem: the first convolution has the channels of the first level instead of
            ``model_channels``.
        dropout: probability, in each residual block.
        conv_resample: resample by convolutions instead of average pooling and nearest neighbours.
        resblock_updown: resample in residual blocks; ``conv_resample`` is then ignored.
        num_heads: attention heads.
        num_heads_upsample: attention heads in the decoder; None or -1 = ``num_heads``.
        num_head_channels: channels per attention head, which replaces the numbers of heads; None
            or -1 = not used.
        use_new_attention_order: split the channels of ``qkv`` into q, k, v before the heads.
        use_scale_shift_norm: the embedding scales and shifts, instead of only shifting.
        use_checkpoint: recompute activations in the backward pass to save memory.
        dims: number of spatial axes; None = that of the data.
        norm_num_groups: groups of each GroupNorm; they divide the channels of each level.
        norm_eps: number added to the variance in each GroupNorm.
        flip_sin_to_cos: the time embedding has the cosines before the sines.
        freq_shift: 1 makes the last frequency of the time embedding exactly 1/10000; see
            :class:`~ddpm.models.embeddings.SinusoidalEmbedding`.
        downsample_padding: zeros on both sides of each axis before a strided convolution; 0 = one
            zero at the end of each axis only, as in the original DDPM (Ho 2020).

    The last five, with the names of diffusers' ``UNet2DModel``, are for its networks; their
    defaults are OpenAI's.

    Raises:
        ConfigError: invalid options, or data with another number of spatial axes.
    """

    thread_safe = True
    adaptive = ("channel_mult", "pad", "attention_resolutions")
    legacy_defaults = {"channel_mult": list(CHANNEL_MULT), "pad": False}
    cpu_defaults = {"model_channels": 32}

    def __init__(
        self,
        channels: int,
        out_channels: int,
        size: tuple[int, ...],
        num_classes: int | None = None,
        self_condition: bool = False,
        *,
        model_channels: int = 128,
        num_res_blocks: int = 2,
        attention_resolutions: tuple[int, ...] = (2, 4),
        channel_mult: tuple[float, ...] | None = None,
        pad: bool | None = None,
        scale_stem: bool = False,
        dropout: float = 0.0,
        conv_resample: bool = True,
        resblock_updown: bool = False,
        num_heads: int = 4,
        num_heads_upsample: int | None = None,
        num_head_channels: int | None = None,
        use_new_attention_order: bool = False,
        use_scale_shift_norm: bool = True,
        use_checkpoint: bool = False,
        dims: int | None = None,
        norm_num_groups: int = NUM_GROUPS,
        norm_eps: float = 1e-5,
        flip_sin_to_cos: bool = True,
        freq_shift: Literal[0, 1] = 0,
        downsample_padding: Literal[0, 1] = 1,
    ) -> None:
        dims = len(size) if dims is None else dims
        _check_dims(dims, size)
        check_positive(channel_mult=cast("Sequence[int] | None", channel_mult))  # or fractions
        upper_heads = num_heads if num_heads_upsample in (None, -1) else num_heads_upsample
        mult, rates, fit = _fit(channel_mult, tuple(attention_resolutions), size, pad)
        builder = IDDPMUNetBuilder(
            dims=dims,
            model_channels=model_channels,
            num_res_blocks=num_res_blocks,
            attention_rates=rates,
            channel_mult=mult,
            scale_stem=scale_stem,
            dropout=dropout,
            conv_resample=conv_resample,
            resblock_updown=resblock_updown,
            num_heads=num_heads,
            num_heads_upsample=upper_heads,
            num_head_channels=None if num_head_channels == -1 else num_head_channels,
            use_new_attention_order=use_new_attention_order,
            use_scale_shift_norm=use_scale_shift_norm,
            use_checkpoint=use_checkpoint,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            cos_first=flip_sin_to_cos,
            reach_end=freq_shift == 1,
            downsample_padding=downsample_padding,
        )
        _check(builder, size)
        super().__init__(channels, out_channels, num_classes, self_condition, builder.factors, fit)
        self._build(builder)

    def _build(self, builder: IDDPMUNetBuilder) -> None:
        self.timestep = SinusoidalEmbedding(
            builder.model_channels, cos_first=builder.cos_first, reach_end=builder.reach_end
        )
        self.time_embed = nn.Sequential(
            nn.Linear(builder.model_channels, builder.embedding_channels),
            nn.SiLU(),
            nn.Linear(builder.embedding_channels, builder.embedding_channels),
        )
        if self.num_classes is not None:
            self.label_emb = nn.Embedding(self.num_classes, builder.embedding_channels)
        self.input_blocks, skip_channels = make_encoder(builder, self.in_channels)
        self.middle_block = make_middle(builder)
        self.output_blocks = make_decoder(builder, skip_channels)
        # improved-diffusion uses model_channels here, and requires channel_mult[0] == 1.
        width = builder.widths[0]
        self.out = nn.Sequential(
            builder.norm(width),
            nn.SiLU(),
            zero_module(conv_nd(builder.dims, width, self.out_channels, 3, padding=1)),
        )

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
        return self.crop(self.out(self._trunk(x, t, y, x_self_cond)), x)

    def features(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        x_self_cond: Tensor | None = None,
    ) -> dict[str, list[Tensor] | Tensor]:
        """Return the outputs of the blocks for the inputs of :meth:`forward`.

        Returns:
            ``down`` and ``up``: lists of tensors ``(B, C, *spatial)`` in the order of computation;
            ``middle``: one such tensor. The spatial size is that of the level, with padding.
        """
        features: dict[str, list[Tensor] | Tensor] = {}
        self._trunk(x, t, y, x_self_cond, features)
        return features

    def _trunk(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None,
        x_self_cond: Tensor | None,
        features: dict[str, list[Tensor] | Tensor] | None = None,
    ) -> Tensor:
        """Apply all but the output layers; store the outputs of the blocks in ``features``."""
        h = self.prepare(x, y, x_self_cond)
        embedding = self.time_embed(self.timestep(t, x.dtype))
        if y is not None:
            embedding = embedding + self.label_emb(y)
        skips: list[Tensor] = []
        for block in self.input_blocks:
            h = block(h, embedding)
            skips.append(h)
        down, middle = list(skips) if features is not None else [], self.middle_block(h, embedding)
        h, up = middle, []
        for block in self.output_blocks:
            h = block(torch.cat((h, skips.pop()), dim=1), embedding)
            if features is not None:
                up.append(h)
        if features is not None:
            features.update(down=down, middle=middle, up=up)
        return h


def _fit(
    channel_mult: tuple[float, ...] | None,
    rates: tuple[int, ...],
    size: tuple[int, ...],
    pad: bool | None,
) -> tuple[tuple[float, ...], tuple[int, ...], Fit]:
    """Return channel multipliers, rates with attention and the adaptation to the size."""
    requested = channel_mult
    if requested is not None:
        requested = tuple(int(n) if n == int(n) else n for n in requested)
    num_fixed_axes = resample_factor(len(size)).count(1)
    mult, fit = fit_levels("channel_mult", requested, CHANNEL_MULT, size, pad, num_fixed_axes)
    if channel_mult is None:
        missing = [2**level for level in range(len(mult), len(CHANNEL_MULT))]
        remaining = tuple(rate for rate in rates if rate not in missing)
        note = fit.note
        if remaining != rates:
            note = f"{note}; attention_resolutions={render(remaining)}"
        options = {**fit.options, "attention_resolutions": list(remaining)}
        return mult, remaining, replace(fit, options=options, note=note)
    return mult, rates, fit


def _check_dims(dims: int, size: tuple[int, ...]) -> None:
    """Raise ConfigError unless ``dims`` is the number of spatial axes of the data."""
    require(
        dims == len(size) and dims in (1, 2, 3),
        "dims",
        dims,
        f"the data are {describe_size(size)}, which has {len(size)} spatial axes; "
        "use dims=null or other data",
    )


def _check(builder: IDDPMUNetBuilder, size: tuple[int, ...]) -> None:
    """Raise ConfigError for invalid options."""
    check_positive(model_channels=builder.model_channels, num_res_blocks=builder.num_res_blocks)
    check_positive(norm_num_groups=builder.norm_num_groups)
    require(builder.norm_eps > 0, "norm_eps", builder.norm_eps, "must be above 0")
    good = not builder.reach_end or builder.model_channels >= 4
    require(good, "freq_shift", 1, "needs at least 4 model_channels")
    check_dropout(builder.dropout)
    _check_widths(builder)
    _check_rates(builder, size)
    _check_heads(builder)


def _check_widths(builder: IDDPMUNetBuilder) -> None:
    """Raise ConfigError for numbers of channels that the groups of GroupNorm do not divide."""
    number = builder.norm_num_groups
    groups = f"GroupNorm has {number} groups"
    uneven = [n for n in (builder.stem_channels, *builder.widths) if n == 0 or n % number]
    if builder.model_channels % number:
        problem = f"{groups}; make it a multiple of {number}"
        require(not uneven, "model_channels", builder.model_channels, problem)
    elif uneven:
        problem = f"makes {uneven[0]} channels, but {groups}; make them multiples of {number}"
        require(False, "channel_mult", builder.channel_mult, problem)


def _check_rates(builder: IDDPMUNetBuilder, size: tuple[int, ...]) -> None:
    """Raise ConfigError for rates with attention that no level has."""
    rates = [2**level for level in range(len(builder.widths))]
    requested = builder.attention_rates
    if any(rate not in rates for rate in requested):
        problem = f"the values are downsampling rates, and the levels have {render(rates)}"
        intended = [size[-1] // n for n in requested if n > 0 and size[-1] % n == 0]
        if len(intended) == len(requested) and all(rate in rates for rate in intended):
            problem += f"; did you mean these resolutions? They are the rates {render(intended)}"
        require(False, "attention_resolutions", requested, problem)


def _check_heads(builder: IDDPMUNetBuilder) -> None:
    """Raise ConfigError for numbers of heads that do not divide the channels."""
    attending = {width for level, width in enumerate(builder.widths) if builder.attends(level)}
    everywhere = {*attending, builder.widths[-1]}
    requested = [
        ("num_heads", builder.num_heads, everywhere),
        ("num_heads_upsample", builder.num_heads_upsample, attending),
    ]
    if builder.num_head_channels is not None:
        requested = [("num_head_channels", builder.num_head_channels, everywhere)]
    for key, number, widths in requested:
        check_positive(**{key: number})
        for width in sorted(widths):
            require(
                width % number == 0,
                key,
                number,
                f"does not divide the {width} channels of a level with attention; use a divisor",
            )
