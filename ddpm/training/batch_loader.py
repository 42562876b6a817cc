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
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ddpm.data import Dataset as Data
from ddpm.errors import ConfigError, require
from ddpm.lifetime import end_with_parent
from ddpm.seeding import RandomStream, mix_array
from ddpm.signals import SIGNALS
from ddpm.training.options import Options, option

Batch = tuple[Tensor, Tensor | None]
Item = tuple[int, int]
# As torch does by itself, but for processes that were spawned: those would copy the data.
_START_METHOD = "fork" if sys.platform.startswith("linux") else None
_PATIENCE_SECONDS = 1800.0  # with a batch, before the processes that read are given up


@dataclass(frozen=True, kw_only=True)
class BatchOptions(Options):
    """Options of the batches.

    Attributes:
        batch_size: samples per optimizer step, over all processes and micro-batches; None = 128, on
            a CPU 16.
        accumulate: gradient accumulation steps; more of them use less memory.
        num_workers: processes that load data ahead; None = 0 for data in memory, else 2.
    """

    batch_size: int | None = option(None, legacy=128)
    accumulate: int = 1
    num_workers: int | None = option(None, free=True)

    def _validate(self) -> None:
        good = self.batch_size is None or self.batch_size >= 1
        require(good, "batch_size", self.batch_size, "must be at least 1")
        require(self.accumulate >= 1, "accumulate", self.accumulate, "must be at least 1")
        good = self.num_workers is None or self.num_workers >= 0
        problem = "must be at least 0; null = what suits the data"
        require(good, "num_workers", self.num_workers, problem)


class ShuffledIndex:
    """Which sample stands at which position of the endless stream.

    Position k lies in epoch ``k // n``; each epoch is a permutation of the n samples, a function
    of (seed, epoch). Batches cross the ends of epochs, so that all have the same size, also where
    the data are fewer than the batch.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples, self.seed = num_samples, seed
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def items(self, start: int, count: int) -> list[Item]:
        """(index, augmentation key) of positions ``start`` to ``start + count - 1``."""
        found: list[Item] = []
        while len(found) < count:
            epoch, offset = divmod(start + len(found), self.num_samples)
            indices = self._of_epoch(epoch)[offset : offset + count - len(found)]
            keys = mix_array(self.seed, RandomStream.AUGMENTATION, epoch, indices)
            found.extend(zip(indices.tolist(), keys.tolist(), strict=True))
        return found

    def _of_epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch != self._epoch:
            ranks = mix_array(
                self.seed, RandomStream.DATA_ORDER, epoch, np.arange(self.num_samples)
            )
            self._epoch, self._permutation = epoch, np.argsort(ranks, kind="stable")
        return self._permutation


class BatchLoader:
    """Micro-batches of one process, from any position of the stream of samples on.

    The batch of an optimizer step is cut into ``accumulate`` micro-batches, each of them into
    ``world`` shares; so the order of the data is the same for any number of processes.

    Args:
        data: where to fetch from.
        seed: of the order and the augmentation.
        batch_size: samples of one optimizer step, over all processes and micro-batches.
        accumulate: micro-batches an optimizer step.
        rank: of this process.
        world: number of processes; ``accumulate * world`` divides ``batch_size``.
        num_workers: processes that fetch ahead; None = none for data in memory, else 2.
        pin_memory: whether batches go to page-locked memory, for copies to a GPU.
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
        self.num_workers = (0 if data.in_memory else 2) if num_workers is None else num_workers
        self.pin_memory = pin_memory
        # A position, its micro-batch that has been read, and those after it.
        self._begun: tuple[int, Batch, Iterator[Batch]] | None = None

    def batches(self, samples: int) -> Iterator[Batch]:
        """Micro-batches (raw data, labels or None) from position ``samples`` on, for ever.

        Raises:
            ConfigError: data that cannot be read.
            RuntimeError: see :meth:`worker_error`.
        """
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] == samples:
            return chain([begun[1]], begun[2])
        return self._loaded(samples)

    def _loaded(self, samples: int) -> Iterator[Batch]:
        if self.num_workers:
            Finalize(None, end_readers, exitpriority=1)
        loader: DataLoader[Any] = DataLoader(
            _Fetch(self.data),
            batch_sampler=_Plan(self, samples),
            timeout=_PATIENCE_SECONDS if self.num_workers else 0,
            num_workers=self.num_workers,
            multiprocessing_context=_START_METHOD if self.num_workers else None,
            worker_init_fn=partial(_begin_reading, os.getpid()),
            collate_fn=_unchanged,
            pin_memory=self.pin_memory,
            # A loader draws a seed when it starts: not from the generator that training uses.
            generator=torch.Generator(),
        )
        for fetched in loader:
            if isinstance(fetched, ConfigError):
                raise fetched.under("data")
            yield fetched

    def first(self, samples: int) -> Batch:
        """Return the first micro-batch from position ``samples`` on.

        It is read as in training. Processes that read are started once, for :meth:`batches` too.

        Raises:
            ConfigError: data that cannot be read; a process that reads died or hangs.
        """
        if not self.num_workers:
            return next(self._loaded(samples))
        if self._begun is None or self._begun[0] != samples:
            following = self._loaded(samples)
            try:
                self._begun = samples, next(following), following
            except RuntimeError as error:
                raise self.worker_error(error) or error from error
        return self._begun[1]

    def worker_error(self, error: RuntimeError) -> ConfigError | None:
        """The mistake that torch tells of where a process that reads died; None for any other.

        Torch raises it in the middle of whatever the main process does.
        """
        if "DataLoader" not in str(error):
            return None
        what = str(error).partition(". ")[0].rstrip(".")
        problem = (
            f"a process that reads the data died or hangs (out of memory?): {what}; run the same "
            "command again, with fewer if need be"
        )
        return ConfigError("trainer.num_workers", self.num_workers, problem)

    def plan(self, samples: int) -> list[list[Item]]:
        """The micro-batches of this process in the batch that begins at position ``samples``."""
        items = self.order.items(samples, self.batch_size)
        size = self.batch_size // (self.accumulate * self.world)
        starts = ((micro * self.world + self.rank) * size for micro in range(self.accumulate))
        return [items[start : start + size] for start in starts]


class _Plan(Sampler[list[Item]]):
    def __init__(self, loader: BatchLoader, samples: int) -> None:
        self.loader, self.samples = loader, samples

    def __iter__(self) -> Iterator[list[Item]]:
        samples = self.samples
        while True:
            yield from self.loader.plan(samples)
            samples += self.loader.batch_size


class _Fetch(Dataset[Any]):
    """Hands a whole micro-batch to the data at once.

    A user's mistake comes back as a value: raised in a worker it would lose its one line.
    """

    def __init__(self, data: Data) -> None:
        self.data = data

    def __getitems__(self, items: list[Item]) -> Batch | ConfigError:
        try:
            return self.data.fetch([index for index, _ in items], [key for _, key in items])
        except ConfigError as error:
            return error


def _unchanged(batch: Any) -> Any:
    return batch


def _begin_reading(trainer: int, _: int) -> None:
    """In a process that reads: schedulers signal all processes, and the trainer needs this one."""
    end_with_parent(trainer)
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)


def end_readers() -> None:
    """Kill the processes that read, at the end of this one: one that hangs hears no SIGTERM."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's raises when one of them ends
    for reader in multiprocessing.active_children():
        if reader.daemon:
            reader.kill()
