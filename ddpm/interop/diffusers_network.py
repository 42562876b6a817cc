"""``UNet2DModel`` of diffusers: its config, and our equivalent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddpm.config.schema import check
from ddpm.errors import ConfigError, did_you_mean, render, require
from ddpm.interop.foreign_format import Arguments, NetworkSpec
from ddpm.interop.openai import times
from ddpm.models import IDDPMUNet

NETWORK = "UNet2DModel"
NAMES = (NETWORK, "UNetModel")
"""Its class name, now and in the first version."""
AVERAGE_OPTIONS = frozenset(
    "decay min_decay optimization_step update_after_step use_ema_warmup inv_gamma power".split()
)
"""Entries that ``EMAModel`` adds to the config of averaged weights."""

_DEFAULTS: Arguments = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", *("AttnDownBlock2D",) * 3),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": (*("AttnUpBlock2D",) * 3, "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
# Values that have an equivalent, and the reason why others have none.
_SUPPORTED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "center_input_sample": ((False,), "networks here receive x_t unchanged"),
    "time_embedding_type": (("positional",), "iddpm_unet has sinusoidal time embeddings only"),
    "freq_shift": ((0, 1), "iddpm_unet supports 0 and 1"),
    "mid_block_type": (("UNetMidBlock2D",), "the middle of iddpm_unet has residual blocks"),
    "mid_block_scale_factor": ((1,), "the blocks of iddpm_unet are not rescaled"),
    "downsample_padding": ((0, 1), "iddpm_unet supports 0 and 1"),
    "downsample_type": (("conv", "resnet", None), "iddpm_unet has no such downsampling"),
    "upsample_type": (("conv", "resnet", None), "iddpm_unet has no such upsampling"),
    "act_fn": (("silu", "swish"), "the activation of iddpm_unet is SiLU"),
    "resnet_time_scale_shift": (
        ("default", "scale_shift"),
        "the embedding of iddpm_unet shifts, or scales and shifts",
    ),
    "add_attention": ((True,), "the middle of iddpm_unet always has attention"),
    "class_embed_type": ((None,), "iddpm_unet embeds class numbers only"),
}
_WITH_ATTENTION = ("AttnDownBlock2D", "AttnUpBlock2D")
_BLOCKS = {
    "down": ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
    "up": ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
}


def network_spec(config: Mapping[str, Any]) -> NetworkSpec:
    """Return our network for the config of a ``UNet2DModel``.

    Raises:
        ConfigError: (key ``unet.<option>``) an option without an equivalent, with the reason.
    """
    check_class(config)
    try:
        return _network_spec(_arguments(config))
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise ConfigError("unet", None, f"its config.json is not that of a {NETWORK}") from error


def check_class(config: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the config is that of a ``UNet2DModel``."""
    name = config.get("_class_name", NETWORK)
    problem = f"cannot be imported, only {NETWORK}; use a pipeline with one"
    require(name in NAMES, "unet", name, problem)


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments of the constructor; lists become tuples."""
    options = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in config.items()
        if not name.startswith("_") and name not in AVERAGE_OPTIONS
    }
    for name, value in options.items():
        problem = f"is not an option of {NETWORK} that can be imported"
        good = name in _DEFAULTS or value is None
        require(good, f"unet.{name}", value, f"{problem}{did_you_mean(name, _DEFAULTS)}")
    arguments = {**_DEFAULTS, **options}
    for name, (values, reason) in _SUPPORTED.items():
        require(arguments[name] in values, f"unet.{name}", arguments[name], reason)
    return arguments


def _network_spec(arguments: Mapping[str, Any]) -> NetworkSpec:
    widths, groups = arguments["block_out_channels"], arguments["norm_num_groups"]
    _check_channels(arguments, widths)
    scale_shift = arguments["resnet_time_scale_shift"] == "scale_shift"
    middle = arguments["attn_norm_num_groups"] or (None if scale_shift else groups)
    problem = (
        "the attention in the middle has no norm then, but that of iddpm_unet has one"
        if middle is None
        else f"all norms of iddpm_unet have the same number of groups, here {groups}"
    )
    require(middle == groups, "unet.attn_norm_num_groups", middle, problem)
    head = arguments["attention_head_dim"]
    levels = _attending(arguments)
    for width in (*(widths[level] for level in levels), widths[-1]):
        problem = f"does not divide the {width} channels of a level with attention"
        require(head is None or width % head == 0, "unet.attention_head_dim", head, problem)
    options = {
        "model_channels": widths[0],
        "channel_mult": tuple(times(widths[0], width) for width in widths),
        "pad": False,
        "num_res_blocks": arguments["layers_per_block"],
        "attention_resolutions": tuple(2**level for level in levels),
        "dropout": arguments["dropout"],
        "conv_resample": True,
        "resblock_updown": _resampling(arguments) == "resnet",
        "num_heads": 1,
        "num_heads_upsample": None,
        "num_head_channels": head,
        "use_new_attention_order": True,
        "use_scale_shift_norm": scale_shift,
        "norm_num_groups": groups,
        "norm_eps": arguments["norm_eps"],
        "flip_sin_to_cos": arguments["flip_sin_to_cos"],
        "freq_shift": int(arguments["freq_shift"]),
        "downsample_padding": int(arguments["downsample_padding"]),
    }
    return NetworkSpec(
        IDDPMUNet,
        arguments["in_channels"],
        arguments["out_channels"],
        (2 ** (len(widths) - 1),) * 2,
        arguments["num_class_embeds"],
        False,
        check(options, IDDPMUNet, "unet"),
    )


def _check_channels(arguments: Mapping[str, Any], widths: tuple[int, ...]) -> None:
    """Raise ConfigError for numbers of channels that our network does not have."""
    inputs, outputs = arguments["in_channels"], arguments["out_channels"]
    problem = (
        f"but in_channels={inputs}: outputs are one per input channel, or two with a learned "
        "variance; networks with conditioning channels cannot be imported"
    )
    require(outputs in (inputs, 2 * inputs), "unet.out_channels", outputs, problem)
    embedding = arguments["time_embedding_dim"]
    problem = f"is 4 times the first of block_out_channels in iddpm_unet, {4 * widths[0]}"
    good = embedding in (None, 4 * widths[0])
    require(good, "unet.time_embedding_dim", embedding, problem)


def _block_types(arguments: Mapping[str, Any], side: str) -> list[str]:
    """Return the types of the ``down`` or ``up`` blocks, from the finest level to the coarsest."""
    key = f"{side}_block_types"
    types = [name.removeprefix("UNetRes") for name in arguments[key]]
    for name in types:
        problem = f"iddpm_unet has {', '.join(_BLOCKS[side])} only"
        require(name in _BLOCKS[side], f"unet.{key}", name, problem)
    number = len(arguments["block_out_channels"])
    problem = f"has {len(types)} blocks, but block_out_channels has {number}"
    require(len(types) == number, f"unet.{key}", None, problem)
    return types if side == "down" else types[::-1]


def _attending(arguments: Mapping[str, Any]) -> list[int]:
    """Return the levels with attention, which are the same on both sides."""
    down, up = (
        [
            level
            for level, name in enumerate(_block_types(arguments, side))
            if name in _WITH_ATTENTION
        ]
        for side in ("down", "up")
    )
    problem = (
        f"levels {render(up)} have attention on the way up and levels {render(down)} on the way "
        "down, but the same in iddpm_unet"
    )
    require(down == up, "unet.up_block_types", None, problem)
    return down


def _resampling(arguments: Mapping[str, Any]) -> str:
    """Return ``conv`` or ``resnet``, the resampling between all levels."""
    plain = {"DownBlock2D": "conv", "UpBlock2D": "conv"}
    plain |= {"ResnetDownsampleBlock2D": "resnet", "ResnetUpsampleBlock2D": "resnet"}
    down = [
        plain.get(name, arguments["downsample_type"] or "conv")
        for name in _block_types(arguments, "down")[:-1]
    ]
    up = [
        plain.get(name, arguments["upsample_type"] or "conv")
        for name in _block_types(arguments, "up")[1:]
    ]
    kinds = {*down, *up} or {"conv"}
    problem = (
        "some levels are resampled by a convolution and others by residual blocks, but all alike "
        "in iddpm_unet"
    )
    require(len(kinds) == 1, "unet.down_block_types", None, problem)
    return kinds.pop()


def config_of(spec: NetworkSpec) -> dict[str, Any]:
    """Return the config of the ``UNet2DModel`` that equals one of our networks.

    Raises:
        ConfigError: an option without an equivalent, with the reason.
    """
    problem = "supports networks of model=iddpm_unet for images only"
    require(spec.target is IDDPMUNet and len(spec.size) == 2, "format", "diffusers", problem)
    problem = f"{NETWORK} does not receive earlier predictions"
    require(not spec.self_condition, "diffusion.self_condition", True, problem)
    options, widths = spec.options, _widths(spec)
    pooled = len(widths) > 1 and not (options["conv_resample"] or options["resblock_updown"])
    problem = f"{NETWORK} does not resample by pooling"
    require(not pooled, "model.conv_resample", False, problem)
    attends = [2**level in options["attention_resolutions"] for level in range(len(widths))]
    kind = "resnet" if options["resblock_updown"] else "conv"
    down, up = (
        ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
        if kind == "resnet"
        else ("DownBlock2D", "UpBlock2D")
    )
    high, wide = spec.size
    return {
        **_DEFAULTS,
        "sample_size": wide if high == wide else [high, wide],
        "in_channels": spec.channels,
        "out_channels": spec.out_channels,
        "down_block_types": ["AttnDownBlock2D" if each else down for each in attends],
        "up_block_types": ["AttnUpBlock2D" if each else up for each in reversed(attends)],
        "block_out_channels": widths,
        "layers_per_block": options["num_res_blocks"],
        "downsample_type": kind,
        "upsample_type": kind,
        "dropout": options["dropout"],
        "attention_head_dim": _head_channels(options, widths, attends),
        "attn_norm_num_groups": options["norm_num_groups"],
        "resnet_time_scale_shift": "scale_shift" if options["use_scale_shift_norm"] else "default",
        "num_class_embeds": spec.num_classes,
        **{
            name: options[name]
            for name in (
                "norm_num_groups",
                "norm_eps",
                "flip_sin_to_cos",
                "freq_shift",
                "downsample_padding",
            )
        },
    }


def _widths(spec: NetworkSpec) -> list[int]:
    """Return the channels of each level; ConfigError if the first is not ``model_channels``."""
    base, mult = spec.options["model_channels"], spec.options["channel_mult"]
    widths = [int(base * each) for each in mult]
    problem = f"the first level of {NETWORK} has the channels of its time embedding; begin with 1"
    require(widths[0] == base, "model.channel_mult", mult, problem)
    return widths


def _head_channels(options: Mapping[str, Any], widths: list[int], attends: list[bool]) -> int:
    """Return the channels per attention head; ConfigError if they differ between levels."""
    attending = [width for width, each in zip(widths, attends, strict=True) if each]
    if options["num_head_channels"] not in (None, -1):
        return options["num_head_channels"]
    heads, upper = options["num_heads"], options["num_heads_upsample"]
    problem = f"{NETWORK} has the same number of heads on the way up, here {heads}"
    require(not attending or upper in (None, -1, heads), "model.num_heads_upsample", upper, problem)
    sizes = sorted({width // heads for width in (*attending, widths[-1])})
    problem = (
        f"makes heads of {render(sizes)} channels, but {NETWORK} has one size of all heads; use a "
        "network with model.num_head_channels=..."
    )
    require(len(sizes) == 1, "model.num_heads", heads, problem)
    return sizes[0]
