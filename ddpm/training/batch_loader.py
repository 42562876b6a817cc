"""Endless batches whose order and augmentation are functions of the seed alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from multiprocessing.util import Finalize
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ddpm.data import Dataset as Data
from ddpm.errors import ConfigError, require
from ddpm.lifetime import end_with_parent
from ddpm.seeding import RandomStream, mix_array
from ddpm.signals import SIGNALS
from ddpm.training.options import Options, option

Batch = tuple[Tensor, Tensor | None]
Item = tuple[int, int]
# The default of torch, also in spawned processes, whose default would copy the data.
_START_METHOD = "fork" if sys.platform.startswith("linux") else None
_PREFETCH = 2  # batches per worker
_TIMEOUT_SECONDS = 1800.0  # per batch, after which the workers are considered hung


@dataclass(frozen=True, kw_only=True)
class BatchOptions(Options):
    """Options of the batches.

    Attributes:
        batch_size: samples per optimizer step, over all processes and micro-batches; None = 128, on
            a CPU 16.
        accumulate: gradient accumulation steps; more of them use less memory. ``auto`` is the
            smallest number that fits into the memory of the GPU; see
            :mod:`ddpm.training.accumulation`.
        num_workers: processes that load data ahead; None = 0 for data that are in memory, or in the
            disk cache when training starts, else 2. The batches do not depend on it.
    """

    batch_size: int | None = option(None, legacy=128)
    accumulate: int | Literal["auto"] = 1
    num_workers: int | None = option(None, free=True)

    def _validate(self) -> None:
        good = self.batch_size is None or self.batch_size >= 1
        require(good, "batch_size", self.batch_size, "must be at least 1")
        good = self.accumulate == "auto" or self.accumulate >= 1
        require(good, "accumulate", self.accumulate, "must be auto, or at least 1")
        good = self.num_workers is None or self.num_workers >= 0
        problem = "must be at least 0; null = chosen for the data"
        require(good, "num_workers", self.num_workers, problem)

    @property
    def first_accumulate(self) -> int:
        """Gradient accumulation steps of a trainer before a trial chooses them."""
        return 1 if self.accumulate == "auto" else self.accumulate


class ShuffledIndex:
    """Order of the samples in the endless stream of training data.

    Position k is in epoch ``k // n``; each epoch is a permutation of the n samples, a function of
    (seed, epoch). Batches cross the ends of epochs, so that all have the same size, even if the
    data set is smaller than a batch.

    Args:
        num_samples: n.
        seed: seed of the order and of the augmentation keys.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples, self.seed = num_samples, seed
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def items(self, start: int, count: int) -> list[Item]:
        """Return (index, augmentation key) of positions ``start`` to ``start + count - 1``."""
        items: list[Item] = []
        while len(items) < count:
            epoch, offset = divmod(start + len(items), self.num_samples)
            indices = self._permutation_of(epoch)[offset : offset + count - len(items)]
            keys = mix_array(self.seed, RandomStream.AUGMENTATION, epoch, indices)
            items.extend(zip(indices.tolist(), keys.tolist(), strict=True))
        return items

    def _permutation_of(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch != self._epoch:
            ranks = mix_array(
                self.seed, RandomStream.DATA_ORDER, epoch, np.arange(self.num_samples)
            )
            self._epoch, self._permutation = epoch, np.argsort(ranks, kind="stable")
        return self._permutation


class BatchLoader:
    """Loader of the micro-batches of one process, from any position of the stream of samples.

    The batch of an optimizer step is split into ``accumulate`` micro-batches, and each of these
    into ``world`` shards, so that the order of the data is the same for any number of processes.

    Args:
        data: the data set.
        seed: seed of the order and of the augmentation.
        batch_size: samples per optimizer step, over all processes and micro-batches.
        accumulate: gradient accumulation steps.
        rank: index of this process.
        world: number of processes; ``accumulate * world`` divides ``batch_size``.
        num_workers: worker processes that load data ahead; None = 0 for decoded data, else 2.
        pin_memory: load batches into page-locked memory, for copies to a GPU.
    """

    def __init__(
        self,
        data: Data,
        *,
        seed: int,
        batch_size: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        num_workers: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        self.data, self.order = data, ShuffledIndex(len(data), seed)
        self.batch_size, self.accumulate = batch_size, accumulate
        self.rank, self.world = rank, world
        self.num_workers = (0 if data.is_decoded() else 2) if num_workers is None else num_workers
        self.pin_memory = pin_memory
        # A position, its micro-batch, which has been loaded, and the following ones.
        self._started: tuple[int, Batch, Iterator[Batch]] | None = None

    def batches(self, samples: int) -> Iterator[Batch]:
        """Return the endless micro-batches (raw data, labels or None) from position ``samples`` on.

        Raises:
            ConfigError: data cannot be read.
            RuntimeError: see :meth:`worker_error`.
        """
        started, self._started = self._started, None
        if started is not None and started[0] == samples:
            return chain([started[1]], started[2])
        return self._load(samples)

    def _load(self, samples: int) -> Iterator[Batch]:
        receive = _Receiver(self.pin_memory)
        for fetched in self._fetched(samples):
            if isinstance(fetched, ConfigError):
                raise fetched.under("data")
            yield receive(fetched)

    def _fetched(self, samples: int) -> Iterator[Batch | _SharedBatch | ConfigError]:
        batches = _MicroBatchSampler(self, samples)
        if not self.num_workers:
            fetcher = _BatchFetcher(self.data, None)
            return map(fetcher.__getitems__, batches)
        Finalize(None, kill_workers, exitpriority=1)
        loader: DataLoader[Any] = DataLoader(
            _BatchFetcher(self.data, _SharedBuffers()),
            batch_sampler=batches,
            timeout=_TIMEOUT_SECONDS,
            num_workers=self.num_workers,
            prefetch_factor=_PREFETCH,
            multiprocessing_context=_START_METHOD,
            worker_init_fn=partial(_init_worker, os.getpid()),
            collate_fn=_unchanged,
            # A loader draws a seed when it starts, which must not come from the global generator.
            generator=torch.Generator(),
        )
        return iter(loader)

    def first(self, samples: int) -> Batch:
        """Return the first micro-batch from position ``samples`` on.

        It is loaded as in training. :meth:`batches` continues with the same workers.

        Raises:
            ConfigError: data cannot be read, or a worker died or hangs.
        """
        if not self.num_workers:
            return next(self._load(samples))
        if self._started is None or self._started[0] != samples:
            following = self._load(samples)
            try:
                self._started = samples, next(following), following
            except RuntimeError as error:
                raise self.worker_error(error) or error from error
        return self._started[1]

    def repeated(self, samples: int, count: int) -> Batch:
        """Return the item at position ``samples``, ``count`` times; this process reads it.

        Raises:
            ConfigError: data cannot be read.
        """
        ((index, key),) = self.order.items(samples, 1)
        try:
            raw, labels = self.data.fetch([index], [key])
        except ConfigError as error:
            raise error.under("data") from error
        return raw.expand(count, *raw.shape[1:]), None if labels is None else labels.expand(count)

    def divide(self, accumulate: int) -> None:
        """Set the gradient accumulation steps of the batches that are loaded from now on."""
        self.accumulate, self._started = accumulate, None

    @property
    def micro_batch_size(self) -> int:
        """Samples per micro-batch of a process."""
        return self.batch_size // (self.accumulate * self.world)

    def worker_error(self, error: RuntimeError) -> ConfigError | None:
        """Return the user's error for an error of torch about a dead worker; None for other errors.

        Torch raises it from a signal handler, at any place in the main process.
        """
        if "DataLoader" not in str(error):
            return None
        what = str(error).partition(". ")[0].rstrip(".")
        problem = (
            f"a data worker died or hangs (out of memory?): {what}; run the same command again, "
            "with fewer workers if needed"
        )
        return ConfigError("trainer.num_workers", self.num_workers, problem)

    def plan(self, samples: int) -> list[list[Item]]:
        """Return the micro-batches of this process in the batch from position ``samples`` on."""
        items = self.order.items(samples, self.batch_size)
        size = self.micro_batch_size
        starts = ((micro * self.world + self.rank) * size for micro in range(self.accumulate))
        return [items[start : start + size] for start in starts]


class _MicroBatchSampler(Sampler[list[Item]]):
    def __init__(self, loader: BatchLoader, samples: int) -> None:
        self.loader, self.samples = loader, samples

    def __iter__(self) -> Iterator[list[Item]]:
        samples = self.samples
        while True:
            yield from self.loader.plan(samples)
            samples += self.loader.batch_size


@dataclass(frozen=True)
class _SharedBatch:
    """A batch in the shared memory of a worker.

    The first batch in a buffer brings the buffer along. Later ones only name it: sending a tensor
    maps new memory and takes several messages between the processes, which wait for the decoder.
    """

    worker: int
    slot: int
    buffer: Tensor | None
    labels: npt.NDArray[np.int64] | None


class _SharedBuffers:
    """Buffers in shared memory that a worker fills in turn.

    The main process asks a worker for a further batch when it has received one, and copies that one
    before it asks again, so that one more buffer than prefetched batches suffices.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor | None] = [None] * (_PREFETCH + 1)
        self._next = 0

    def share(self, raw: Tensor, labels: Tensor | None) -> _SharedBatch:
        """Copy a batch into the next buffer."""
        slot, self._next = self._next, (self._next + 1) % len(self._buffers)
        buffer, sent = self._buffers[slot], None
        if buffer is None or buffer.shape != raw.shape or buffer.dtype != raw.dtype:
            buffer = self._buffers[slot] = sent = torch.empty_like(raw).share_memory_()
        buffer.copy_(raw)
        info = get_worker_info()
        assert info is not None
        return _SharedBatch(info.id, slot, sent, None if labels is None else labels.numpy())


class _Receiver:
    """Copies batches of workers, and moves batches into page-locked memory for a GPU."""

    def __init__(self, pin_memory: bool) -> None:
        self._pin_memory = pin_memory
        self._buffers: dict[tuple[int, int], Tensor] = {}

    def __call__(self, fetched: Batch | _SharedBatch) -> Batch:
        if isinstance(fetched, _SharedBatch):
            place = fetched.worker, fetched.slot
            if fetched.buffer is not None:
                self._buffers[place] = fetched.buffer
            raw = self._buffers[place]
            labels = None if fetched.labels is None else torch.from_numpy(fetched.labels)
        else:
            raw, labels = fetched
        if self._pin_memory:
            return raw.pin_memory(), None if labels is None else labels.pin_memory()
        return (raw.clone() if isinstance(fetched, _SharedBatch) else raw), labels


class _BatchFetcher(Dataset[Any]):
    """Fetches a whole micro-batch with one call of the data set.

    A ConfigError is returned as a value: torch would wrap one that is raised in a worker.
    """

    def __init__(self, data: Data, buffers: _SharedBuffers | None) -> None:
        self.data, self.buffers = data, buffers

    def __getitems__(self, items: list[Item]) -> Batch | _SharedBatch | ConfigError:
        try:
            batch = self.data.fetch([index for index, _ in items], [key for _, key in items])
        except ConfigError as error:
            return error
        return batch if self.buffers is None else self.buffers.share(*batch)


def _unchanged(batch: Any) -> Any:
    return batch


def _init_worker(trainer: int, _: int) -> None:
    """Ignore signals in a worker: a scheduler signals it too, and training needs it."""
    end_with_parent(trainer)
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)


def kill_workers() -> None:
    """Kill the workers when this process exits: a hung one ignores SIGTERM."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the handler of torch raises when one ends
    for worker in multiprocessing.active_children():
        if worker.daemon:
            worker.kill()
