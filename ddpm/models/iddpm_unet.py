"""The U-Net of "Improved Denoising Diffusion Probabilistic Models" (Nichol and Dhariwal, 2021).

With the options that "Diffusion Models Beat GANs on Image Synthesis" (Dhariwal and Nichol, 2021)
added. Its parameters have the names of the ``UNetModel`` of improved-diffusion and of
guided-diffusion, so that checkpoints of the one are checkpoints of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from ddpm.errors import render, require
from ddpm.models.iddpm_blocks import (
    NUM_GROUPS,
    Plan,
    make_decoder,
    make_encoder,
    make_middle,
    resample_factor,
)
from ddpm.models.layers import (
    GroupNorm,
    Network,
    SinusoidalEmbedding,
    check_dropout,
    check_positive,
    conv_nd,
    zero_module,
)
from ddpm.models.sizes import Fit, describe_size, fit_levels

CHANNEL_MULT = (1, 2, 2, 2)  # of improved-diffusion for 32x32


class IDDPMUNet(Network):
    """OpenAI's U-Net: ``(B, channels, *spatial)`` to ``(B, out_channels, *spatial)``.

    Works on one, two and three spatial axes; of three the first is never resampled. Residual blocks
    and attention come per level of ``channel_mult``, with attention where the downsampling rate is
    among ``attention_resolutions``. A ``channel_mult`` of None takes (1, 2, 2, 2), or as many of
    these as suit ``size`` (see :func:`~ddpm.models.sizes.choose_halvings`), with the rates of
    attention that these levels have. ``size`` decides nothing else: the network takes every size
    that its levels can halve, and with ``pad`` every other size too, where it pads its input and
    crops its output. A ``pad`` of None is true where ``channel_mult`` is None and the size leaves
    too few levels. A level has ``num_heads`` heads, on the way up ``num_heads_upsample`` (None or
    -1: as many), or heads of ``num_head_channels`` where that is given (neither None nor -1), which
    then decides alone. Levels are resampled by convolutions (``conv_resample``), by means and
    repeats, or in residual blocks (``resblock_updown``, which decides alone). ``scale_stem`` gives
    the first convolution the channels of the first level instead of ``model_channels``. Raises
    ConfigError for settings that no network can have.
    (Nichol and Dhariwal, 2021; Dhariwal and Nichol, 2021.)
    """

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
    ) -> None:
        dims = len(size) if dims is None else dims
        _check_dims(dims, size)
        check_positive(channel_mult=cast("Sequence[int] | None", channel_mult))  # or fractions
        mult, rates, fit = _fit(channel_mult, tuple(attention_resolutions), size, pad)
        plan = Plan(
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
            num_heads_upsample=num_heads
            if num_heads_upsample in (None, -1)
            else num_heads_upsample,
            num_head_channels=None if num_head_channels == -1 else num_head_channels,
            use_new_attention_order=use_new_attention_order,
            use_scale_shift_norm=use_scale_shift_norm,
            use_checkpoint=use_checkpoint,
        )
        _check(plan, size)
        factors = tuple(n ** (len(mult) - 1) for n in resample_factor(dims))
        super().__init__(channels, out_channels, num_classes, self_condition, factors, fit)
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
        self.input_blocks, given = make_encoder(plan, self.in_channels)
        self.middle_block = make_middle(plan)
        self.output_blocks = make_decoder(plan, given)
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
        return self.crop(self.out(self._trunk(x, t, y, x_self_cond)), x)

    def features(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        x_self_cond: Tensor | None = None,
    ) -> dict[str, list[Tensor] | Tensor]:
        """What the blocks give for these inputs, which are those of ``forward``.

        ``down`` and ``up`` are lists in the order of computation, ``middle`` is one tensor; all
        are ``(B, C, *spatial)`` at the size of their level, of the padded data where the network
        pads.
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


def _fit(
    channel_mult: tuple[float, ...] | None,
    rates: tuple[int, ...],
    size: tuple[int, ...],
    pad: bool | None,
) -> tuple[tuple[float, ...], tuple[int, ...], Fit]:
    """The channel multipliers, the rates of attention and the padding for data of this size."""
    typed = channel_mult
    if typed is not None:
        typed = tuple(int(n) if n == int(n) else n for n in typed)
    num_kept = resample_factor(len(size)).count(1)
    mult, fit = fit_levels("channel_mult", typed, CHANNEL_MULT, size, pad, num_kept)
    if channel_mult is None:
        missing = [2**level for level in range(len(mult), len(CHANNEL_MULT))]
        kept = tuple(rate for rate in rates if rate not in missing)
        note = fit.note
        if kept != rates:
            note = f"{note}; attention_resolutions={render(kept)}"
        options = {**fit.options, "attention_resolutions": list(kept)}
        return mult, kept, replace(fit, options=options, note=note)
    return mult, rates, fit


def _check_dims(dims: int, size: tuple[int, ...]) -> None:
    """Raise ConfigError unless the network is for data with as many axes as these have."""
    require(
        dims == len(size) and dims in (1, 2, 3),
        "dims",
        dims,
        f"the data are {describe_size(size)}, which has {len(size)} spatial axes; "
        "leave dims=null or choose other data",
    )


def _check(plan: Plan, size: tuple[int, ...]) -> None:
    """Raise ConfigError for settings that no network can have."""
    check_positive(model_channels=plan.model_channels, num_res_blocks=plan.num_res_blocks)
    check_dropout(plan.dropout)
    _check_widths(plan)
    _check_rates(plan, size)
    _check_heads(plan)


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
