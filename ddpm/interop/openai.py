"""Networks of improved-diffusion, with its names and arguments."""

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
from ddpm.models import IDDPMUNet

# The original's own defaults hold where its arguments are absent, not those of our constructor.
IMPROVED_DIFFUSION_ARGUMENTS: Arguments = {
    "in_channels": REQUIRED,
    "model_channels": REQUIRED,
    "out_channels": REQUIRED,
    "num_res_blocks": REQUIRED,
    "attention_resolutions": REQUIRED,
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


def _improved_diffusion(given: Arguments, weights: Weights) -> Described:
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
    return Described(
        IDDPMUNet,
        given["in_channels"],
        given["out_channels"],
        smallest_size(levels, given["dims"]),
        given["num_classes"],
        False,
        {
            **{name: given[name] for name in names},
            "attention_resolutions": tuple(n for n in rates if n in given["attention_resolutions"]),
        },
    )


def _infer(weights: Weights) -> dict[str, Any]:
    return {}


ORIGINALS = {
    "improved-diffusion": Original(IMPROVED_DIFFUSION_ARGUMENTS, _improved_diffusion, _infer),
}
