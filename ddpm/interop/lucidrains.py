"""Networks of denoising-diffusion-pytorch from 0.32.0 on, for images and for sequences."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from ddpm.errors import ConfigError, render, require
from ddpm.interop import lucidrains_files as files
from ddpm.interop.lucidrains_versions import IMAGES, MARK, SEQUENCES, Form, Versions, parse
from ddpm.interop.original import (
    REQUIRED,
    Arguments,
    Described,
    Original,
    Weights,
    smallest_size,
)
from ddpm.models import UNet

# `version` is no argument there: it says whose mathematics holds where weights do not tell.
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
_GUESSED = frozenset({"attn_heads", "attn_dim_head"})  # 16 channels are 4 heads of 4, or 2 of 8

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


def _lucidrains(given: Arguments, weights: Weights) -> Described:
    """``Unet``; from 1.9.1 on ``full_attn=False`` is the default, before 1.8 all are linear."""
    form = IMAGES.settle(given["version"], weights)
    full = given["full_attn"]
    if form.wrapped:
        problem = "came with version 1.8.0, and the weights are of an earlier one; leave it out"
        require(not full, "full_attn", full, problem)
        full = False
    elif not full and form.number >= (1, 9, 1) and not _before_default(given["version"]):
        full = None
    return _make_unet(
        given,
        weights,
        form,
        dims=2,
        full_attn=full,
        attn_heads=given["attn_heads"],
        attn_dim_head=given["attn_dim_head"],
        mid_attn_heads=None,
        mid_attn_dim_head=None,
    )


def _before_default(version: str | None) -> bool:
    """Whether ``full_attn=False`` says in the version what it says."""
    return version is not None and parse(version) < (1, 9, 1)


def _lucidrains_1d(given: Arguments, weights: Weights) -> Described:
    """``Unet1D``; what it says of attention only holds in the middle, its levels have 4 x 32."""
    return _make_unet(
        given,
        weights,
        SEQUENCES.settle(given["version"], weights),
        dims=1,
        full_attn=False,
        attn_heads=_HEADS,
        attn_dim_head=_DIM_HEAD,
        mid_attn_heads=given["attn_heads"],
        mid_attn_dim_head=given["attn_dim_head"],
    )


def _make_unet(
    given: Arguments, weights: Weights, form: Form, *, dims: int, **attention: Any
) -> Described:
    """The network of either, with the learned memory that only the weights show."""
    channels, out_channels = given["channels"], given["out_dim"]
    if out_channels is None:
        out_channels = channels * (2 if given["learned_variance"] else 1)
    memory = weights.get("mid_attn.mem_kv")
    _check_heads(given, weights)
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
            **form.options,
            **attention,
            **{name: given[name] for name in _SHARED},
        },
    )


def _check_heads(given: Arguments, weights: Weights) -> None:
    """Raise ConfigError unless the heads have as many channels as the middle's attention."""
    names = ("mid_attn.to_qkv.weight", "mid_attn.fn.fn.to_qkv.weight")
    found = [weights[name].shape[0] // 3 for name in names if name in weights]
    heads, width = (
        value[-1] if isinstance(value, tuple) else value
        for value in (given["attn_heads"], given["attn_dim_head"])
    )
    total = found[0] if found else None
    problem = (
        f"of attn_dim_head={width} are {heads * width} channels, and the weights have {total}; "
        "they do not show which heads of which width these are, so say both"
    )
    require(not found or heads * width == total, "attn_heads", heads, problem)


def _infer(versions: Versions, weights: Weights) -> dict[str, Any]:
    """All but groups, dropout and theta; heads where the memory, or nothing else, shows them.

    Self-conditioning is taken to be where twice the channels come in that go out, and learned
    variances where twice go out. A network with both, which nothing there can train, is not told
    from one with neither; where the numbers are others and even, nothing is said of the channels.
    """
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    found: dict[str, Any] = {}
    certain = versions.certain(weights)
    if certain is not None:
        found["version"] = certain.typical
    if "init_conv.weight" in shapes and "final_conv.weight" in shapes:
        found["init_dim"], taken = shapes["init_conv.weight"][:2]
        found["out_dim"] = given = shapes["final_conv.weight"][0]
        if taken % 2 or taken in (given, 2 * given) or given == 2 * taken:
            found["self_condition"] = taken == 2 * given
            found["channels"] = taken // 2 if found["self_condition"] else taken
            found["learned_variance"] = given == 2 * found["channels"]
    if "time_mlp.1.weight" in shapes:
        dim = found["dim"] = shapes["time_mlp.1.weight"][0] // 4
        widths = _level_widths(shapes)
        if all(width % dim == 0 for width in widths):
            found["dim_mults"] = tuple(width // dim for width in widths)
        found["learned_sinusoidal_cond"] = "time_mlp.0.weights" in shapes
        if found["learned_sinusoidal_cond"]:
            found["learned_sinusoidal_dim"] = 2 * shapes["time_mlp.0.weights"][0]
    return {**found, **_attention(versions, shapes)}


def _level_widths(shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    """The channels that each level ends with."""
    widths: list[int] = []
    while f"downs.{len(widths)}.0.block1.proj.weight" in shapes:
        level = f"downs.{len(widths)}.3"
        names = [name for name in (f"{level}.1.weight", f"{level}.weight") if name in shapes]
        if not names:
            break
        widths.append(shapes[names[0]][0])
    return widths


def _attention(versions: Versions, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Which levels have full attention, and heads and their width, as far as they show."""
    if versions is SEQUENCES:
        middle = shapes.get("mid_attn.fn.fn.to_qkv.weight")
        return {} if middle is None else _heads([middle[0] // 3])
    levels = range(len(_level_widths(shapes)))
    if not levels or any(f"downs.{n}.2.to_qkv.weight" not in shapes for n in levels):
        return {}  # of a version in which neither can be chosen
    full = tuple(f"downs.{level}.2.to_out.weight" in shapes for level in levels)
    memories = [shapes.get(f"downs.{level}.2.mem_kv") for level in levels]
    if None in memories:
        hidden = [shapes[f"downs.{level}.2.to_qkv.weight"][0] // 3 for level in levels]
        return {"full_attn": full, **_heads(hidden)}
    known = [memory for memory in memories if memory is not None]
    widths = [m[3] if is_full else m[2] for m, is_full in zip(known, full, strict=True)]
    heads = [memory[1] for memory in known]
    return {"full_attn": full, "attn_heads": _one(heads), "attn_dim_head": _one(widths)}


def _heads(hidden: list[int]) -> dict[str, Any]:
    """Heads or their width where one of them must be the default for the other to be whole."""
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
    """One number for all levels where they agree."""
    return numbers[0] if len(set(numbers)) == 1 else tuple(numbers)


def _ours(name: str) -> str:
    """Attention without ``Residual(PreNorm(...))``."""
    if name == MARK:
        return ""
    return name.replace(".fn.fn.", ".").replace(".fn.norm.", ".norm.")


def _wrap(name: str) -> str:
    """Attention in ``Residual(PreNorm(...))``, as in all sequences and in old images."""
    attention = re.fullmatch(r"(mid_attn|(?:downs|ups)\.\d+\.2)\.(.+)", name)
    if attention is None:
        return name
    where, what = attention.groups()
    return f"{where}.fn.{what}" if what.startswith("norm.") else f"{where}.fn.fn.{what}"


def _express(versions: Versions, described: Described) -> dict[str, Any]:
    """The arguments of the constructor in the version that has such a network.

    Dropout, which touches training alone, is left out where the version has none.
    """
    options = described.options
    dims = 2 if versions is IMAGES else 1
    if described.target is not UNet or options["dims"] != dims:
        kind = "unet" if dims == 2 else "unet1d"
        raise ConfigError("format", None, f"has no such network; it takes those of model={kind}")
    problem = "is not in the original; such a network cannot be written for it"
    require(described.num_classes is None, "num_classes", described.num_classes, problem)
    form = versions.of_options(options)
    kwargs = {
        "channels": described.channels,
        "out_dim": described.out_channels,
        "self_condition": described.self_condition,
        **{name: options[name] for name in _SHARED},
        **(_express_images if dims == 2 else _express_sequences)(form, options),
    }
    if form.number < (1, 8, 11):
        _take_default(kwargs, form, sinusoidal_pos_emb_theta=10000)
    if form.since < (2, 0, 0):
        kwargs.pop("dropout")
        stem, dim = kwargs["init_dim"], kwargs["dim"]
        problem = f"other than dim crashes in the original's version {form.typical}"
        require(stem in (None, dim), "model.init_dim", stem, problem)
    else:
        kwargs.pop("resnet_block_groups")
    return kwargs


def _express_images(form: Form, options: Mapping[str, Any]) -> dict[str, Any]:
    """What ``Unet`` is told of attention; the middle has what the innermost level has."""
    levels = len(options["dim_mults"])
    full = options["full_attn"]
    if full is None:
        full = (*(False,) * (levels - 1), True)
    full = (full,) * levels if isinstance(full, bool) else tuple(full)
    said = {"attn_heads": options["attn_heads"], "attn_dim_head": options["attn_dim_head"]}
    for name, value in said.items():
        last = value[-1] if isinstance(value, (list, tuple)) else value
        middle = options[f"mid_{name}"]
        problem = f"is as at the innermost level in the original, {last}"
        require(middle in (None, last), f"model.mid_{name}", middle, problem)
    if not form.wrapped:
        return {"full_attn": full, **said}
    problem = f"is full in the middle alone in the original's version {form.typical}"
    require(not any(full), "model.full_attn", options["full_attn"], problem)
    for name, default in (("attn_heads", _HEADS), ("attn_dim_head", _DIM_HEAD)):
        _require_everywhere(f"model.{name}", said[name], default, levels)
    return {}


def _express_sequences(form: Form, options: Mapping[str, Any]) -> dict[str, Any]:
    """What ``Unet1D`` is told of attention, which holds in the middle."""
    levels = len(options["dim_mults"])
    _require_everywhere("model.full_attn", options["full_attn"], False, levels)
    told: dict[str, Any] = {}
    for name, default in (("attn_heads", _HEADS), ("attn_dim_head", _DIM_HEAD)):
        _require_everywhere(f"model.{name}", options[name], default, levels)
        middle = options[f"mid_{name}"]
        told[name] = default if middle is None else middle
    return (
        _take_default(told, form, attn_heads=4, attn_dim_head=32)
        if form.number < (1, 8, 8)
        else told
    )


def _require_everywhere(key: str, value: Any, default: int, levels: int) -> None:
    """Raise ConfigError unless all levels have what the original has at all."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * levels
    problem = f"is {render(default)} at all levels in the original"
    require(values == (default,) * levels, key, value, problem)


def _take_default(kwargs: dict[str, Any], form: Form, **defaults: int) -> dict[str, Any]:
    """Without arguments that the version does not have; ConfigError where they say other things."""
    for name, default in defaults.items():
        value = kwargs.pop(name)
        problem = f"can be {default} alone in the original's version {form.typical}"
        require(value == default, f"model.{name}", value, problem)
    return kwargs


def _mark(versions: Versions, network: nn.Module) -> dict[str, Tensor]:
    """The form, which the weights of a network do not always show."""
    assert isinstance(network, UNet)
    return {MARK: versions.of_network(network).mark}


ORIGINALS = {
    "denoising-diffusion-pytorch": Original(
        defaults=_LUCIDRAINS,
        describe=_lucidrains,
        infer=partial(_infer, IMAGES),
        ours=_ours,
        express=partial(_express, IMAGES),
        anchors={"init_conv.weight": (4,)},
        process=partial(files.process, IMAGES),
        assumed={"version": "1.0.7"},
        extra=partial(_mark, IMAGES),
        join=partial(files.join, IMAGES, _wrap),
        guessed=_GUESSED,
    ),
    "denoising-diffusion-pytorch-1d": Original(
        defaults=_LUCIDRAINS_1D,
        describe=_lucidrains_1d,
        infer=partial(_infer, SEQUENCES),
        ours=_ours,
        theirs=_wrap,
        express=partial(_express, SEQUENCES),
        anchors={"init_conv.weight": (3,)},
        process=partial(files.process, SEQUENCES),
        assumed={"version": "1.8.14"},
        extra=partial(_mark, SEQUENCES),
        join=partial(files.join, SEQUENCES, None),
        values=(0.0, 1.0),
        guessed=_GUESSED,
    ),
}
