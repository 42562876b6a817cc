"""The processes and devices that a command runs on, through Accelerate."""

from __future__ import annotations

import os
import warnings
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs

from ddpm.errors import ConfigError

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["no", "fp16", "bf16"]


def accelerator(
    device: Device, precision: Precision, *, key: str, accumulate: int = 1
) -> Accelerator:
    """Accelerate set up as asked for, or a refusal where it would silently do something else.

    Args:
        device: ``auto`` takes a GPU where there is one.
        precision: of the networks' arithmetic; the weights stay float32.
        key: the option that names the precision, for the error.
        accumulate: micro-batches an optimizer step.

    Raises:
        ConfigError: no GPU where one was asked for; fp16 on a CPU; a launcher's processes that
            do not know of each other.
    """
    if device == "cuda" and not torch.cuda.is_available():
        problem = "this machine has no GPU that torch can use; take device=auto or device=cpu"
        raise ConfigError("device", device, problem)
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if precision == "fp16" and on_cpu:
        problem = "fp16 needs a GPU; on a CPU take bf16, or no for float32"
        raise ConfigError(key, precision, problem)
    # In a sweep several jobs run in this process, each with its own precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    made = Accelerator(
        # One process without a GPU: not on Apple's, which has no float64.
        cpu=device == "cpu" or (on_cpu and world == 1),
        mixed_precision=precision,
        gradient_accumulation_steps=accumulate,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        ],
    )
    if world != made.num_processes:
        problem = (
            f"the launcher started {world} processes but they found {made.num_processes}; "
            "on a machine without GPUs set ACCELERATE_USE_CPU=true"
        )
        raise ConfigError("device", device, problem)
    if made.gradient_accumulation_steps != accumulate:
        problem = "the variable ACCELERATE_GRADIENT_ACCUMULATION_STEPS says otherwise; unset it"
        raise ConfigError("trainer.accumulate", accumulate, problem)
    return made
