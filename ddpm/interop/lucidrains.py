"""Networks of denoising-diffusion-pytorch, whose versions are told apart by their weights."""

from __future__ import annotations

from typing import Any

from ddpm.interop.original import (
    REQUIRED,
    Arguments,
    Described,
    Original,
    Weights,
    smallest_size,
)
from ddpm.models import UNet

_LUCIDRAINS_1D: Arguments = {
    "dim": REQUIRED,
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


def _lucidrains(given: Arguments, weights: Weights) -> Described:
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


def _lucidrains_1d(given: Arguments, weights: Weights) -> Described:
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


def _make_unet(given: Arguments, weights: Weights, *, dims: int, **attention: Any) -> Described:
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
    return Described(
        UNet,
        channels,
        out_channels,
        smallest_size(len(given["dim_mults"]), dims),
        None,
        given["self_condition"],
        {
            "dims": dims,
            "num_mem_kv": 0 if memory is None else memory.shape[2],
            "block_norm": "rms" if _has_rms_blocks(weights) else "group",
            **attention,
            **{name: given[name] for name in names},
        },
    )


def _has_rms_blocks(weights: Weights) -> bool:
    """Whether the residual blocks are those of the present version."""
    return "final_res_block.block1.norm.g" in weights


def _unwrap(name: str) -> str:
    """``Unet1D`` wraps attention in ``Residual(PreNorm(...))``, ours and ``Unet`` don't."""
    return name.replace(".fn.fn.", ".").replace(".fn.norm.", ".norm.")


def _infer(weights: Weights) -> dict[str, Any]:
    return {}


ORIGINALS = {
    "denoising-diffusion-pytorch": Original(_LUCIDRAINS, _lucidrains, _infer),
    "denoising-diffusion-pytorch-1d": Original(
        _LUCIDRAINS_1D, _lucidrains_1d, _infer, ours=_unwrap
    ),
}
