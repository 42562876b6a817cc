"""Choice of the gradient accumulation steps by a trial: the largest micro-batch that fits."""

from __future__ import annotations

import gc

import torch
from torch import Tensor

from ddpm.distributed.consensus import gather
from ddpm.errors import ConfigError
from ddpm.memory import is_out_of_memory
from ddpm.training.trainer import Trainer
from ddpm.training.trial import in_eager_mode, micro_of_most_work, restored

_MARGIN = 20  # one part in 20 of the memory stays free


def choose(trainer: Trainer, *, tries: bool | None = None) -> str:
    """Set the gradient accumulation steps of a trainer; return them with the reason, in one line.

    On a GPU a forward and a backward pass are tried with all items of a process, then with the next
    smaller divisor of their number, until the memory suffices on every process. Weights, gradients,
    optimizer, average, buffers, random state and the position in the data are not changed.

    A CPU does not report that memory is short: the system swaps, or ends the process. There the
    batch is not divided.

    Args:
        trainer: a trainer at the start or after resuming; every process calls this.
        tries: try; None = on a GPU.

    Raises:
        ConfigError: a single item does not fit.
    """
    on_gpu = trainer.accelerator.device.type == "cuda"
    if not (on_gpu if tries is None else tries):
        return "accumulate: 1 (not tried: a CPU does not report that memory is short)"
    items, larger = trainer.batch_size // trainer.accelerator.num_processes, 0
    for accumulate in range(1, items + 1):
        size, rest = divmod(items, accumulate)
        if rest:
            continue
        if all(gather(trainer.accelerator, _fits(trainer, size, accumulate))):
            trainer.divide_batch(accumulate)
            return _described(accumulate, size, larger)
        larger = size
    problem = (
        "not even one item per micro-batch fits into the memory of the GPU, beside the weights and "
        "the state of the optimizer; use trainer.precision=bf16, a smaller network, or smaller data"
    )
    raise ConfigError("trainer.accumulate", "auto", problem)


def _described(accumulate: int, size: int, larger: int) -> str:
    """Return a choice in one line.

    Args:
        accumulate: gradient accumulation steps.
        size: items per micro-batch.
        larger: items of the smallest micro-batch that does not fit; 0 = all fit.
    """
    items = "1 item" if size == 1 else f"{size} items"
    but = f", one of {larger} does not" if larger else ""
    return f"accumulate: {accumulate} (a micro-batch of {items} fits into the GPU's memory{but})"


def _fits(trainer: Trainer, size: int, accumulate: int) -> bool:
    """Return True if the memory of this process suffices for micro-batches of ``size`` items."""
    try:
        _try(trainer, size, accumulate)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    else:
        fits = True
    # Outside of the handler: the frames of the error hold the memory that the next trial needs.
    gc.collect()
    if trainer.accelerator.device.type == "cuda":
        torch.cuda.empty_cache()
    return fits


def _try(trainer: Trainer, size: int, accumulate: int) -> None:
    """Compute a gradient with no more memory than a training step has for it.

    A compiled network is not compiled for each size; without compilation it needs more memory.
    """
    reserved = _reserved(trainer, accumulate)
    batch = trainer.loader.repeated(trainer.samples, size)
    with restored(trainer), in_eager_mode(trainer):
        trainer.gradient(batch, micro_of_most_work(trainer))
    if trainer.accelerator.device.type == "cuda":
        torch.cuda.synchronize(trainer.accelerator.device)
    del reserved


def _reserved(trainer: Trainer, accumulate: int) -> list[Tensor]:
    """Return tensors of the size of what is in memory during the passes of a training step.

    These are the two moments of the optimizer, which its first step allocates, the gradient of
    preceding micro-batches, and a margin. Previews and evaluations run between the steps; their
    memory does not add to that of a step.
    """
    count = (0 if trainer.optimizer.state else 2) + (accumulate > 1)
    trained = [each for each in trainer.network.parameters() if each.requires_grad]
    tensors = [torch.empty_like(each) for each in trained for _ in range(count)]
    device = trainer.accelerator.device
    return [*tensors, torch.empty(_margin(device), dtype=torch.uint8, device=device)]


def _margin(device: torch.device) -> int:
    """Return the bytes to leave free, for fragments and for networks of evaluations."""
    return torch.cuda.mem_get_info(device)[1] // _MARGIN if device.type == "cuda" else 0
