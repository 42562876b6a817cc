"""Status of all processes, exchanged once per step, values of one or all of them, and barriers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from ddpm.distributed.processes import Processes

T = TypeVar("T")


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
    """All-reduce the status of the processes, and wait for the result.

    Args:
        accelerator: of the processes; nothing is exchanged for a single one.
        norm: of the gradient, a scalar.
        stop: True if this process received a request to stop.
        failed: True if this process failed.
        save: True if a checkpoint is due by the clock; the main process decides.
    """
    if accelerator.num_processes == 1:
        save = save and accelerator.is_main_process
        return Agreed(math.isfinite(float(norm)), stop, failed, save)
    return post_status(accelerator, norm, stop=stop, failed=failed, save=save).read()


class PostedStatus:
    """Status of all processes on its way from the device to the host.

    Attributes:
        nonfinite: 1.0 if the gradient of some process is not finite, else 0.0; (), on the device.

    Args:
        votes: number of processes per flag: not finite, stop, failed, save; (4,), on the device.
    """

    def __init__(self, votes: Tensor) -> None:
        self.nonfinite = (votes[0] > 0).float()
        self._votes = votes
        self._copied: torch.cuda.Event | None = None
        if votes.device.type == "cuda":
            host = torch.empty(votes.shape, dtype=votes.dtype, pin_memory=True)
            self._votes = host.copy_(votes, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> Agreed:
        """Wait until the device has computed the status, not for what was queued after it."""
        if self._copied is not None:
            self._copied.synchronize()
        broken, stopping, failing, saving = self._votes.tolist()
        return Agreed(broken == 0, stopping > 0, failing > 0, saving > 0)


def post_status(
    accelerator: Accelerator, norm: Tensor, *, stop: bool, failed: bool, save: bool = False
) -> PostedStatus:
    """All-reduce the status of the processes like :func:`agree`, without waiting for the device."""
    votes = torch.zeros(4, device=accelerator.device)
    votes[:1].copy_(~torch.isfinite(norm))
    for index, flag in enumerate((stop, failed, save and accelerator.is_main_process), 1):
        if flag:  # to copy a list of flags would wait for a GPU
            votes[index : index + 1].fill_(1.0)
    if accelerator.num_processes > 1:
        votes = accelerator.reduce(votes, reduction="sum")
        assert isinstance(votes, Tensor)
    return PostedStatus(votes)


def broadcast(processes: Processes, value: T) -> T:
    """Return the value of the main process on every process.

    Args:
        processes: all of them call this.
        value: can be pickled; those of other processes than the main one are ignored.
    """
    return value if processes.num_processes == 1 else broadcast_object_list([value])[0]


def gather(processes: Processes, value: T) -> list[T]:
    """Return the values of all processes, in their order, on every process.

    Args:
        processes: all of them call this.
        value: can be pickled.
    """
    return [value] if processes.num_processes == 1 else gather_object([value])


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
