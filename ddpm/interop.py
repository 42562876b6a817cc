"""Networks of other systems, from their own constructor arguments and their own weights.

Checked against improved-diffusion and against denoising-diffusion-pytorch 1.8.14 and 2.3.4, which
differ and are told apart by their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ddpm.errors import ConfigError, did_you_mean, render, require
from ddpm.models import IDDPMUNet, UNet

Arguments = Mapping[str, Any]
Weights = Mapping[str, Tensor]

_REQUIRED = object()

# The originals' own defaults hold where their arguments are absent, not those of our constructors.
_IMPROVED_DIFFUSION: Arguments = {
    "in_channels": _REQUIRED,
    "model_channels": _REQUIRED,
    "out_channels": _REQUIRED,
    "num_res_blocks": _REQUIRED,
    "attention_resolutions": _REQUIRED,
    "dropout": 0.0,
    "channel_mult": (1, 2, 4, 8),
    "conv_resample": True,
    "dims": 2,
    "num_classes": None,
    "use_checkpoint": False,
    "num_heads": 1,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": False,
}
_LUCIDRAINS_1D: Arguments = {
    "dim": _REQUIRED,
    "init_dim": None,
    "out_dim": None,
    "dim_mults": (1, 2, 4, 8),
    "channels": 3,
    "self_condition": False,
    "resnet_block_groups": 8,
    "learned_variance": False,
    "learned_sinusoidal_cond": False,
    "random_fourier_features": False,
    "learned_sinusoidal_dim": 16,
    "sinusoidal_pos_emb_theta": 10000,
    "dropout": 0.0,
    "attn_dim_head": 32,
    "attn_heads": 4,
}
_LUCIDRAINS: Arguments = {**_LUCIDRAINS_1D, "full_attn": None, "flash_attn": False}


def import_network(source: str, kwargs: Arguments, state_dict: Weights) -> nn.Module:
    """The network of another system, with that system's weights, in training mode as all new ones.

    ``source`` is ``improved-diffusion`` (its ``UNetModel``), ``denoising-diffusion-pytorch`` (its
    ``Unet``) or ``denoising-diffusion-pytorch-1d`` (its ``Unet1D``). ``kwargs`` are the arguments
    of the original's constructor, whose defaults hold for the rest; ``state_dict`` has its names.
    The network takes data of any size that its levels can halve. Raises ConfigError for a source
    or an argument that is not known, and where names or shapes do not fit, with both shapes.
    """
    require(
        source in _SOURCES,
        "source",
        source,
        f"is not a system whose networks can be imported{did_you_mean(source, _SOURCES)}",
    )
    defaults, build, rename = _SOURCES[source]
    arguments = _bind(source, defaults, kwargs)
    try:
        network = build(arguments, state_dict)
    except ConfigError as error:
        raise error.under("kwargs") from None
    _load(network, state_dict, rename)
    return network


def _bind(source: str, defaults: Arguments, kwargs: Arguments) -> dict[str, Any]:
    """The arguments given and the defaults of the others; lists, as JSON has them, as tuples."""
    for name, value in kwargs.items():
        require(
            name in defaults,
            f"kwargs.{name}",
            value,
            f"is not an argument of {source}'s network{did_you_mean(name, defaults)}",
        )
    bound = {**defaults, **kwargs}
    for name, value in bound.items():
        require(
            value is not _REQUIRED,
            f"kwargs.{name}",
            None,
            f"is missing; {source}'s network has no default for it",
        )
    return {
        name: tuple(value) if isinstance(value, (list, set)) else value
        for name, value in bound.items()
    }


def _improved_diffusion(given: Arguments, weights: Weights) -> nn.Module:
    """``UNetModel``; a rate of attention that no level has means nothing to it."""
    names = [
        "model_channels",
        "num_res_blocks",
        "dropout",
        "channel_mult",
        "conv_resample",
        "dims",
        "use_checkpoint",
        "num_heads",
        "num_heads_upsample",
        "use_scale_shift_norm",
    ]
    levels = len(given["channel_mult"])
    rates = [2**level for level in range(levels)]
    return IDDPMUNet(
        given["in_channels"],
        given["out_channels"],
        _smallest_size(levels, given["dims"]),
        given["num_classes"],
        attention_resolutions=tuple(n for n in rates if n in given["attention_resolutions"]),
        **{name: given[name] for name in names},
    )


def _lucidrains(given: Arguments, weights: Weights) -> nn.Module:
    """``Unet``; in its present version ``full_attn=False`` stands for the default."""
    return _make_unet(
        given,
        weights,
        dims=2,
        full_attn=None
        if _has_rms_blocks(weights) and not given["full_attn"]
        else given["full_attn"],
        attn_heads=given["attn_heads"],
        attn_dim_head=given["attn_dim_head"],
    )


def _lucidrains_1d(given: Arguments, weights: Weights) -> nn.Module:
    """``Unet1D``; what it says of attention only holds in the middle, its levels have 4 x 32."""
    return _make_unet(
        given,
        weights,
        dims=1,
        full_attn=False,
        attn_heads=4,
        attn_dim_head=32,
        mid_attn_heads=given["attn_heads"],
        mid_attn_dim_head=given["attn_dim_head"],
    )


def _make_unet(given: Arguments, weights: Weights, *, dims: int, **attention: Any) -> nn.Module:
    """The network of either, with what only the weights know: the blocks' norm and the memory."""
    names = [
        "dim",
        "init_dim",
        "dim_mults",
        "resnet_block_groups",
        "learned_sinusoidal_cond",
        "random_fourier_features",
        "learned_sinusoidal_dim",
        "sinusoidal_pos_emb_theta",
        "dropout",
    ]
    channels, out_channels = given["channels"], given["out_dim"]
    if out_channels is None:
        out_channels = channels * (2 if given["learned_variance"] else 1)
    memory = weights.get("mid_attn.mem_kv")
    return UNet(
        channels,
        out_channels,
        _smallest_size(len(given["dim_mults"]), dims),
        self_condition=given["self_condition"],
        dims=1 if dims == 1 else 2,
        num_mem_kv=0 if memory is None else memory.shape[2],
        block_norm="rms" if _has_rms_blocks(weights) else "group",
        **attention,
        **{name: given[name] for name in names},
    )


def _has_rms_blocks(weights: Weights) -> bool:
    """Whether the residual blocks are those of the present version."""
    return "final_res_block.block1.norm.g" in weights


def _smallest_size(levels: int, dims: int) -> tuple[int, ...]:
    """A size that the levels can halve; constructors check one, and then take all such."""
    return (2 ** max(levels - 1, 0),) * dims


def _keep(name: str) -> str:
    """The same name here as there."""
    return name


def _unwrap(name: str) -> str:
    """``Unet1D`` wraps attention in ``Residual(PreNorm(...))``, ours and ``Unet`` don't."""
    return name.replace(".fn.fn.", ".").replace(".fn.norm.", ".norm.")


def _load(network: nn.Module, weights: Weights, rename: Callable[[str], str]) -> None:
    """Load all weights into the network; ConfigError for the first that does not fit it."""
    ours = network.state_dict()
    theirs = {rename(name): name for name in weights}
    for name, original in theirs.items():
        key, shape = f"state_dict.{original}", list(weights[original].shape)
        require(name in ours, key, shape, "the network that kwargs describe has no such parameter")
        expected = list(ours[name].shape)
        require(
            shape == expected,
            key,
            shape,
            f"the network that kwargs describe has the shape {render(expected)} there; "
            "give the arguments that the weights were trained with",
        )
    for name, value in ours.items():
        require(
            name in theirs,
            f"state_dict.{name}",
            None,
            "is missing; the network that kwargs describe has the shape "
            f"{render(list(value.shape))} there",
        )
    network.load_state_dict({name: weights[original] for name, original in theirs.items()})


_SOURCES: dict[
    str, tuple[Arguments, Callable[[Arguments, Weights], nn.Module], Callable[[str], str]]
] = {
    "improved-diffusion": (_IMPROVED_DIFFUSION, _improved_diffusion, _keep),
    "denoising-diffusion-pytorch": (_LUCIDRAINS, _lucidrains, _keep),
    "denoising-diffusion-pytorch-1d": (_LUCIDRAINS_1D, _lucidrains_1d, _unwrap),
}
