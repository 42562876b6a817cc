"""Which version of denoising-diffusion-pytorch has which network, and what shows it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddpm.errors import ConfigError, render, require
from ddpm.models import UNet
from ddpm.models.layers import LayerNorm, RMSNorm
from ddpm.models.unet_blocks import Block, SelfAttention, StandardizedConv

MARK = "version"
"""Stands among weights on their way out, whose names and shapes do not always show the version."""

Number = tuple[int, int, int]

_ALONE = (1, 7, 1)  # it bounds the variance of weights from below and adds nothing to it


@dataclass(frozen=True)
class Form:
    """A network that some versions in a row have.

    Attributes:
        since: the first of them.
        until: the last of them, as it is called; empty for what is still so.
        typical: the one that files are written for.
        wrapped: its attention is in ``Residual(PreNorm(...))``.
        num_mem_kv: learned keys and values.
        options: of our network.
    """

    since: Number
    until: str
    typical: str
    wrapped: bool
    num_mem_kv: int
    options: dict[str, Any]

    @property
    def number(self) -> Number:
        """The typical version."""
        return parse(self.typical)

    @property
    def mark(self) -> Tensor:
        """The typical version as it stands among weights."""
        return torch.tensor(self.number)

    @property
    def range(self) -> str:
        """``1.8.0 to 1.8.15``, for people."""
        first = ".".join(map(str, self.since))
        return f"{first} to {self.until}" if self.until else f"{first} and later"


@dataclass(frozen=True)
class Versions:
    """The forms of ``Unet`` or of ``Unet1D``, oldest first.

    Attributes:
        forms: all that can be had here.
        default: where nothing says more, by whether attention is wrapped.
        plain_weight: since when the table of loss weights is called ``loss_weight``.
        schedule: of the process where no table says more.
    """

    forms: tuple[Form, ...]
    default: Mapping[bool, int]
    plain_weight: Number
    schedule: str

    def at(self, version: str) -> Form:
        """The form in a version; ConfigError for those that cannot be had here."""
        number = parse(version)
        oldest = self.forms[0]
        problem = f"has other networks; from version {'.'.join(map(str, oldest.since))} on they are"
        require(number >= oldest.since, "version", version, f"{problem} known")
        problem = "standardises weights as no other does; such a network cannot be had here"
        require(number != _ALONE, "version", version, problem)
        return [form for form in self.forms if form.since <= number][-1]

    def fitting(self, weights: Mapping[str, Tensor]) -> list[Form]:
        """The forms whose names and shapes these are."""
        if "final_res_block.block1.norm.g" in weights:
            return [form for form in self.forms if form.options["block_norm"] == "rms"]
        memory = 4 if any(name.endswith(".mem_kv") for name in weights) else 0
        wrapped = any(".fn." in name for name in weights)
        alike = [form for form in self.forms if form.options["block_norm"] == "group"]
        if wrapped or memory or len({form.wrapped for form in alike}) > 1:
            alike = [f for f in alike if (f.wrapped, f.num_mem_kv) == (wrapped, memory)]
        return alike

    def certain(self, weights: Mapping[str, Tensor]) -> Form | None:
        """The form, where only one has such names and shapes."""
        alike = self.fitting(weights)
        return alike[0] if len(alike) == 1 and "init_conv.weight" in weights else None

    def settle(self, version: str | None, weights: Mapping[str, Tensor]) -> Form:
        """The form that is said or, where nothing is, that the weights show.

        Raises ConfigError (key ``version``) where the weights are not of the version.
        """
        if MARK in weights:
            return self.at(".".join(str(int(n)) for n in weights[MARK]))
        _refuse_older(weights, self.forms[0])
        alike = self.fitting(weights)
        if version is not None:
            form, known = self.at(version), "init_conv.weight" in weights
            has = " or ".join(each.range for each in alike)
            problem = f"has a network of other names and shapes; the weights are of {has}"
            require(not known or not alike or form in alike, "version", version, problem)
            return form
        default = self.forms[self.default[any(".fn." in name for name in weights)]]
        return default if default in alike or not alike else alike[-1]

    def of_options(self, options: Mapping[str, Any]) -> Form:
        """The form with such options of ours; ConfigError naming one that none has."""
        left = list(self.forms)
        names = ("block_norm", "weight_standardized", "attn_norm", "divide_values", "num_mem_kv")
        for name in names:
            kept = [form for form in left if _option(form, name) == options[name]]
            others = " or ".join(sorted({render(_option(form, name)) for form in left}))
            problem = f"is in no version of the original with the other options; it has {others}"
            require(bool(kept), f"model.{name}", options[name], problem)
            left = kept
        return left[-1]

    def of_network(self, network: UNet) -> Form:
        """The form of a network of ours that has one."""
        block, attention = network.final_res_block.block1, network.mid_attn
        assert isinstance(block, Block) and isinstance(attention, SelfAttention)
        return self.of_options(
            {
                "block_norm": "rms" if isinstance(block.norm, RMSNorm) else "group",
                "weight_standardized": isinstance(block.proj, StandardizedConv),
                "attn_norm": "layer" if isinstance(attention.norm, LayerNorm) else "rms",
                "divide_values": attention.divide_values,
                "num_mem_kv": 0 if attention.mem_kv is None else attention.mem_kv.shape[2],
            }
        )


def _option(form: Form, name: str) -> Any:
    return form.num_mem_kv if name == "num_mem_kv" else form.options[name]


def parse(version: str) -> Number:
    """The numbers of a version; ConfigError (key ``version``) where it has not three."""
    told = re.match(r"(\d+)\.(\d+)\.(\d+)", str(version))
    if told is None:
        raise ConfigError("version", version, "is not a version such as 1.8.14")
    return int(told[1]), int(told[2]), int(told[3])


def _refuse_older(weights: Mapping[str, Tensor], oldest: Form) -> None:
    """Raise ConfigError for weights that only versions before those known have."""
    halving = weights.get("downs.0.3.weight")
    strided = halving is not None and halving.ndim == 4 and halving.shape[-1] == 4
    biased = any(name.endswith(".norm.b") for name in weights)
    first = ".".join(map(str, oldest.since))
    for old, what in ((strided, "downs.0.3.weight is 4 x 4"), (biased, "norms have a bias b")):
        problem = f"the weights are of a version before {first} ({what}), which cannot be had"
        require(not old, "version", None, problem)


def _form(
    since: Number,
    until: str,
    typical: str,
    wrapped: bool,
    num_mem_kv: int = 0,
    *,
    standardized: bool = False,
    attn_norm: str = "rms",
    divide: bool = False,
    block_norm: str = "group",
) -> Form:
    options = {
        "weight_standardized": standardized,
        "attn_norm": attn_norm,
        "divide_values": divide,
        "block_norm": block_norm,
    }
    return Form(since, until, typical, wrapped, num_mem_kv, options)


IMAGES = Versions(
    (
        _form(
            (0, 32, 0), "1.6.4", "1.0.7", True, standardized=True, attn_norm="layer", divide=True
        ),
        _form((1, 7, 0), "1.7.0", "1.7.0", True, standardized=True, divide=True),
        _form((1, 7, 2), "1.7.3", "1.7.3", True, divide=True),
        _form((1, 7, 4), "1.7.7", "1.7.7", True),
        _form((1, 8, 0), "1.8.15", "1.8.14", False),
        _form((1, 9, 0), "1.11.1", "1.11.1", False, 4),
        _form((2, 0, 0), "", "2.3.4", False, 4, block_norm="rms"),
    ),
    default={True: 0, False: 4},
    plain_weight=(1, 5, 0),
    schedule="sigmoid",
)
SEQUENCES = Versions(
    (
        _form((0, 31, 0), "1.6.4", "1.0.7", True, standardized=True, attn_norm="layer"),
        _form((1, 7, 0), "1.7.0", "1.7.0", True, standardized=True),
        _form((1, 7, 2), "1.11.1", "1.8.14", True),
        _form((2, 0, 0), "", "2.3.4", True, block_norm="rms"),
    ),
    default={True: 2, False: 2},
    plain_weight=(1, 5, 1),
    schedule="cosine",
)
