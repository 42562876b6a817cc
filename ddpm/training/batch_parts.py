"""Data parallelism in the threads of a process, for networks on a CPU.

Threads that share each operation wait for one another hundreds of times per step, and small
operations use one thread only. Threads that compute the whole network, each on a part of the batch,
wait twice per step: at the end of the forward and of the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from threading import Barrier
from typing import Any, Literal, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.dropout import _DropoutNd

from ddpm.diffusion.denoiser import Network
from ddpm.errors import require

T = TypeVar("T")
_MIN_SAMPLES = 8  # per part; with 2 nothing was gained, see BENCHMARKS.md
_MAX_PARTS = 4  # Python itself runs one thread at a time
Gradients = Sequence[Tensor | None]


def in_parts(network: Network, weights: Iterable[nn.Parameter], count: int) -> Network:
    """Return the network, computed on ``count`` parts of the batch at the same time.

    The threads of the process are divided among the parts. Gradients of the parts are added in the
    order of the samples, so that they are the same bits each time. Inputs receive no gradient.

    Args:
        network: called as ``network(x, t, **conditioning)`` on a CPU, in several threads; computes
            each sample independently of the others, without random numbers.
        weights: its parameters.
        count: number of parts; smaller batches have one per sample.
    """
    if count == 1:
        return network
    trained = [each for each in weights if each.requires_grad]

    def forward(x: Tensor, t: Tensor, **conditioning: Tensor | None) -> Tensor:
        calls = [_call(network, *part) for part in _divided(x, t, conditioning, count)]
        if torch.is_grad_enabled():
            output = _Parts.apply(calls, *trained)
            assert isinstance(output, Tensor)
            return output
        return torch.cat(_at_once([torch.no_grad()(call) for call in calls]))

    return forward


def typed(parts: int | Literal["auto"], network: nn.Module, accelerator: Accelerator) -> int:
    """Return the number of parts for ``trainer.batch_parts``; for ``auto``, the one to begin with.

    It is 1 on a GPU and with several processes.

    Raises:
        ConfigError: (key ``batch_parts``) a network that threads cannot share.
    """
    if parts in ("auto", 1) or not _is_alone_on_a_cpu(accelerator):
        return 1
    problem = "requires a network without dropout whose class sets thread_safe = True"
    remedy = "use trainer.batch_parts=auto"
    require(_is_thread_safe(network), "batch_parts", parts, f"{problem}; {remedy}")
    return int(parts)


def automatic(network: nn.Module, samples: int, accelerator: Accelerator) -> int:
    """Return the number of parts for micro-batches of ``samples`` and the threads of this process.

    It is a divisor of the threads, and 1 for networks that threads cannot share.
    """
    if not _is_thread_safe(network) or not _is_alone_on_a_cpu(accelerator):
        return 1
    threads, most = torch.get_num_threads(), min(samples // _MIN_SAMPLES, _MAX_PARTS)
    return max((n for n in range(2, most + 1) if threads % n == 0), default=1)


def _is_alone_on_a_cpu(accelerator: Accelerator) -> bool:
    return accelerator.device.type == "cpu" and accelerator.num_processes == 1


def _is_thread_safe(network: nn.Module) -> bool:
    """Return True if a network says so and has no dropout, which would depend on the threads."""
    drops = any(isinstance(each, _DropoutNd) and each.p > 0 for each in network.modules())
    return getattr(network, "thread_safe", False) and not drops


class _Parts(torch.autograd.Function):
    """Passes of a network through the parts of a batch."""

    @staticmethod
    def forward(ctx: Any, calls: Sequence[Callable[[], Tensor]], *weights: nn.Parameter) -> Tensor:
        ctx.weights, ctx.outputs = weights, _at_once(calls)  # with their graphs
        return torch.cat([output.detach() for output in ctx.outputs])

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        def part(output: Tensor, gradient: Tensor) -> Callable[[], Gradients]:
            def gradients() -> Gradients:  # of a number: else torch would import sympy
                number = (output * gradient).sum()
                return torch.autograd.grad(number, ctx.weights, allow_unused=True)

            return gradients

        outputs, ctx.outputs = ctx.outputs, None
        parts = zip(outputs, gradient.split([len(each) for each in outputs]), strict=True)
        first, *others = _at_once([part(*each) for each in parts])
        for other in others:
            first = _sum(first, other)
        return None, *first


def _divided(
    x: Tensor, t: Tensor, conditioning: Mapping[str, Tensor | None], count: int
) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor | None]]]:
    """Yield the inputs of the parts of a batch."""
    size = -(-len(x) // count)
    for first in range(0, len(x), size):
        part = slice(first, first + size)
        more = {name: None if each is None else each[part] for name, each in conditioning.items()}
        yield x[part], t[part], more


def _call(
    network: Network, x: Tensor, t: Tensor, conditioning: Mapping[str, Tensor | None]
) -> Callable[[], Tensor]:
    """Return the call of a network for any thread, with the autocast of this one."""
    enabled, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def call() -> Tensor:
        with torch.autocast("cpu", dtype, enabled=enabled):
            return network(x, t, **conditioning)

    return call


def _at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Return the results of functions, each called in a thread of its own, at the same time."""
    threads = torch.get_num_threads()
    share = max(threads // len(calls), 1)
    pool = _pool(len(calls), share)
    torch.set_num_threads(share)  # some operations read the number of the process, not the thread
    try:
        futures = [pool.submit(call) for call in calls]
        wait(futures)  # all of them, also if one fails
        return [future.result() for future in futures]
    finally:
        torch.set_num_threads(threads)


@cache
def _pool(count: int, threads: int) -> ThreadPoolExecutor:
    """Return ``count`` threads that have started, whose operations use ``threads`` threads each."""
    pool = ThreadPoolExecutor(count, "batch-part", torch.set_num_threads, (threads,))
    barrier = Barrier(count)
    wait([pool.submit(barrier.wait) for _ in range(count)])
    return pool


def _sum(first: Gradients, second: Gradients) -> list[Tensor | None]:
    """Return the sum of two gradients, in which None is zero.

    Not in place: gradients may share memory.
    """
    pairs = list(zip(first, second, strict=True))
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    sums = iter(torch._foreach_add([a for a, _ in both], [b for _, b in both]) if both else ())
    return [b if a is None else a if b is None else next(sums) for a, b in pairs]
