"""The tutorial's simple U-Net, whose parameters have the same names here."""

from __future__ import annotations

from typing import Any

from ddpm.errors import ConfigError, require
from ddpm.interop.original import Arguments, Described, Original, Weights, smallest_size
from ddpm.models import SimpleUNet

# Two mean nothing here: every size will do, and the device is the caller's choice.
_ARGUMENTS: Arguments = {
    "c_in": 3,
    "c_out": 3,
    "time_dim": 128,
    "num_classes": None,
    "img_size": None,
    "device": None,
}


def _describe(given: Arguments, weights: Weights) -> Described:
    """``UNet``, or ``UNet_conditional`` where there are classes; its width shows in its weights."""
    stem = weights.get("inc.conv1.0.weight")
    return Described(
        SimpleUNet,
        given["c_in"],
        given["c_out"],
        smallest_size(4, 2),
        given["num_classes"],
        False,
        {"width": 64 if stem is None else len(stem), "time_dim": given["time_dim"]},
    )


def _infer(weights: Weights) -> dict[str, Any]:
    """All of the arguments."""
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    for name in ("inc.conv1.0.weight", "down1.emb_layer.1.weight", "outc.weight"):
        problem = "is missing; the tutorial's UNet has it, so these are not its weights"
        require(name in shapes, f"state_dict.{name}", None, problem)
    return {
        "c_in": shapes["inc.conv1.0.weight"][1],
        "c_out": shapes["outc.weight"][0],
        "time_dim": shapes["down1.emb_layer.1.weight"][1],
        "num_classes": shapes.get("label_emb.weight", (None,))[0],
    }


def _express(described: Described) -> dict[str, Any]:
    """The arguments of the tutorial's constructor, which has its own width and heads."""
    if described.target is not SimpleUNet:
        problem = "has no such network; it takes those of model=simple_unet"
        raise ConfigError("format", None, problem)
    for key, value, theirs in (
        ("model.width", described.options["width"], 64),
        ("model.num_heads", described.options["num_heads"], 4),
        ("diffusion.self_condition", described.self_condition, False),
    ):
        require(value == theirs, key, value, "is not in the original; it cannot be written for it")
    return {
        "c_in": described.channels,
        "c_out": described.out_channels,
        "time_dim": described.options["time_dim"],
        "num_classes": described.num_classes,
    }


ORIGINALS = {
    "simple-unet": Original(
        defaults=_ARGUMENTS,
        describe=_describe,
        infer=_infer,
        express=_express,
        anchors={"inc.conv1.0.weight": (4,), "outc.weight": (4,)},
    )
}
