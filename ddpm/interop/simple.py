"""The tutorial's simple U-Net, whose parameters have the same names as ours."""

from __future__ import annotations

from typing import Any

from ddpm.errors import ConfigError, require
from ddpm.interop.foreign_format import (
    Arguments,
    ForeignFormat,
    NetworkSpec,
    Weights,
    smallest_size,
)
from ddpm.models import SimpleUNet

# img_size and device have no effect: the network accepts every size, the caller moves it.
_ARGUMENTS: Arguments = {
    "c_in": 3,
    "c_out": 3,
    "time_dim": 128,
    "num_classes": None,
    "img_size": None,
    "device": None,
}


def _from_kwargs(kwargs: Arguments, weights: Weights) -> NetworkSpec:
    """Return ``UNet``, or ``UNet_conditional`` with classes; the width comes from the weights."""
    stem = weights.get("inc.conv1.0.weight")
    return NetworkSpec(
        SimpleUNet,
        kwargs["c_in"],
        kwargs["c_out"],
        smallest_size(4, 2),
        kwargs["num_classes"],
        False,
        {"width": 64 if stem is None else len(stem), "time_dim": kwargs["time_dim"]},
    )


def _infer(weights: Weights) -> dict[str, Any]:
    """Return all arguments."""
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    for name in ("inc.conv1.0.weight", "down1.emb_layer.1.weight", "outc.weight"):
        problem = "is missing; these are not the weights of the tutorial's UNet"
        require(name in shapes, f"state_dict.{name}", None, problem)
    return {
        "c_in": shapes["inc.conv1.0.weight"][1],
        "c_out": shapes["outc.weight"][0],
        "time_dim": shapes["down1.emb_layer.1.weight"][1],
        "num_classes": shapes.get("label_emb.weight", (None,))[0],
    }


def _to_kwargs(spec: NetworkSpec) -> dict[str, Any]:
    """Return the arguments of the tutorial's constructor, whose width and heads are fixed."""
    if spec.target is not SimpleUNet:
        problem = "supports networks of model=simple_unet only"
        raise ConfigError("format", None, problem)
    for key, value, fixed in (
        ("model.width", spec.options["width"], 64),
        ("model.num_heads", spec.options["num_heads"], 4),
        ("diffusion.self_condition", spec.self_condition, False),
    ):
        require(value == fixed, key, value, "is not supported by the original")
    return {
        "c_in": spec.channels,
        "c_out": spec.out_channels,
        "time_dim": spec.options["time_dim"],
        "num_classes": spec.num_classes,
    }


FORMATS = {
    "simple-unet": ForeignFormat(
        defaults=_ARGUMENTS,
        from_kwargs=_from_kwargs,
        infer=_infer,
        to_kwargs=_to_kwargs,
        anchors={"inc.conv1.0.weight": (4,), "outc.weight": (4,)},
    )
}
