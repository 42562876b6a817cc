"""Networks of denoising-diffusion-pytorch since 0.32.0, for images and for sequences."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from ddpm.errors import ConfigError, render, require
from ddpm.interop import lucidrains_files as files
from ddpm.interop.foreign_format import (
    REQUIRED,
    Arguments,
    ForeignFormat,
    NetworkSpec,
    Weights,
    smallest_size,
)
from ddpm.interop.lucidrains_versions import IMAGES, MARK, SEQUENCES, Form, Versions, parse
from ddpm.models import UNet

# `version` is our addition: it selects the version where weights do not determine it.
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
    "version": None,
}
_LUCIDRAINS: Arguments = {**_LUCIDRAINS_1D, "full_attn": None, "flash_attn": False}
_HEADS, _DIM_HEAD = 4, 32
_GUESSED = frozenset({"attn_heads", "attn_dim_head"})  # 16 channels can be 4 heads of 4 or 2 of 8

_SHARED = (
    "dim",
    "init_dim",
    "dim_mults",
    "resnet_block_groups",
    "learned_sinusoidal_cond",
    "random_fourier_features",
    "learned_sinusoidal_dim",
    "sinusoidal_pos_emb_theta",
    "dropout",
)


def _lucidrains(kwargs: Arguments, weights: Weights) -> NetworkSpec:
    """Return ``Unet``; since 1.9.1 ``full_attn=False`` is the default, before 1.8 it is linear."""
    form = IMAGES.resolve(kwargs["version"], weights)
    full = kwargs["full_attn"]
    if form.wrapped:
        problem = "requires version 1.8.0, but the weights are of an earlier one; leave it out"
        require(not full, "full_attn", full, problem)
        full = False
    elif not full and form.number >= (1, 9, 1) and not _before_default(kwargs["version"]):
        full = None
    return _make_unet(
        kwargs,
        weights,
        form,
        dims=2,
        full_attn=full,
        attn_heads=kwargs["attn_heads"],
        attn_dim_head=kwargs["attn_dim_head"],
        mid_attn_heads=None,
        mid_attn_dim_head=None,
    )


def _before_default(version: str | None) -> bool:
    """Return True for versions in which ``full_attn=False`` is not the default."""
    return version is not None and parse(version) < (1, 9, 1)


def _lucidrains_1d(kwargs: Arguments, weights: Weights) -> NetworkSpec:
    """Return ``Unet1D``; its attention arguments apply to the middle, its levels have 4 x 32."""
    return _make_unet(
        kwargs,
        weights,
        SEQUENCES.resolve(kwargs["version"], weights),
        dims=1,
        full_attn=False,
        attn_heads=_HEADS,
        attn_dim_head=_DIM_HEAD,
        mid_attn_heads=kwargs["attn_heads"],
        mid_attn_dim_head=kwargs["attn_dim_head"],
    )


def _make_unet(
    kwargs: Arguments, weights: Weights, form: Form, *, dims: int, **attention: Any
) -> NetworkSpec:
    """Return the network of either, with the learned memory that only the weights determine."""
    channels, out_channels = kwargs["channels"], kwargs["out_dim"]
    if out_channels is None:
        out_channels = channels * (2 if kwargs["learned_variance"] else 1)
    memory = weights.get("mid_attn.mem_kv")
    _check_heads(kwargs, weights)
    return NetworkSpec(
        UNet,
        channels,
        out_channels,
        smallest_size(len(kwargs["dim_mults"]), dims),
        None,
        kwargs["self_condition"],
        {
            "dims": dims,
            "num_mem_kv": 0 if memory is None else memory.shape[2],
            **form.options,
            **attention,
            **{name: kwargs[name] for name in _SHARED},
        },
    )


def _check_heads(kwargs: Arguments, weights: Weights) -> None:
    """Raise ConfigError unless the heads have as many channels as the attention in the middle."""
    names = ("mid_attn.to_qkv.weight", "mid_attn.fn.fn.to_qkv.weight")
    totals = [weights[name].shape[0] // 3 for name in names if name in weights]
    heads, width = (
        value[-1] if isinstance(value, tuple) else value
        for value in (kwargs["attn_heads"], kwargs["attn_dim_head"])
    )
    total = totals[0] if totals else None
    problem = (
        f"with attn_dim_head={width} has {heads * width} channels, but the weights have {total}; "
        "set both, since the weights determine only their product"
    )
    require(not totals or heads * width == total, "attn_heads", heads, problem)


def _infer(versions: Versions, weights: Weights) -> dict[str, Any]:
    """Return the arguments except groups, dropout and theta, and heads where they are ambiguous.

    Twice as many input as output channels are taken as self-conditioning, and twice as many output
    channels as a learned variance. A network with both, which the original cannot train, looks
    like one with neither; with other even numbers the channels stay undetermined.
    """
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    inferred: dict[str, Any] = {}
    certain = versions.certain(weights)
    if certain is not None:
        inferred["version"] = certain.typical
    if "init_conv.weight" in shapes and "final_conv.weight" in shapes:
        inferred["init_dim"], inputs = shapes["init_conv.weight"][:2]
        inferred["out_dim"] = outputs = shapes["final_conv.weight"][0]
        if inputs % 2 or inputs in (outputs, 2 * outputs) or outputs == 2 * inputs:
            inferred["self_condition"] = inputs == 2 * outputs
            inferred["channels"] = inputs // 2 if inferred["self_condition"] else inputs
            inferred["learned_variance"] = outputs == 2 * inferred["channels"]
    if "time_mlp.1.weight" in shapes:
        dim = inferred["dim"] = shapes["time_mlp.1.weight"][0] // 4
        widths = _level_widths(shapes)
        if all(width % dim == 0 for width in widths):
            inferred["dim_mults"] = tuple(width // dim for width in widths)
        inferred["learned_sinusoidal_cond"] = "time_mlp.0.weights" in shapes
        if inferred["learned_sinusoidal_cond"]:
            inferred["learned_sinusoidal_dim"] = 2 * shapes["time_mlp.0.weights"][0]
    return {**inferred, **_attention(versions, shapes)}


def _level_widths(shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    """Return the number of output channels of each level."""
    widths: list[int] = []
    while f"downs.{len(widths)}.0.block1.proj.weight" in shapes:
        level = f"downs.{len(widths)}.3"
        names = [name for name in (f"{level}.1.weight", f"{level}.weight") if name in shapes]
        if not names:
            break
        widths.append(shapes[names[0]][0])
    return widths


def _attention(versions: Versions, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the levels with full attention, and heads and their width if determined."""
    if versions is SEQUENCES:
        middle = shapes.get("mid_attn.fn.fn.to_qkv.weight")
        return {} if middle is None else _heads([middle[0] // 3])
    levels = range(len(_level_widths(shapes)))
    if not levels or any(f"downs.{n}.2.to_qkv.weight" not in shapes for n in levels):
        return {}  # a version without these arguments
    full = tuple(f"downs.{level}.2.to_out.weight" in shapes for level in levels)
    memories = [shapes.get(f"downs.{level}.2.mem_kv") for level in levels]
    if None in memories:
        hidden = [shapes[f"downs.{level}.2.to_qkv.weight"][0] // 3 for level in levels]
        return {"full_attn": full, **_heads(hidden)}
    present = [memory for memory in memories if memory is not None]
    widths = [m[3] if is_full else m[2] for m, is_full in zip(present, full, strict=True)]
    heads = [memory[1] for memory in present]
    return {"full_attn": full, "attn_heads": _one(heads), "attn_dim_head": _one(widths)}


def _heads(hidden: list[int]) -> dict[str, Any]:
    """Return heads or their width if the other one must be the default to give an integer."""
    if all(width == _HEADS * _DIM_HEAD for width in hidden):
        return {}
    by_heads = all(width % _HEADS == 0 for width in hidden)
    by_width = all(width % _DIM_HEAD == 0 for width in hidden)
    if by_heads and not by_width:
        return {"attn_dim_head": _one([width // _HEADS for width in hidden])}
    if by_width and not by_heads:
        return {"attn_heads": _one([width // _DIM_HEAD for width in hidden])}
    return {}


def _one(numbers: list[int]) -> int | tuple[int, ...]:
    """Return a single number if all levels have the same one."""
    return numbers[0] if len(set(numbers)) == 1 else tuple(numbers)


def _map_from(name: str) -> str:
    """Return our name: attention without ``Residual(PreNorm(...))``."""
    if name == MARK:
        return ""
    return name.replace(".fn.fn.", ".").replace(".fn.norm.", ".norm.")


def _wrap(name: str) -> str:
    """Return a name with attention in ``Residual(PreNorm(...))``, as in 1D and in old versions."""
    attention = re.fullmatch(r"(mid_attn|(?:downs|ups)\.\d+\.2)\.(.+)", name)
    if attention is None:
        return name
    where, what = attention.groups()
    return f"{where}.fn.{what}" if what.startswith("norm.") else f"{where}.fn.fn.{what}"


def _to_kwargs(versions: Versions, spec: NetworkSpec) -> dict[str, Any]:
    """Return the arguments of the constructor in the version that has such a network.

    Dropout, which affects training only, is omitted if the version lacks it.
    """
    options = spec.options
    dims = 2 if versions is IMAGES else 1
    if spec.target is not UNet or options["dims"] != dims:
        kind = "unet" if dims == 2 else "unet1d"
        raise ConfigError("format", None, f"supports networks of model={kind} only")
    problem = "is not supported by the original"
    require(spec.num_classes is None, "num_classes", spec.num_classes, problem)
    form = versions.of_options(options)
    kwargs = {
        "channels": spec.channels,
        "out_dim": spec.out_channels,
        "self_condition": spec.self_condition,
        **{name: options[name] for name in _SHARED},
        **(_to_kwargs_images if dims == 2 else _to_kwargs_sequences)(form, options),
    }
    if form.number < (1, 8, 11):
        _drop_defaults(kwargs, form, sinusoidal_pos_emb_theta=10000)
    if form.since < (2, 0, 0):
        kwargs.pop("dropout")
        stem, dim = kwargs["init_dim"], kwargs["dim"]
        problem = f"other than dim crashes in the original's version {form.typical}"
        require(stem in (None, dim), "model.init_dim", stem, problem)
    else:
        kwargs.pop("resnet_block_groups")
    return kwargs


def _to_kwargs_images(form: Form, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attention arguments of ``Unet``, whose middle is as its innermost level."""
    levels = len(options["dim_mults"])
    full = options["full_attn"]
    if full is None:
        full = (*(False,) * (levels - 1), True)
    full = (full,) * levels if isinstance(full, bool) else tuple(full)
    attention = {"attn_heads": options["attn_heads"], "attn_dim_head": options["attn_dim_head"]}
    for name, value in attention.items():
        last = value[-1] if isinstance(value, (list, tuple)) else value
        middle = options[f"mid_{name}"]
        problem = f"must be that of the innermost level in the original, {last}"
        require(middle in (None, last), f"model.mid_{name}", middle, problem)
    if not form.wrapped:
        return {"full_attn": full, **attention}
    problem = f"must be false: version {form.typical} has full attention in the middle only"
    require(not any(full), "model.full_attn", options["full_attn"], problem)
    for name, default in (("attn_heads", _HEADS), ("attn_dim_head", _DIM_HEAD)):
        _require_everywhere(f"model.{name}", attention[name], default, levels)
    return {}


def _to_kwargs_sequences(form: Form, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attention arguments of ``Unet1D``, which apply to the middle."""
    levels = len(options["dim_mults"])
    _require_everywhere("model.full_attn", options["full_attn"], False, levels)
    attention: dict[str, Any] = {}
    for name, default in (("attn_heads", _HEADS), ("attn_dim_head", _DIM_HEAD)):
        _require_everywhere(f"model.{name}", options[name], default, levels)
        middle = options[f"mid_{name}"]
        attention[name] = default if middle is None else middle
    return (
        _drop_defaults(attention, form, attn_heads=4, attn_dim_head=32)
        if form.number < (1, 8, 8)
        else attention
    )


def _require_everywhere(key: str, value: Any, default: int, levels: int) -> None:
    """Raise ConfigError unless all levels have the only value that the original supports."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * levels
    problem = f"must be {render(default)} at all levels in the original"
    require(values == (default,) * levels, key, value, problem)


def _drop_defaults(kwargs: dict[str, Any], form: Form, **defaults: int) -> dict[str, Any]:
    """Remove arguments that the version lacks; ConfigError if they are not the defaults."""
    for name, default in defaults.items():
        value = kwargs.pop(name)
        problem = f"must be {default} in the original's version {form.typical}"
        require(value == default, f"model.{name}", value, problem)
    return kwargs


def _mark(versions: Versions, network: nn.Module) -> dict[str, Tensor]:
    """Return an entry with the version, which weights do not always determine."""
    assert isinstance(network, UNet)
    return {MARK: versions.of_network(network).mark}


FORMATS = {
    "denoising-diffusion-pytorch": ForeignFormat(
        defaults=_LUCIDRAINS,
        from_kwargs=_lucidrains,
        infer=partial(_infer, IMAGES),
        map_from=_map_from,
        to_kwargs=partial(_to_kwargs, IMAGES),
        anchors={"init_conv.weight": (4,)},
        process=partial(files.process, IMAGES),
        assumed={"version": "1.0.7"},
        extra=partial(_mark, IMAGES),
        join=partial(files.join, IMAGES, _wrap),
        guessed=_GUESSED,
    ),
    "denoising-diffusion-pytorch-1d": ForeignFormat(
        defaults=_LUCIDRAINS_1D,
        from_kwargs=_lucidrains_1d,
        infer=partial(_infer, SEQUENCES),
        map_from=_map_from,
        map_to=_wrap,
        to_kwargs=partial(_to_kwargs, SEQUENCES),
        anchors={"init_conv.weight": (3,)},
        process=partial(files.process, SEQUENCES),
        assumed={"version": "1.8.14"},
        extra=partial(_mark, SEQUENCES),
        join=partial(files.join, SEQUENCES, None),
        values=(0.0, 1.0),
        guessed=_GUESSED,
    ),
}
