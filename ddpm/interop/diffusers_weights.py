"""Weights of diffusers' ``UNet2DModel``, under its names and under ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ddpm.errors import ConfigError, render, require
from ddpm.interop.foreign_format import NetworkSpec, Weights

# Modules of our blocks and theirs; three of theirs are rows of one of ours.
_MODULES: Mapping[str, tuple[str, ...]] = {
    "": ("",),
    "op": ("conv",),
    "conv": ("conv",),
    "in_layers.0": ("norm1",),
    "in_layers.2": ("conv1",),
    "emb_layers.1": ("time_emb_proj",),
    "out_layers.0": ("norm2",),
    "out_layers.3": ("conv2",),
    "skip_connection": ("conv_shortcut",),
    "norm": ("group_norm",),
    "qkv": ("to_q", "to_k", "to_v"),
    "proj_out": ("to_out.0",),
}
_OLD_NAMES = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}


def weights_from(spec: NetworkSpec, weights: Weights) -> dict[str, Tensor]:
    """Return weights with our names for those of a ``UNet2DModel``.

    Raises:
        ConfigError: parameters are missing, are left over or have another shape.
    """
    remaining = {_new_name(name): value for name, value in weights.items()}
    result: dict[str, Tensor] = {}
    blocks = dict(_blocks(spec.options))
    for name, expected in spec.build().state_dict().items():
        theirs = _their_names(name, blocks)
        shape = _their_shape(expected, len(theirs), name)
        for each in theirs:
            problem = f"is missing; its config.json implies the shape {render(list(shape))}"
            require(each in remaining, f"unet.{each}", None, problem)
            actual = list(remaining[each].shape)
            problem = f"its config.json implies the shape {render(list(shape))}"
            require(actual == list(shape), f"unet.{each}", actual, problem)
        result[name] = torch.cat([remaining.pop(each) for each in theirs]).reshape(expected.shape)
    for name in remaining:
        raise ConfigError(f"unet.{name}", None, "is not a parameter that its config.json implies")
    return result


def _new_name(name: str) -> str:
    """Return the name of a parameter in later versions, which renamed those of attention."""
    if ".attentions." in name:
        for old, new in _OLD_NAMES.items():
            name = name.replace(old, new)
    return name


def _their_names(name: str, blocks: Mapping[str, str]) -> list[str]:
    """Return the names of their parameters that hold one of ours."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        block = ".".join(parts[:end])
        if block in blocks:
            modules = _MODULES[".".join(parts[end:-1])]
            named = ((blocks[block], module, parts[-1]) for module in modules)
            return [".".join(filter(None, each)) for each in named]
    raise KeyError(name)


def _their_shape(ours: Tensor, number: int, name: str) -> tuple[int, ...]:
    """Return the shape of each of ``number`` of their parameters that hold one of ours."""
    shape = tuple(ours.shape)
    if name.endswith((".qkv.weight", ".proj_out.weight")):
        shape = shape[:-1]  # their attention has linear layers
    return (shape[0] // number, *shape[1:])


def _blocks(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the names of our blocks and of theirs."""
    yield from (
        ("time_embed.0", "time_embedding.linear_1"),
        ("time_embed.2", "time_embedding.linear_2"),
        ("label_emb", "class_embedding"),
        ("input_blocks.0.0", "conv_in"),
        ("middle_block.0", "mid_block.resnets.0"),
        ("middle_block.1", "mid_block.attentions.0"),
        ("middle_block.2", "mid_block.resnets.1"),
        ("out.0", "conv_norm_out"),
        ("out.2", "conv_out"),
    )
    levels, count = len(options["channel_mult"]), options["num_res_blocks"]
    for level in range(levels):
        attends = 2**level in options["attention_resolutions"]
        down, up = f"down_blocks.{level}", f"up_blocks.{levels - 1 - level}"
        first, last = 1 + level * (count + 1), (levels - level) * (count + 1) - 1
        for index in range(count):
            yield f"input_blocks.{first + index}.0", f"{down}.resnets.{index}"
            yield f"input_blocks.{first + index}.1", f"{down}.attentions.{index}"
        for index in range(count + 1):
            yield f"output_blocks.{last - count + index}.0", f"{up}.resnets.{index}"
            if attends:
                yield f"output_blocks.{last - count + index}.1", f"{up}.attentions.{index}"
        yield f"input_blocks.{first + count}.0", f"{down}.downsamplers.0"
        yield f"output_blocks.{last}.{1 + attends}", f"{up}.upsamplers.0"


def weights_to(spec: NetworkSpec, weights: Weights) -> dict[str, Tensor]:
    """Return weights with the names of ``UNet2DModel`` for those of our network."""
    result: dict[str, Tensor] = {}
    blocks = dict(_blocks(spec.options))
    for name, value in weights.items():
        theirs = _their_names(name, blocks)
        if len(theirs) == 3 and not spec.options["use_new_attention_order"]:
            value = _qkv_outside(value, spec.options, name)
        shape = _their_shape(value, len(theirs), name)
        for each, part in zip(theirs, value.chunk(len(theirs)), strict=True):
            result[each] = part.reshape(shape).clone(memory_format=torch.contiguous_format)
    return result


def _qkv_outside(value: Tensor, options: Mapping[str, Any], name: str) -> Tensor:
    """Return weight or bias of ``qkv`` with the order (3, heads, channels per head)."""
    heads, size = options["num_heads"], options["num_head_channels"]
    if size not in (None, -1):
        heads = len(value) // 3 // size
    return value.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)
