"""Networks of the versions of denoising-diffusion-pytorch, and their detection from weights."""

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
"""Entry of exported weights with the version, which names and shapes do not always determine."""

Number = tuple[int, int, int]

_ALONE = (1, 7, 1)  # it clamps the variance of weights instead of adding a constant


@dataclass(frozen=True)
class Form:
    """A network that consecutive versions share.

    Attributes:
        since: first version.
        until: last version; empty if current.
        typical: version that exported files declare.
        wrapped: True if its attention is in ``Residual(PreNorm(...))``.
        num_mem_kv: number of learned keys and values.
        options: options of our network.
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
        """The typical version as an entry of exported weights."""
        return torch.tensor(self.number)

    @property
    def range(self) -> str:
        """The versions as text, such as ``1.8.0 to 1.8.15``."""
        first = _text(self.since)
        return f"{first} to {self.until}" if self.until else f"{first} and later"


@dataclass(frozen=True)
class Versions:
    """The forms of ``Unet`` or of ``Unet1D``, oldest first.

    Attributes:
        forms: all supported ones.
        default: index of the form for ambiguous weights, by whether attention is wrapped.
        plain_weight: first version whose table of loss weights is called ``loss_weight``.
        schedule: default schedule of the process.
    """

    forms: tuple[Form, ...]
    default: Mapping[bool, int]
    plain_weight: Number
    schedule: str

    def at(self, version: str) -> Form:
        """Return the form of a version; ConfigError if it is not supported."""
        number = parse(version)
        oldest = self.forms[0]
        problem = f"is not supported; the oldest supported version is {_text(oldest.since)}"
        require(number >= oldest.since, "version", version, problem)
        problem = "is not supported, because it standardises weights differently"
        require(number != _ALONE, "version", version, problem)
        return [form for form in self.forms if form.since <= number][-1]

    def fitting(self, weights: Mapping[str, Tensor]) -> list[Form]:
        """Return the forms with these names and shapes."""
        if "final_res_block.block1.norm.g" in weights:
            return [form for form in self.forms if form.options["block_norm"] == "rms"]
        memory = 4 if any(name.endswith(".mem_kv") for name in weights) else 0
        wrapped = any(".fn." in name for name in weights)
        alike = [form for form in self.forms if form.options["block_norm"] == "group"]
        if wrapped or memory or len({form.wrapped for form in alike}) > 1:
            alike = [f for f in alike if (f.wrapped, f.num_mem_kv) == (wrapped, memory)]
        return alike

    def certain(self, weights: Mapping[str, Tensor]) -> Form | None:
        """Return the only form with these names and shapes; None if there are several."""
        alike = self.fitting(weights)
        return alike[0] if len(alike) == 1 and "init_conv.weight" in weights else None

    def resolve(self, version: str | None, weights: Mapping[str, Tensor]) -> Form:
        """Return the form of a version, or if it is None of the weights.

        Raises:
            ConfigError: (key ``version``) weights of another version.
        """
        if MARK in weights:
            return self.at(".".join(str(int(n)) for n in weights[MARK]))
        _reject_older(weights, self.forms[0])
        alike = self.fitting(weights)
        if version is not None:
            form, is_network = self.at(version), "init_conv.weight" in weights
            has = " or ".join(each.range for each in alike)
            problem = f"has different names and shapes; the weights are of {has}"
            require(not is_network or not alike or form in alike, "version", version, problem)
            return form
        default = self.forms[self.default[any(".fn." in name for name in weights)]]
        return default if default in alike or not alike else alike[-1]

    def of_options(self, options: Mapping[str, Any]) -> Form:
        """Return the form with our options; ConfigError names one that no form has."""
        left = list(self.forms)
        names = ("block_norm", "weight_standardized", "attn_norm", "divide_values", "num_mem_kv")
        for name in names:
            matching = [form for form in left if _option(form, name) == options[name]]
            others = " or ".join(sorted({render(_option(form, name)) for form in left}))
            problem = f"is not in any version of the original with the other options; use {others}"
            require(bool(matching), f"model.{name}", options[name], problem)
            left = matching
        return left[-1]

    def of_network(self, network: UNet) -> Form:
        """Return the form of one of our networks."""
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


def _text(number: Number) -> str:
    return ".".join(map(str, number))


def parse(version: str) -> Number:
    """Return the numbers of a version; ConfigError (key ``version``) unless there are three."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", str(version))
    if match is None:
        raise ConfigError("version", version, "is not a version such as 1.8.14")
    return int(match[1]), int(match[2]), int(match[3])


def _reject_older(weights: Mapping[str, Tensor], oldest: Form) -> None:
    """Raise ConfigError for weights of versions before the supported ones."""
    halving = weights.get("downs.0.3.weight")
    strided = halving is not None and halving.ndim == 4 and halving.shape[-1] == 4
    biased = any(name.endswith(".norm.b") for name in weights)
    first = _text(oldest.since)
    for old, what in ((strided, "downs.0.3.weight is 4 x 4"), (biased, "norms have a bias b")):
        problem = f"the weights are of a version before {first} ({what}), which is not supported"
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
