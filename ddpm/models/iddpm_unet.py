"""The U-Net of "Improved Denoising Diffusion Probabilistic Models" (Nichol and Dhariwal, 2021).

With the options that "Diffusion Models Beat GANs on Image Synthesis" (Dhariwal and Nichol, 2021)
added. Its parameters have the names of the ``UNetModel`` of improved-diffusion and of
guided-diffusion, so that checkpoints of the one are checkpoints of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ddpm.errors import render, require
from ddpm.models.iddpm_blocks import NUM_GROUPS, Plan, TimestepSequential, resample_factor
from ddpm.models.layers import (
    GroupNorm,
    Network,
    SinusoidalEmbedding,
    check_dropout,
    check_halvings,
    check_positive,
    conv_nd,
    describe_size,
    zero_module,
)


def _make_encoder(plan: Plan, in_channels: int) -> tuple[nn.ModuleList, list[int]]:
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


def _make_middle(plan: Plan) -> TimestepSequential:
    """The blocks at the coarsest level; they always attend."""
    width = plan.widths[-1]
    return TimestepSequential(
        plan.residual(width, width),
        plan.attention(width, plan.num_heads),
        plan.residual(width, width),
    )


def _make_decoder(plan: Plan, given: list[int]) -> nn.ModuleList:
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


class IDDPMUNet(Network):
    """OpenAI's U-Net: ``(B, channels, *spatial)`` to ``(B, out_channels, *spatial)``.

    Works on one, two and three spatial axes; of three the first is never resampled. ``size`` is
    only checked, the network takes every size that its levels can halve. Residual blocks and
    attention come per level of ``channel_mult``, with attention where the downsampling rate is
    among ``attention_resolutions``. A level has ``num_heads`` heads, on the way up
    ``num_heads_upsample`` (None or -1: as many), or heads of ``num_head_channels`` where that is
    given (neither None nor -1), which then decides alone. Levels are resampled by convolutions
    (``conv_resample``), by means and repeats, or in residual blocks (``resblock_updown``, which
    decides alone). ``scale_stem`` gives the first convolution the channels of the first level
    instead of ``model_channels``. Raises ConfigError for settings that no network can have.
    (Nichol and Dhariwal, 2021; Dhariwal and Nichol, 2021.)
    """

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
        channel_mult: tuple[float, ...] = (1, 2, 2, 2),
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
    ) -> None:
        plan = Plan(
            dims=len(size) if dims is None else dims,
            model_channels=model_channels,
            num_res_blocks=num_res_blocks,
            attention_rates=tuple(attention_resolutions),
            channel_mult=tuple(int(n) if n == int(n) else n for n in channel_mult),
            scale_stem=scale_stem,
            dropout=dropout,
            conv_resample=conv_resample,
            resblock_updown=resblock_updown,
            num_heads=num_heads,
            num_heads_upsample=num_heads
            if num_heads_upsample in (None, -1)
            else num_heads_upsample,
            num_head_channels=None if num_head_channels == -1 else num_head_channels,
            use_new_attention_order=use_new_attention_order,
            use_scale_shift_norm=use_scale_shift_norm,
            use_checkpoint=use_checkpoint,
        )
        _check(plan, size)
        halvings = len(channel_mult) - 1
        factors = tuple(n**halvings for n in resample_factor(plan.dims))
        super().__init__(channels, out_channels, num_classes, self_condition, factors)
        self._build(plan)

    def _build(self, plan: Plan) -> None:
        self.timestep = SinusoidalEmbedding(plan.model_channels, cos_first=True, reach_end=False)
        self.time_embed = nn.Sequential(
            nn.Linear(plan.model_channels, plan.embedding_channels),
            nn.SiLU(),
            nn.Linear(plan.embedding_channels, plan.embedding_channels),
        )
        if self.num_classes is not None:
            self.label_emb = nn.Embedding(self.num_classes, plan.embedding_channels)
        self.input_blocks, given = _make_encoder(plan, self.in_channels)
        self.middle_block = _make_middle(plan)
        self.output_blocks = _make_decoder(plan, given)
        # improved-diffusion's last convolution takes model_channels: it needs channel_mult[0] == 1.
        width = plan.widths[0]
        self.out = nn.Sequential(
            GroupNorm(NUM_GROUPS, width),
            nn.SiLU(),
            zero_module(conv_nd(plan.dims, width, self.out_channels, 3, padding=1)),
        )

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
        return self.out(self._trunk(x, t, y, x_self_cond))

    def features(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        x_self_cond: Tensor | None = None,
    ) -> dict[str, list[Tensor] | Tensor]:
        """What the blocks give for these inputs, which are those of ``forward``.

        ``down`` and ``up`` are lists in the order of computation, ``middle`` is one tensor; all
        are ``(B, C, *spatial)`` at the size of their level.
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
        """All but the output layers; keeps what the blocks give in ``features`` if there is one."""
        h = self.prepare(x, y, x_self_cond)
        embedding = self.time_embed(self.timestep(t).to(x.dtype))
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


def _check(plan: Plan, size: tuple[int, ...]) -> None:
    """Raise ConfigError for settings that no network can have."""
    require(
        plan.dims == len(size) and plan.dims in (1, 2, 3),
        "dims",
        plan.dims,
        f"the data are {describe_size(size)}, which has {len(size)} spatial axes; "
        "leave dims=null or choose other data",
    )
    mult = cast("Sequence[int]", plan.channel_mult)  # or fractions: here only compared and shown
    check_positive(
        model_channels=plan.model_channels, num_res_blocks=plan.num_res_blocks, channel_mult=mult
    )
    check_dropout(plan.dropout)
    _check_widths(plan)
    _check_rates(plan, size)
    _check_heads(plan)
    check_halvings("channel_mult", mult, size, resample_factor(plan.dims).count(1))


def _check_widths(plan: Plan) -> None:
    """Raise ConfigError for channels that GroupNorm cannot put into groups."""
    groups = f"GroupNorm has {NUM_GROUPS} groups"
    uneven = [n for n in (plan.stem_channels, *plan.widths) if n == 0 or n % NUM_GROUPS]
    if plan.model_channels % NUM_GROUPS:
        problem = f"{groups}; make it a multiple of {NUM_GROUPS}"
        require(not uneven, "model_channels", plan.model_channels, problem)
    elif uneven:
        problem = f"makes {uneven[0]} channels, but {groups}; make them multiples of {NUM_GROUPS}"
        require(False, "channel_mult", plan.channel_mult, problem)


def _check_rates(plan: Plan, size: tuple[int, ...]) -> None:
    """Raise ConfigError for rates of attention that no level has."""
    rates = [2**level for level in range(len(plan.widths))]
    asked = plan.attention_rates
    if any(rate not in rates for rate in asked):
        problem = f"the values are downsampling rates, and the levels have {render(rates)}"
        meant = [size[-1] // n for n in asked if n > 0 and size[-1] % n == 0]
        if len(meant) == len(asked) and all(rate in rates for rate in meant):
            problem += f"; did you mean these resolutions? They are the rates {render(meant)}"
        require(False, "attention_resolutions", asked, problem)


def _check_heads(plan: Plan) -> None:
    """Raise ConfigError for heads that do not divide the channels."""
    attending = {width for level, width in enumerate(plan.widths) if plan.attends(level)}
    everywhere = {*attending, plan.widths[-1]}
    asked = [
        ("num_heads", plan.num_heads, everywhere),
        ("num_heads_upsample", plan.num_heads_upsample, attending),
    ]
    if plan.num_head_channels is not None:
        asked = [("num_head_channels", plan.num_head_channels, everywhere)]
    for key, number, widths in asked:
        check_positive(**{key: number})
        for width in sorted(widths):
            require(
                width % number == 0,
                key,
                number,
                f"does not divide the {width} channels of a level with attention; choose a divisor",
            )
