"""CUDA graphs of network calls: one launch per call instead of one per kernel.

They have not run on a GPU yet; ``scripts/gpu_check.py`` compares them with plain calls there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ddpm.distributed.trials import first_line, set_calls
from ddpm.memory import is_out_of_memory

MAX_GRAPHS = 4
"""Kinds of calls that are recorded. The memory of one call is reserved for all of them together."""
_WARM_UPS = 3  # cuDNN measures its kernels, and libraries allocate their workspaces


class GraphCalls:
    """Calls a network without gradients by CUDA graphs, one per kind of arguments.

    A graph is recorded at the second call with tensors of the same shapes, types and casts. It
    reads the weights where they are then: their values may change, their memory may not. Other
    calls are plain: those with gradients, with arguments that are not tensors of one device, and
    new kinds after a graph that could not be recorded. If memory runs out, the graphs are freed.

    Attributes:
        error: message of the error that ended the recording; None if there was none.

    Args:
        network: with one output (B, C, *spatial); its forward reads no value on the host.
    """

    def __init__(self, network: nn.Module) -> None:
        self.error: str | None = None
        self._call: Callable[..., Tensor] = network._call_impl  # pyright: ignore
        self._seen: set[tuple[Any, ...]] = set()
        self._graphs: dict[tuple[Any, ...], _Graph] = {}
        self._pool: Any = None

    @property
    def count(self) -> int:
        """Number of graphs."""
        return len(self._graphs)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output of the network."""
        values = {**dict(enumerate(args)), **kwargs}
        try:
            graph = self._graph(values)
            return self._call(*args, **kwargs) if graph is None else graph(values)
        except Exception as error:
            if not self._graphs or not is_out_of_memory(error):
                raise
            self._free(error)
        return self._call(*args, **kwargs)

    def _graph(self, values: dict[Any, Any]) -> _Graph | None:
        """Return the graph of a kind of arguments, recorded if necessary; None for a plain call."""
        tensors = all(isinstance(value, Tensor) for value in values.values())
        devices = {value.device for value in values.values()} if tensors else ()
        if torch.is_grad_enabled() or len(devices) != 1:
            return None
        (device,) = devices
        casts = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        kinds = ((k, v.shape, v.stride(), v.dtype) for k, v in values.items())
        kind = (*casts, torch.is_inference_mode_enabled(), device, *kinds)
        is_second = kind in self._seen and kind not in self._graphs
        self._seen.add(kind)
        if is_second and self.error is None and self.count < MAX_GRAPHS:
            try:
                self._pool = _pool() if self._pool is None else self._pool
                self._graphs[kind] = _Graph(self._call, values, device, casts, self._pool)
            except Exception as error:  # of any kind: an operation that a graph cannot contain
                self._free(error)
        return self._graphs.get(kind)

    def _free(self, error: Exception) -> None:
        """Free the graphs and their memory after an error, of which only the message is kept."""
        self.error = first_line(error)
        self._graphs.clear()
        self._pool = None
        error.__traceback__ = error.__context__ = error.__cause__ = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class _Graph:
    """A recorded call.

    Its tensors stay where they are: arguments are copied into them, and the output out of them.
    """

    def __init__(
        self,
        call: Callable[..., Tensor],
        values: dict[Any, Tensor],
        device: torch.device,
        casts: tuple[bool, torch.dtype],
        pool: Any,
    ) -> None:
        self._inputs = {name: value.clone() for name, value in values.items()}
        args = [self._inputs[name] for name in values if isinstance(name, int)]
        kwargs = {name: self._inputs[name] for name in values if isinstance(name, str)}

        def run() -> Tensor:
            # Casts of the weights that the context keeps would be freed at its end.
            with torch.autocast(device.type, casts[1], enabled=casts[0], cache_enabled=False):
                return call(*args, **kwargs)

        self._output, self._replay = _record(run, device, pool)

    def __call__(self, values: dict[Any, Tensor]) -> Tensor:
        for name, value in values.items():
            self._inputs[name].copy_(value)
        self._replay()
        return self._output.clone()


def _pool() -> Any:
    """Return the handle of memory that graphs share, since only one of them runs at a time."""
    return torch.cuda.graph_pool_handle()


def _record(
    run: Callable[[], Tensor], device: torch.device, pool: Any
) -> tuple[Tensor, Callable[[], None]]:
    """Record the kernels of a function; return its output, and a function that fills it again."""
    with torch.cuda.device(device):
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        graph = torch.cuda.CUDAGraph()
        try:
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    run()
            current.wait_stream(side)
            # Other threads may use the GPU meanwhile.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                output = run()
        finally:
            torch.cuda.set_stream(current)  # torch.cuda.graph does not if it fails
    return output, graph.replay


def use_graphs(network: nn.Module) -> GraphCalls:
    """Call a network by CUDA graphs from now on, in place of ``network.compile()``."""
    calls = GraphCalls(network)
    set_calls(network, calls)
    return calls
