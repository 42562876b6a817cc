"""Options of commands that load a model; commands read them before they import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """Options of weights, devices and arithmetic as commands name them.

    Attributes:
        weights: ``ema`` for the average, ``raw`` for the weights of the last step.
        device: ``auto`` uses a GPU if there is one.
        threads: see :mod:`ddpm.distributed.cpu_threads`.
        precision, compile: of the network; see :mod:`ddpm.runs.tuning`.
        plugins: modules of the user that the config requires.
    """

    weights: Literal["ema", "raw"]
    device: Literal["auto", "cpu", "cuda"]
    threads: int | Literal["auto"]
    precision: Literal["auto", "no", "fp16", "bf16"]
    compile: bool | Literal["auto"]
    plugins: list[str]
