"""Interleaved timing, ratios of its rounds, and a check of the machine."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

PAUSE = 0.1  # seconds before each visit, in which data workers of others fill their queues
PROBE = 0.15  # seconds of a probe
QUIET_SHARE = 0.95  # share of the CPU time that a probe gets on an idle machine
SLOW = 0.15  # seconds of 0.6 GFLOP, which a core does in a tenth of it
OTHERS = 0.7  # load of other processes that is accepted


@dataclass(frozen=True)
class Candidate:
    """Work to be timed beside that of others.

    Attributes:
        name: in the table.
        work: called with a number of units, such as training steps.
        units: per visit; two visits make a round.
    """

    name: str
    work: Callable[[int], object]
    units: int


@dataclass(frozen=True)
class Ratio:
    """Median and range of the ratios of rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}..{self.high:.2f}]"


def ratio(base: Sequence[float], other: Sequence[float]) -> Ratio:
    """Return the ratio of ``base`` to ``other``, round by round: the speed-up of ``other``."""
    values = [a / b for a, b in zip(base, other, strict=True)]
    return Ratio(statistics.median(values), min(values), max(values))


def order(names: Sequence[str], number: int) -> list[str]:
    """Return the visits of a round: A B A B, and in each second round B A B A."""
    once = list(names) if number % 2 == 0 else list(reversed(names))
    return once * 2


def cpu_share(work: Callable[[], object], threads: int) -> float:
    """Return the CPU time of this process during a call, relative to wall time x threads."""
    began, used = time.perf_counter(), time.process_time()
    work()
    return (time.process_time() - used) / (time.perf_counter() - began) / threads


@dataclass
class Machine:
    """Check that this process gets the processor, by a matrix product on all threads.

    Attributes:
        shares: CPU time that each probe got, relative to wall time x threads.
    """

    threads: int = field(default_factory=torch.get_num_threads)
    shares: list[float] = field(default_factory=list)

    def probe(self) -> None:
        """Add a share to :attr:`shares`."""
        a = torch.randn(1024, 1024)

        def products() -> None:
            until = time.perf_counter() + PROBE
            while time.perf_counter() < until:
                torch.mm(a, a)

        self.shares.append(cpu_share(products, self.threads))

    def verdict(self) -> str:
        """Return the line below a table: load, shares, and a warning on a busy machine."""
        return verdict(self.shares, os.getloadavg()[0], self.threads)


def verdict(shares: Sequence[float], load: float, threads: int) -> str:
    """Return the line below a table.

    Args:
        shares: of the probes, see :class:`Machine`.
        load: mean number of runnable processes in the last minute, with those of the benchmark.
        threads: of the benchmark.
    """
    share = statistics.median(shares)
    facts = (
        f"load {load:.1f}; between the rounds, matrix products got {share:.0%} "
        f"[{min(shares):.0%}..{max(shares):.0%}] of the CPU time of {threads} threads"
    )
    if share >= QUIET_SHARE and load <= threads + OTHERS:
        return f"Machine: {facts}."
    return f"**The machine was too busy to trust these numbers** ({facts})."


def interleave(
    candidates: Sequence[Candidate], rounds: int, machine: Machine
) -> dict[str, list[float]]:
    """Return the seconds per unit of each candidate, one value per round.

    Each candidate is called once for half a visit, untimed, before the first round.
    """
    by_name = {each.name: each for each in candidates}
    for each in candidates:
        each.work(max(1, each.units // 2))
    result: dict[str, list[float]] = {name: [] for name in by_name}
    for number in range(rounds):
        machine.probe()
        totals = dict.fromkeys(by_name, 0.0)
        for name in order(list(by_name), number):
            time.sleep(PAUSE)
            began = time.perf_counter()
            by_name[name].work(by_name[name].units)
            totals[name] += time.perf_counter() - began
        for name, seconds in totals.items():
            result[name].append(seconds / (2 * by_name[name].units))
    return result


def _best(work: Callable[[], object], repeats: int = 5) -> float:
    """Return the shortest duration of a call in seconds, after one that warms up."""
    work()
    durations = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        durations.append(time.perf_counter() - began)
    return min(durations)


@torch.inference_mode()
def peaks() -> dict[str, float]:
    """Return the highest measured speeds of this machine.

    Returns:
        ``convolution fp32`` and ``bf16`` (3x3, 128 channels, 32x32, batch 16), ``product fp32`` and
        ``bf16`` (matrices of 1024), in GFLOP/s, and ``copy``, in GB/s read and written. A type
        without instructions of the processor is measured on smaller tensors.
    """
    result: dict[str, float] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        is_slow = _best(lambda dtype=dtype: _convolve(2, dtype), 1) > SLOW
        batch, side = (2, 256) if is_slow else (16, 1024)
        seconds = _best(lambda dtype=dtype, batch=batch: _convolve(batch, dtype))
        result[f"convolution {name}"] = 2 * batch * 32**2 * 9 * 128**2 / seconds / 1e9
        a = torch.randn(side, side).to(dtype)
        result[f"product {name}"] = 2 * side**3 / _best(lambda a=a: torch.mm(a, a)) / 1e9
    source = torch.zeros(2**26)  # 256 MiB
    target = torch.ones_like(source)
    result["copy"] = 2 * source.nbytes / _best(lambda: target.copy_(source)) / 1e9
    return result


def _convolve(batch: int, dtype: torch.dtype) -> torch.Tensor:
    x, weight = torch.ones(batch, 128, 32, 32, dtype=dtype), torch.ones(128, 128, 3, 3, dtype=dtype)
    return torch.nn.functional.conv2d(x, weight, padding=1)


def has_fast_bf16(measured: Mapping[str, float]) -> bool:
    """Return True if convolutions in bf16 reach half of the speed of those in float32."""
    return measured["convolution bf16"] > measured["convolution fp32"] / 2


def peak_line(measured: Mapping[str, float]) -> str:
    """Return the measured peaks in one line."""
    speeds = [f"{name} {value:.3g} GFLOP/s" for name, value in measured.items() if name != "copy"]
    return f"Measured peaks: {', '.join(speeds)}, copy {measured['copy']:.0f} GB/s."
