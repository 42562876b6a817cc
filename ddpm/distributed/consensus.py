"""Status of all processes, exchanged once per step, and barriers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from ddpm.distributed.processes import Processes


class Agreed(NamedTuple):
    """Status of all processes together.

    Attributes:
        finite: the gradients of all processes are finite.
        stop: some process received a request to stop.
        failed: some process failed.
        save: a checkpoint is due by the clock of the main process.
    """

    finite: bool
    stop: bool
    failed: bool
    save: bool = False


def agree(
    accelerator: Accelerator, norm: Tensor, *, stop: bool, failed: bool, save: bool = False
) -> Agreed:
    """All-reduce the status of the processes.

    This is the only synchronization with the device in a step.

    Args:
        accelerator: of the processes; nothing is exchanged for a single one.
        norm: of the gradient, a scalar.
        stop: True if this process received a request to stop.
        failed: True if this process failed.
        save: True if a checkpoint is due by the clock; the main process decides.
    """
    save = save and accelerator.is_main_process
    if accelerator.num_processes == 1:
        return Agreed(math.isfinite(float(norm)), stop, failed, save)
    mine = torch.tensor([0.0, stop, failed, save], device=accelerator.device)
    mine[0] = (~torch.isfinite(norm)).float()
    votes = accelerator.reduce(mine, reduction="sum")
    assert isinstance(votes, Tensor)
    broken, stopping, failing, saving = votes.tolist()
    return Agreed(broken == 0, stopping > 0, failing > 0, saving > 0)


def wait_for_all(accelerator: Processes) -> None:
    """Wait until every process has called this.

    ``accelerator.wait_for_everyone`` names the device by the number of the process on its machine.
    That device does not exist where processes share a GPU, where each of them sees one GPU alone,
    and where they run on the CPU of a machine with fewer GPUs.
    """
    if accelerator.num_processes > 1:
        device = accelerator.device
        torch.distributed.barrier(device_ids=[device.index] if device.type == "cuda" else None)


@contextmanager
def main_first(accelerator: Processes) -> Iterator[None]:
    """Run the block on the main process first, then on the others."""
    if not accelerator.is_main_process:
        wait_for_all(accelerator)
    yield
    if accelerator.is_main_process:
        wait_for_all(accelerator)


def has_lost_peer(error: RuntimeError) -> bool:
    """Return True for the error of a collective in which another process has died."""
    texts = ("onnection closed by peer", "onnection reset by peer", "remote process exited")
    return any(text in str(error) for text in texts)
