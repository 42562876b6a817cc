"""The result of an import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ddpm.interop.foreign_format import NetworkSpec
from ddpm.interop.process import Process


@dataclass(frozen=True)
class ImportedCheckpoint:
    """An imported checkpoint.

    Attributes:
        spec: our network.
        raw: its weights, with our parameter names.
        ema: averaged weights; the raw ones if the file has no average.
        process: config nodes of the process.
        step: number of optimizer steps; 0 if unknown.
        size: (*spatial) of the data of a recipe or a config; None without one.
        values: range of the data; None for 8-bit images.
        assumed: arguments of the original's constructor that neither the weights nor the user
            determine.
        averaged: weights in the file: ``both``, ``raw`` or ``ema``.
        types: dtypes of the weights in the file other than float32.
        ignored: names of the entries that are not used.
        notes: sentences about sampling as the other system does.
    """

    spec: NetworkSpec
    raw: dict[str, Tensor]
    ema: dict[str, Tensor]
    process: Process
    step: int
    size: tuple[int, ...] | None
    values: tuple[float, float] | None
    assumed: dict[str, Any]
    averaged: Literal["both", "raw", "ema"]
    types: Sequence[str]
    ignored: Sequence[str]
    notes: Sequence[str] = ()

    @property
    def learned(self) -> bool:
        """True if the process learns its variance, which doubles the output channels."""
        return self.process.diffusion.get("variance") in ("learned", "learned_range")
