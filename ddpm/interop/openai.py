"""Networks of improved-diffusion and of guided-diffusion, with their names and arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ddpm.errors import ConfigError, require
from ddpm.interop.files import Parts
from ddpm.interop.original import (
    REQUIRED,
    Arguments,
    Described,
    Original,
    Weights,
    smallest_size,
)
from ddpm.interop.process import Process, openai, schedule_in
from ddpm.interop.recipes import resolve
from ddpm.interop.unwrap import Anchors
from ddpm.models import IDDPMUNet

# The originals' own defaults hold where their arguments are absent, not those of our constructor.
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
# Two mean nothing to the numbers: image_size is only kept there, and use_fp16 is a precision of
# computing, which the trainer and the sampler choose here; the files have float32 either way.
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
_GUIDED_OPTIONS = (
    *_OPTIONS,
    "num_head_channels",
    "resblock_updown",
    "use_new_attention_order",
)


def _improved_diffusion(given: Arguments, weights: Weights) -> Described:
    """``UNetModel`` of improved-diffusion."""
    return _describe(given, {name: given[name] for name in _OPTIONS})


def _guided_diffusion(given: Arguments, weights: Weights) -> Described:
    """``UNetModel`` of guided-diffusion, whose first convolution has the first level's channels."""
    options = {name: given[name] for name in _GUIDED_OPTIONS}
    return _describe(given, {**options, "scale_stem": True})


def _describe(given: Arguments, options: dict[str, Any]) -> Described:
    """Either; a rate of attention that no level has means nothing to them."""
    levels = len(given["channel_mult"])
    rates = [2**level for level in range(levels)]
    attending = tuple(n for n in rates if n in given["attention_resolutions"])
    return Described(
        IDDPMUNet,
        given["in_channels"],
        given["out_channels"],
        smallest_size(levels, given["dims"]),
        given["num_classes"],
        False,
        {**options, "attention_resolutions": attending},
    )


def _times(base: int, width: int) -> float:
    """The number, whole where it can be, that times ``base`` is ``width`` when cut to an int."""
    if width % base == 0:
        return width // base
    mult = width / base
    return mult if int(mult * base) == width else math.nextafter(mult, math.inf)


class _Shown:
    """What the names and shapes of a ``UNetModel``'s weights show of it."""

    def __init__(self, source: str, weights: Weights) -> None:
        self.source, self.weights = source, weights
        self._refuse_relatives()
        self.num_outputs = self._count("output_blocks.")
        self.resampling, self.num_res_blocks = self._resampling()

    def _refuse_relatives(self) -> None:
        """Raise ConfigError for a classifier, and for a network that takes a small image too."""
        classifier = "classifiers (EncoderUNetModel) cannot be imported, only diffusion networks"
        pool = "out.2.positional_embedding"
        if pool in self.weights:
            shape = list(self.weights[pool].shape)
            raise ConfigError(f"state_dict.{pool}", shape, classifier)
        if "middle_block.0.in_layers.0.weight" in self.weights:
            names = [name for name in self.weights if name.startswith("output_blocks.")]
            require(bool(names), "state_dict.output_blocks", None, f"is missing; {classifier}")
        taken, given = self.shape("input_blocks.0.0.weight"), self.shape("out.2.weight")[0]
        # With three channels and learned variances it has 6 and 6, as all published ones have.
        if taken[1] == 2 * given or (taken[1], given, len(taken)) == (6, 6, 4):
            raise ConfigError(
                "state_dict.input_blocks.0.0.weight",
                list(taken),
                f"takes {taken[1]} channels to give {given}, as networks for super-resolution "
                "(SuperResModel) do, which cannot be imported; a network of data that have "
                f"{taken[1]} channels can be, by ddpm.interop.import_network",
            )

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter; ConfigError where there is none."""
        problem = f"is missing; {self.source}'s UNetModel has it, so these are not its weights"
        require(name in self.weights, f"state_dict.{name}", None, problem)
        return tuple(self.weights[name].shape)

    def _count(self, prefix: str) -> int:
        """How many blocks there are, by their largest number."""
        found = [name.split(".")[1] for name in self.weights if name.startswith(prefix)]
        require(bool(found), f"state_dict.{prefix}0", None, "is missing; there is no such block")
        return 1 + max(int(number) for number in found)

    def _resampling(self) -> tuple[str | None, int]:
        """How levels are resampled, None where there is one level; residual blocks a level."""
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
        """The names of the first block of each level on the way down."""
        step = self.num_res_blocks + 1
        return [f"input_blocks.{1 + step * n}" for n in range(self.num_outputs // step)]

    def arguments(self) -> dict[str, Any]:
        """Those of the constructor that both originals have."""
        stem, base = self.shape("input_blocks.0.0.weight"), self.shape("time_embed.0.weight")[1]
        firsts = self.firsts()
        widths = [self.shape(f"{name}.0.in_layers.2.weight")[0] for name in firsts]
        told = self.shape("middle_block.0.emb_layers.1.weight")[0]
        shown = {
            "in_channels": stem[1],
            "model_channels": base,
            "out_channels": self.shape("out.2.weight")[0],
            "num_res_blocks": self.num_res_blocks,
            "attention_resolutions": tuple(
                2**n for n, name in enumerate(firsts) if f"{name}.1.qkv.weight" in self.weights
            ),
            "channel_mult": tuple(_times(base, width) for width in widths),
            "dims": len(stem) - 2,
            "num_classes": None,
            "use_scale_shift_norm": told == 2 * widths[-1],
        }
        if "label_emb.weight" in self.weights:
            shown["num_classes"] = self.shape("label_emb.weight")[0]
        if self.resampling in ("conv", "pool"):
            shown["conv_resample"] = self.resampling == "conv"
        return shown


def _infer_improved(weights: Weights) -> dict[str, Any]:
    """All but the heads, dropout and checkpointing, which names and shapes do not show."""
    shown = _Shown("improved-diffusion", weights)
    if shown.resampling == "residual":
        problem = "resampling in residual blocks is guided-diffusion's; set source=guided-diffusion"
        raise ConfigError("source", shown.source, problem)
    return shown.arguments()


def _infer_guided(weights: Weights) -> dict[str, Any]:
    """All but the heads, the order of q, k, v, dropout, checkpointing, the size of the images."""
    shown = _Shown("guided-diffusion", weights)
    updown = {} if shown.resampling is None else {"resblock_updown": shown.resampling == "residual"}
    return {**shown.arguments(), **updown}


def _express_improved(described: Described) -> dict[str, Any]:
    """The arguments of improved-diffusion's ``UNetModel`` for a network of ours."""
    options = _own_options(described)
    mults = options["channel_mult"]
    problem = "are whole numbers in improved-diffusion; take format=guided-diffusion"
    require(all(n == int(n) for n in mults), "model.channel_mult", mults, problem)
    for name, off in (
        ("resblock_updown", (False,)),
        ("num_head_channels", (None, -1)),
        ("use_new_attention_order", (False,)),
    ):
        problem = "is not in improved-diffusion; take format=guided-diffusion"
        require(options[name] in off, f"model.{name}", options[name], problem)
    stem = int(options["channel_mult"][0] * options["model_channels"])
    good = not options["scale_stem"] or stem == options["model_channels"]
    require(good, "model.scale_stem", True, "is not in improved-diffusion")
    return _express(described, _OPTIONS)


def _express_guided(described: Described) -> dict[str, Any]:
    """The arguments of guided-diffusion's ``UNetModel`` for a network of ours."""
    options = _own_options(described)
    stem = int(options["channel_mult"][0] * options["model_channels"])
    good = options["scale_stem"] or stem == options["model_channels"]
    problem = "its first convolution has the first level's channels; take model.scale_stem=true"
    require(good, "model.scale_stem", False, problem)
    return {"image_size": described.size[-1], **_express(described, _GUIDED_OPTIONS)}


def _own_options(described: Described) -> dict[str, Any]:
    """The options of our network; ConfigError unless it is of the kind that the originals have."""
    if described.target is not IDDPMUNet:
        problem = "has no such network; it takes those of model=iddpm_unet"
        raise ConfigError("format", None, problem)
    return described.options


def _express(described: Described, names: tuple[str, ...]) -> dict[str, Any]:
    """Our options are named as theirs."""
    problem = "is not in the original; such a network cannot be written for it"
    require(not described.self_condition, "diffusion.self_condition", True, problem)
    options = {name: described.options[name] for name in names}
    mults = options["channel_mult"]
    options["channel_mult"] = tuple(int(n) if n == int(n) else n for n in mults)
    for name in ("num_heads_upsample", "num_head_channels"):
        if name in options and options[name] is None:
            options[name] = -1
    return {
        "in_channels": described.channels,
        "out_channels": described.out_channels,
        "num_classes": described.num_classes,
        **options,
        "attention_resolutions": described.options["attention_resolutions"],
        "dims": len(described.size) if options["dims"] is None else options["dims"],
    }


def _process(source: str) -> Callable[[dict[str, Any], Parts], Process]:
    """The process at the defaults of the scripts, the variance as the outputs show it.

    The scripts save a network alone. Where a file of somebody's own training has betas beside it,
    they say which schedule it is.
    """

    def process(kwargs: dict[str, Any], parts: Parts) -> Process:
        flags: dict[str, Any] = {"learn_sigma": kwargs["out_channels"] == 2 * kwargs["in_channels"]}
        shown = schedule_in(parts.buffers)
        if shown is not None:
            flags["diffusion_steps"] = shown["num_steps"]
            flags["noise_schedule"] = shown["_target_"].rpartition(".")[2]
        return openai(resolve(source, 64, **flags).process)

    return process


# `num_heads` is 4 in the scripts of both, and 1 in their constructors.
_ASSUMED: Arguments = {"num_heads": 4}

_ANCHORS: Anchors = {
    "input_blocks.0.0.weight": (3, 4, 5),
    "time_embed.0.weight": (2,),
    "out.2.weight": (3, 4, 5),
}

ORIGINALS = {
    "improved-diffusion": Original(
        defaults=_IMPROVED,
        describe=_improved_diffusion,
        infer=_infer_improved,
        express=_express_improved,
        anchors=_ANCHORS,
        process=_process("improved-diffusion"),
        assumed=_ASSUMED,
    ),
    "guided-diffusion": Original(
        defaults=_GUIDED,
        describe=_guided_diffusion,
        infer=_infer_guided,
        express=_express_guided,
        anchors=_ANCHORS,
        process=_process("guided-diffusion"),
        assumed=_ASSUMED,
    ),
}
