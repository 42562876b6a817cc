"""The processes and devices that a command runs on, through Accelerate."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
    parse_flag_from_env,
)

from ddpm.console import warn
from ddpm.errors import ConfigError
from ddpm.lifetime import OWN_WORKERS  # they may be several without a GPU

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["no", "fp16", "bf16"]
_LAUNCHERS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_SLURM = "SLURM_STEP_NUM_TASKS"  # tasks of one srun
_KINDS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
_USE_CPU = "ACCELERATE_USE_CPU"
_SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
# Until a process that waits for another one gives up. Longer than a download or a checkpoint takes.
_TIMEOUT = timedelta(minutes=30)


def world_size() -> int:
    """Return the number of processes that the launcher has started, or 1."""
    for name in (*_LAUNCHERS, _SLURM):
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    return 1


def device_of(device: Device, precision: Precision | Literal["auto"], *, key: str) -> torch.device:
    """Return the device that an option names, ``cuda`` for every GPU.

    Args:
        device: ``auto`` takes a GPU where there is one.
        precision: of the networks' arithmetic.
        key: the option that names the precision, for the error.

    Raises:
        ConfigError: no GPU although one was requested; fp16 on a CPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        problem = "this machine has no GPU that torch can use; use device=auto or device=cpu"
        raise ConfigError("device", device, problem)
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if precision == "fp16" and on_cpu:
        problem = "fp16 needs a GPU; on a CPU use bf16, or no for float32"
        raise ConfigError(key, precision, problem)
    return torch.device("cpu" if on_cpu else "cuda")


def default_precision(device: torch.device) -> Precision:
    """Return the precision of ``auto`` without a trial: bf16 on a GPU that supports it."""
    on_gpu = device.type == "cuda"
    return "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "no"


def has_bf16_instructions() -> bool:
    """Return True if the CPU has instructions for bf16; without them bf16 is slower than float32.

    Known for x86 only, as torch reports it.
    """
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def use_fast_kernels(device: torch.device, precision: str, *, deterministic: bool) -> None:
    """Set the kernels of training on a GPU; nothing changes on a CPU.

    cuDNN measures its convolutions, unless they have to be deterministic. With half precision, what
    stays float32 uses TF32, which has more digits than both.
    """
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not deterministic
        torch.set_float32_matmul_precision("highest" if precision == "no" else "high")


def accelerator(
    device: Device,
    precision: Precision | Literal["auto"],
    *,
    key: str,
    accumulate: int = 1,
    deterministic: bool = False,
) -> Accelerator:
    """Return an Accelerator with exactly these options.

    Args:
        device: ``auto`` takes a GPU where there is one.
        precision: of the networks' arithmetic; the weights stay float32. ``auto`` is that of the
            main process, see :func:`default_precision`.
        key: the option that names the precision, for the error.
        accumulate: micro-batches per optimizer step.
        deterministic: algorithms that give the same bits each time, in this process from now on.

    Raises:
        ConfigError: no GPU although one was requested; fp16 on a CPU; a launcher's processes that
            do not know of each other; a way to share a network among GPUs that is not supported.
    """
    place = device_of(device, precision, key=key)
    on_cpu = place.type == "cpu"
    chosen = default_precision(place) if precision == "auto" else precision
    # In a sweep several jobs run in this process, each with its own precision. The network of the
    # job before is part of a cycle, and its memory is needed now.
    if AcceleratorState._shared_state:
        gc.collect()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    for kind in _SHARDED:  # as 'accelerate launch' says it; without GPUs Accelerate does not care
        if os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() in ("true", "1"):
            raise _unsupported(kind)
    _set_deterministic(deterministic)
    world = world_size()
    meant = device == "cpu" or OWN_WORKERS in os.environ or parse_flag_from_env(_USE_CPU)
    if on_cpu and not meant and "WORLD_SIZE" in os.environ and world > 1:
        problem = (
            f"the launcher started {world} processes on a machine without a GPU; add device=cpu"
        )
        raise ConfigError("device", device, problem)
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    made = Accelerator(
        # One process without a GPU: not on Apple's, which has no float64.
        cpu=device == "cpu" or (on_cpu and (world == 1 or OWN_WORKERS in os.environ)),
        mixed_precision=chosen,
        gradient_accumulation_steps=accumulate,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(backend=_backend(on_cpu), timeout=_TIMEOUT),
        ],
    )
    _check(made, world, accumulate)
    if precision == "auto":
        everywhere: Any = broadcast_object_list([chosen])[0]
        if everywhere != chosen:  # the machines differ
            options: Any = {"accumulate": accumulate, "deterministic": deterministic}
            return accelerator(device, everywhere, key=key, **options)
    return made


def _backend(on_cpu: bool) -> str:
    """Return what the processes exchange tensors by; NCCL refuses two of them on one GPU.

    Only for the workers that a command starts itself, which all see the same GPUs; a cluster may
    show each of its processes a GPU of its own.
    """
    gpus = 0 if on_cpu else torch.cuda.device_count()
    workers = int(os.environ.get(OWN_WORKERS, "1"))
    if gpus == 0 or workers <= gpus:
        return "nccl"  # Accelerate's default, which it changes to gloo on a CPU
    if os.environ.get("RANK") == "0":
        shared = f"{workers} processes share {gpus} GPU{'s' if gpus > 1 else ''}"
        warn(f"{shared}: slower than one process per GPU, and each holds the whole network")
    return "gloo"


def _unsupported(kind: str) -> ConfigError:
    problem = (
        f"{kind} is not supported: each process holds the whole network; run 'accelerate config' "
        "again without it, or launch with torchrun"
    )
    return ConfigError("launch", None, problem)


def _set_deterministic(deterministic: bool) -> None:
    """Follow https://docs.pytorch.org/docs/stable/notes/randomness.html on a GPU."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    if deterministic != torch.are_deterministic_algorithms_enabled():  # the call imports inductor
        torch.use_deterministic_algorithms(deterministic)


def _check(made: Accelerator, world: int, accumulate: int) -> None:
    """Raise ConfigError if Accelerate detected another launch than the requested one."""
    if world != made.num_processes:
        problem = (
            f"the launcher started {world} processes but they found {made.num_processes}; have it "
            "start one torchrun per node, which starts the processes"
        )
        raise ConfigError("launch", None, problem)
    if made.distributed_type not in _KINDS:
        raise _unsupported(made.distributed_type.value)
    if made.gradient_accumulation_steps != accumulate:
        problem = "the variable ACCELERATE_GRADIENT_ACCUMULATION_STEPS has another value; unset it"
        raise ConfigError("trainer.accumulate", accumulate, problem)


def precision_of(
    autocast: Callable[[], AbstractContextManager[Any]], device: torch.device
) -> Precision:
    """Return the precision of arithmetic within a context of autocast."""
    with autocast():
        if not torch.is_autocast_enabled(device.type):
            return "no"
        dtype = torch.get_autocast_dtype(device.type)
    return "bf16" if dtype == torch.bfloat16 else "fp16"
