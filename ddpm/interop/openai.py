"""Networks of improved-diffusion and of guided-diffusion, with their names and arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ddpm.errors import ConfigError, render, require
from ddpm.interop.files import Parts
from ddpm.interop.foreign_format import (
    REQUIRED,
    Arguments,
    ForeignFormat,
    NetworkSpec,
    Weights,
    smallest_size,
)
from ddpm.interop.process import Process, openai, schedule_in
from ddpm.interop.recipes import resolve
from ddpm.interop.unwrap import Anchors
from ddpm.models import IDDPMUNet

# The defaults of the originals, which differ from those of our constructor.
_IMPROVED: Arguments = {
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
# image_size and use_fp16 do not affect the weights: the first is unused, the second is the
# precision of the arithmetic, which our trainer and sampler set; files are always in float32.
_GUIDED: Arguments = {
    **_IMPROVED,
    "image_size": None,
    "use_fp16": False,
    "num_head_channels": -1,
    "resblock_updown": False,
    "use_new_attention_order": False,
}
_OPTIONS = (
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
)
_FIXED = {
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "downsample_padding": 1,
}
_GUIDED_OPTIONS = (
    *_OPTIONS,
    "num_head_channels",
    "resblock_updown",
    "use_new_attention_order",
)


def _improved_diffusion(kwargs: Arguments, weights: Weights) -> NetworkSpec:
    """Return ``UNetModel`` of improved-diffusion."""
    return _from_kwargs(kwargs, {name: kwargs[name] for name in _OPTIONS})


def _guided_diffusion(kwargs: Arguments, weights: Weights) -> NetworkSpec:
    """Return ``UNetModel`` of guided-diffusion, whose stem is as wide as its first level."""
    options = {name: kwargs[name] for name in _GUIDED_OPTIONS}
    return _from_kwargs(kwargs, {**options, "scale_stem": True})


def _from_kwargs(kwargs: Arguments, options: dict[str, Any]) -> NetworkSpec:
    """Return either network; attention resolutions without a level have no effect."""
    levels = len(kwargs["channel_mult"])
    rates = [2**level for level in range(levels)]
    attending = tuple(n for n in rates if n in kwargs["attention_resolutions"])
    return NetworkSpec(
        IDDPMUNet,
        kwargs["in_channels"],
        kwargs["out_channels"],
        smallest_size(levels, kwargs["dims"]),
        kwargs["num_classes"],
        False,
        {**options, "attention_resolutions": attending},
    )


def times(base: int, width: int) -> float:
    """Return the multiplier with ``int(multiplier * base) == width``, an int if possible."""
    if width % base == 0:
        return width // base
    mult = width / base
    return mult if int(mult * base) == width else math.nextafter(mult, math.inf)


class _Inspection:
    """Arguments of a ``UNetModel`` as inferred from names and shapes of its weights."""

    def __init__(self, source: str, weights: Weights) -> None:
        self.source, self.weights = source, weights
        self._reject_relatives()
        self.num_outputs = self._count("output_blocks.")
        self.resampling, self.num_res_blocks = self._resampling()

    def _reject_relatives(self) -> None:
        """Raise ConfigError for a classifier or a network for super-resolution."""
        classifier = "classifiers (EncoderUNetModel) cannot be imported, only diffusion networks"
        pool = "out.2.positional_embedding"
        if pool in self.weights:
            shape = list(self.weights[pool].shape)
            raise ConfigError(f"state_dict.{pool}", shape, classifier)
        if "middle_block.0.in_layers.0.weight" in self.weights:
            names = [name for name in self.weights if name.startswith("output_blocks.")]
            require(bool(names), "state_dict.output_blocks", None, f"is missing; {classifier}")
        stem, outputs = self.shape("input_blocks.0.0.weight"), self.shape("out.2.weight")[0]
        # With three channels and a learned variance it has 6 and 6, as all published ones.
        if stem[1] == 2 * outputs or (stem[1], outputs, len(stem)) == (6, 6, 4):
            raise ConfigError(
                "state_dict.input_blocks.0.0.weight",
                list(stem),
                f"has {stem[1]} input and {outputs} output channels, as networks for "
                "super-resolution (SuperResModel), which cannot be imported; use "
                f"ddpm.interop.import_network for a network of data with {stem[1]} channels",
            )

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a parameter; ConfigError if it is missing."""
        problem = f"is missing; these are not the weights of {self.source}'s UNetModel"
        require(name in self.weights, f"state_dict.{name}", None, problem)
        return tuple(self.weights[name].shape)

    def _count(self, prefix: str) -> int:
        """Return the number of blocks with a prefix, by their largest index."""
        indices = [name.split(".")[1] for name in self.weights if name.startswith(prefix)]
        require(
            bool(indices),
            f"state_dict.{prefix}0",
            None,
            "is missing; the network has no such block",
        )
        return 1 + max(int(index) for index in indices)

    def _resampling(self) -> tuple[str | None, int]:
        """Return the kind of resampling, None for one level, and the residual blocks per level."""
        for index in range(self.num_outputs):
            for layer in (1, 2):
                if f"output_blocks.{index}.{layer}.conv.weight" in self.weights:
                    return "conv", index
                if f"output_blocks.{index}.{layer}.in_layers.0.weight" in self.weights:
                    return "residual", index
        for index in range(1, self.num_outputs):
            if f"input_blocks.{index}.0.in_layers.0.weight" not in self.weights:
                return "pool", index - 1
        return None, self.num_outputs - 1

    def firsts(self) -> list[str]:
        """Return the names of the first input block of each level."""
        step = self.num_res_blocks + 1
        return [f"input_blocks.{1 + step * n}" for n in range(self.num_outputs // step)]

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that both originals have."""
        stem, base = self.shape("input_blocks.0.0.weight"), self.shape("time_embed.0.weight")[1]
        firsts = self.firsts()
        widths = [self.shape(f"{name}.0.in_layers.2.weight")[0] for name in firsts]
        width = self.shape("middle_block.0.emb_layers.1.weight")[0]
        inferred = {
            "in_channels": stem[1],
            "model_channels": base,
            "out_channels": self.shape("out.2.weight")[0],
            "num_res_blocks": self.num_res_blocks,
            "attention_resolutions": tuple(
                2**n for n, name in enumerate(firsts) if f"{name}.1.qkv.weight" in self.weights
            ),
            "channel_mult": tuple(times(base, each) for each in widths),
            "dims": len(stem) - 2,
            "num_classes": None,
            "use_scale_shift_norm": width == 2 * widths[-1],
        }
        if "label_emb.weight" in self.weights:
            inferred["num_classes"] = self.shape("label_emb.weight")[0]
        if self.resampling in ("conv", "pool"):
            inferred["conv_resample"] = self.resampling == "conv"
        return inferred


def _infer_improved(weights: Weights) -> dict[str, Any]:
    """Return all arguments except heads, dropout and checkpointing."""
    network = _Inspection("improved-diffusion", weights)
    if network.resampling == "residual":
        problem = "the network resamples in residual blocks; use source=guided-diffusion"
        raise ConfigError("source", network.source, problem)
    return network.arguments()


def _infer_guided(weights: Weights) -> dict[str, Any]:
    """Return all but heads, the order of q, k and v, dropout, checkpointing and image size."""
    network = _Inspection("guided-diffusion", weights)
    kind = network.resampling
    updown = {} if kind is None else {"resblock_updown": kind == "residual"}
    return {**network.arguments(), **updown}


def _to_kwargs_improved(spec: NetworkSpec) -> dict[str, Any]:
    """Return the arguments of improved-diffusion's ``UNetModel`` for our network."""
    options = _own_options(spec)
    mults = options["channel_mult"]
    problem = "must be integers in improved-diffusion; use format=guided-diffusion"
    require(all(n == int(n) for n in mults), "model.channel_mult", mults, problem)
    for name, off in (
        ("resblock_updown", (False,)),
        ("num_head_channels", (None, -1)),
        ("use_new_attention_order", (False,)),
    ):
        problem = "is not supported by improved-diffusion; use format=guided-diffusion"
        require(options[name] in off, f"model.{name}", options[name], problem)
    stem = int(options["channel_mult"][0] * options["model_channels"])
    good = not options["scale_stem"] or stem == options["model_channels"]
    require(good, "model.scale_stem", True, "is not supported by improved-diffusion")
    return _to_kwargs(spec, _OPTIONS)


def _to_kwargs_guided(spec: NetworkSpec) -> dict[str, Any]:
    """Return the arguments of guided-diffusion's ``UNetModel`` for our network."""
    options = _own_options(spec)
    stem = int(options["channel_mult"][0] * options["model_channels"])
    good = options["scale_stem"] or stem == options["model_channels"]
    problem = "is not supported by guided-diffusion; use model.scale_stem=true"
    require(good, "model.scale_stem", False, problem)
    return {"image_size": spec.size[-1], **_to_kwargs(spec, _GUIDED_OPTIONS)}


def _own_options(spec: NetworkSpec) -> dict[str, Any]:
    """Return the options of our network; ConfigError unless the originals have an equivalent."""
    if spec.target is not IDDPMUNet:
        problem = "supports networks of model=iddpm_unet only"
        raise ConfigError("format", None, problem)
    for name, value in _FIXED.items():
        actual = spec.options.get(name, value)
        problem = f"is {render(value)} in the original; use format=diffusers"
        require(actual == value, f"model.{name}", actual, problem)
    return spec.options


def _to_kwargs(spec: NetworkSpec, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the arguments of the original, which have the names of our options."""
    problem = "is not supported by the original"
    require(not spec.self_condition, "diffusion.self_condition", True, problem)
    options = {name: spec.options[name] for name in names}
    mults = options["channel_mult"]
    options["channel_mult"] = tuple(int(n) if n == int(n) else n for n in mults)
    for name in ("num_heads_upsample", "num_head_channels"):
        if name in options and options[name] is None:
            options[name] = -1
    return {
        "in_channels": spec.channels,
        "out_channels": spec.out_channels,
        "num_classes": spec.num_classes,
        **options,
        "attention_resolutions": spec.options["attention_resolutions"],
        "dims": len(spec.size) if options["dims"] is None else options["dims"],
    }


def _process(source: str) -> Callable[[dict[str, Any], Parts], Process]:
    """Return a function that returns the process, with the defaults of the scripts.

    The number of output channels determines the variance. The scripts save the network only; if a
    file has betas beside it, they determine the schedule.
    """

    def process(kwargs: dict[str, Any], parts: Parts) -> Process:
        flags: dict[str, Any] = {"learn_sigma": kwargs["out_channels"] == 2 * kwargs["in_channels"]}
        schedule = schedule_in(parts.buffers)
        if schedule is not None:
            flags["diffusion_steps"] = schedule["num_steps"]
            flags["noise_schedule"] = schedule["_target_"].rpartition(".")[2]
        return openai(resolve(source, 64, **flags).process)

    return process


# `num_heads` is 4 in the scripts of both, and 1 in their constructors.
_ASSUMED: Arguments = {"num_heads": 4}

_ANCHORS: Anchors = {
    "input_blocks.0.0.weight": (3, 4, 5),
    "time_embed.0.weight": (2,),
    "out.2.weight": (3, 4, 5),
}

FORMATS = {
    "improved-diffusion": ForeignFormat(
        defaults=_IMPROVED,
        from_kwargs=_improved_diffusion,
        infer=_infer_improved,
        to_kwargs=_to_kwargs_improved,
        anchors=_ANCHORS,
        process=_process("improved-diffusion"),
        assumed=_ASSUMED,
    ),
    "guided-diffusion": ForeignFormat(
        defaults=_GUIDED,
        from_kwargs=_guided_diffusion,
        infer=_infer_guided,
        to_kwargs=_to_kwargs_guided,
        anchors=_ANCHORS,
        process=_process("guided-diffusion"),
        assumed=_ASSUMED,
    ),
}
