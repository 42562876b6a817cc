"""Results of all processes on the main one, and work of the main one while the others wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate.utils import gather_object
from torch import Tensor

from ddpm import metrics
from ddpm.distributed.consensus import broadcast
from ddpm.distributed.processes import Processes
from ddpm.distributed.stopping import NEVER, GivenUpError, Stopping
from ddpm.lifetime import BUSY

_CHUNK = 2**25  # bytes that are sent at once
_SECONDS = 0.5  # between two exchanges of waiting processes
T = TypeVar("T")


def to_main(processes: Processes, rows: Tensor) -> Tensor | None:
    """Concatenate the rows of all processes on the main process, in the order of the processes.

    The other processes hold their own rows and nothing else.

    Args:
        processes: all of them call this.
        rows: (n, ...) on the CPU; n may be 0, and then the other sizes do not count.

    Returns:
        (N, ...) on the CPU; None on the other processes.
    """
    if processes.num_processes == 1:
        return rows
    sizes: list[Any] = gather_object([(tuple(rows.shape), rows.dtype)])
    if not processes.is_main_process:
        for chunk in _chunks(rows):
            dist.send(chunk.contiguous().to(processes.device), dst=0)
        return None
    total = sum(shape[0] for shape, _ in sizes)
    shape, dtype = next((each for each in sizes if each[0][0]), sizes[0])
    whole = torch.empty(total, *shape[1:], dtype=dtype)
    at = len(rows)
    whole[:at] = rows.reshape(at, *shape[1:])
    for rank, (other, _) in enumerate(sizes[1:], 1):
        for chunk in _chunks(whole[at : at + other[0]]):
            received = torch.empty(chunk.shape, dtype=dtype, device=processes.device)
            dist.recv(received, src=rank)
            chunk.copy_(received)
        at += other[0]
    return whole


def _chunks(rows: Tensor) -> list[Tensor]:
    """Views of rows (n, ...) of about equal size."""
    if not len(rows):
        return []
    size = max(_CHUNK // max(rows[0].numel() * rows.element_size(), 1), 1)
    return [rows[at : at + size] for at in range(0, len(rows), size)]


def features_to_main(
    processes: Processes, own: metrics.Features, *, has_logits: bool
) -> metrics.Features | None:
    """Gather the features of all processes on the main one; None on the others.

    Args:
        processes: each has the features of its :class:`~ddpm.distributed.sharding.Shard`.
        own: those of this process.
        has_logits: True if the extractor gives logits.
    """
    indices = to_main(processes, own.indices)
    values = to_main(processes, own.features)
    missing = own.logits is None
    logits = torch.zeros(0, 0) if missing else own.logits
    logits = to_main(processes, logits) if has_logits and logits is not None else None
    if indices is None or values is None:
        return None
    assert torch.equal(indices, torch.arange(len(indices))), "images are missing"
    return metrics.Features(indices, values, logits)


def moments_to_main(processes: Processes, own: metrics.Moments) -> metrics.Moments | None:
    """Combine the moments of all processes on the main one, in their order; None on the others."""
    own.settle()
    if processes.num_processes == 1:
        return own
    counts = gather_object([own.count])
    if not processes.is_main_process:
        for each in (own.mean, *_chunks(own.scatter)):
            dist.send(each.to(processes.device), dst=0)
        return None
    mean, scatter = torch.empty_like(own.mean), torch.empty_like(own.scatter)
    for rank, count in enumerate(counts[1:], 1):
        for each in (mean, *_chunks(scatter)):
            received = torch.empty_like(each, device=processes.device)
            dist.recv(received, src=rank)
            each.copy_(received)
        own.combine(count, mean, scatter)
    return own


class Work:
    """Long work in a thread, so that a signal is heard also during one long call of a library.

    Args:
        work: what to do.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work, self._result, self._failure = work, None, None
        # A command that is stopped meanwhile does not wait for it, see ddpm.cli.app.main.
        self._thread = threading.Thread(target=self._run, daemon=True, name=BUSY)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait at most so long; return True if the work is done."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def result(self) -> Any:
        """Return what the work gave, or raise what it raised."""
        if self._failure is not None:
            raise self._failure
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:
            self._failure = error


def attended(work: Callable[[], T]) -> T:
    """Return the result of long work of this process, which a signal may interrupt at any time."""
    running = Work(work)
    while not running.wait(_SECONDS):
        pass
    return running.result()


def on_main(processes: Processes, work: Callable[[], T], stopping: Stopping = NEVER) -> T:
    """Do long work on the main process, and return its result on every process.

    The processes exchange a word every half second: none waits longer than that for another one, so
    that no time limit of the process group passes.

    Args:
        processes: all of them call this.
        work: called on the main process; its result can be pickled.
        stopping: see :class:`~ddpm.distributed.stopping.Stopping`.

    Raises:
        GivenUpError: on every process, once ``stopping`` says so.
    """
    running = Work(work) if processes.is_main_process else None
    while not _done(processes, running):
        if stopping():
            raise GivenUpError
    result: Any = None if running is None else running.result()
    return broadcast(processes, result)


def _done(processes: Processes, running: Work | None) -> bool:
    """Wait a moment; return True on every process once the work of the main one is done."""
    if running is None:
        time.sleep(_SECONDS)
    done = running is not None and running.wait(_SECONDS)
    if processes.num_processes == 1:
        return done
    votes = processes.reduce(torch.tensor([float(done)], device=processes.device), reduction="sum")
    assert isinstance(votes, Tensor)
    return float(votes) > 0
