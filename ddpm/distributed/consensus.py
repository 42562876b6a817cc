"""What the processes agree on at each step, in one exchange."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from ddpm.distributed.processes import Processes


class Agreed(NamedTuple):
    """What holds for all processes.

    Attributes:
        finite: the gradient is, everywhere.
        stop: some process was told to stop.
        failed: some process cannot go on.
        save: the main process wants a checkpoint by its clock.
    """

    finite: bool
    stop: bool
    failed: bool
    save: bool = False


def agree(
    accelerator: Accelerator, norm: Tensor, *, stop: bool, failed: bool, save: bool = False
) -> Agreed:
    """Tell the others how this process stands, and hear how they do.

    It is the one place of a step where the device is waited for.

    Args:
        accelerator: whose processes; with one there is no exchange.
        norm: of the gradient.
        stop: whether this process was told to stop.
        failed: whether it cannot go on.
        save: whether a checkpoint is due by the clock; that of the main process decides.
    """
    save = save and accelerator.is_main_process
    if accelerator.num_processes == 1:
        return Agreed(bool(torch.isfinite(norm)), stop, failed, save)
    mine = torch.tensor([0.0, stop, failed, save], device=accelerator.device)
    mine[0] = (~torch.isfinite(norm)).float()
    votes = accelerator.reduce(mine, reduction="sum")
    assert isinstance(votes, Tensor)
    broken, stopping, failing, saving = votes.tolist()
    return Agreed(broken == 0, stopping > 0, failing > 0, saving > 0)


def wait_for_all(accelerator: Processes) -> None:
    """Wait until every process has come here.

    ``accelerator.wait_for_everyone`` names the device by the number of the process on its machine.
    That device does not exist where processes share a GPU, where each of them sees one GPU alone,
    and where they run on the CPU of a machine with fewer GPUs.
    """
    if accelerator.num_processes > 1:
        device = accelerator.device
        torch.distributed.barrier(device_ids=[device.index] if device.type == "cuda" else None)


@contextmanager
def main_first(accelerator: Processes) -> Iterator[None]:
    """Inside, the main process is alone; the others come after it, see :func:`wait_for_all`."""
    if not accelerator.is_main_process:
        wait_for_all(accelerator)
    yield
    if accelerator.is_main_process:
        wait_for_all(accelerator)
