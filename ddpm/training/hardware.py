"""Options of the arithmetic of a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ddpm.training.options import Options, option


@dataclass(frozen=True, kw_only=True)
class HardwareOptions(Options):
    """Options of the arithmetic.

    Attributes:
        precision: ``no`` (float32), ``fp16`` (GPU only) or ``bf16``; the weights stay float32.
            ``auto`` is bf16 on a GPU that supports it, and float32 elsewhere, except on a CPU with
            bf16 instructions, where a trial decides; see :mod:`ddpm.training.automatic`.
        deterministic: use algorithms that give the same bits each time; slower on a GPU.
        compile: use torch.compile; ``auto`` tries it in long runs.
        channels_last: keep 2-D activations with channels last in memory; None = on a GPU, where
            it is faster.
    """

    precision: Literal["auto", "no", "fp16", "bf16"] = option("auto", legacy="no")
    deterministic: bool = False
    compile: bool | Literal["auto"] = False
    channels_last: bool | None = option(None, legacy=False)
