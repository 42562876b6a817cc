"""Options of the arithmetic of a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ddpm.errors import require
from ddpm.training.options import Options, option


@dataclass(frozen=True, kw_only=True)
class HardwareOptions(Options):
    """Options of the arithmetic.

    Attributes:
        batch_parts: parts of each micro-batch, which threads of a CPU compute at the same time; see
            :mod:`ddpm.training.batch_parts`. ``auto`` depends on the threads, and on the size
            of a micro-batch. 1 on a GPU and with several processes.
        precision: ``no`` (float32), ``fp16`` (GPU only) or ``bf16``; the weights stay float32.
            ``auto`` is bf16 on a GPU that supports it, and float32 elsewhere, except on a CPU with
            bf16 instructions, where a trial decides; see :mod:`ddpm.training.automatic`.
        deterministic: use algorithms that give the same bits each time; slower on a GPU.
        compile: use torch.compile; ``auto`` tries it in long runs.
        channels_last: keep 2-D activations with channels last in memory; None = on a GPU, where
            it is faster.
    """

    batch_parts: int | Literal["auto"] = option("auto", legacy=1)
    precision: Literal["auto", "no", "fp16", "bf16"] = option("auto", legacy="no")
    deterministic: bool = False
    compile: bool | Literal["auto"] = False
    channels_last: bool | None = option(None, legacy=False)

    def _validate(self) -> None:
        if self.batch_parts != "auto":
            require(self.batch_parts >= 1, "batch_parts", self.batch_parts, "must be at least 1")
            alone = self.batch_parts == 1 or self.compile is not True
            problem = "conflicts with trainer.compile=true; use trainer.batch_parts=auto"
            require(alone, "batch_parts", self.batch_parts, problem)
