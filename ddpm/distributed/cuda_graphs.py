"""CUDA graphs of network calls: one launch per call instead of one per kernel.

They have not run on a GPU yet; ``scripts/gpu_check.py`` compares them with plain calls there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[..., Tensor]
MAX_GRAPHS = 4
"""Shapes that are recorded; each keeps the memory of a call."""
_WARM_UPS = 3  # cuDNN measures its kernels, and libraries allocate their workspaces


class GraphCalls:
    """Calls a network without gradients by CUDA graphs, one per kind of arguments.

    A graph is recorded at the first call with tensors of new shapes, types or casts, and reads the
    weights where they are then: their values may change, and a network that moves to other memory
    is recorded again. Calls with gradients, with other arguments than tensors, and those of a kind
    that could not be recorded, are plain.

    Attributes:
        error: of the last graph that could not be recorded; None if all could.

    Args:
        network: with one output (B, C, *spatial); its forward reads no value on the host.
    """

    def __init__(self, network: nn.Module) -> None:
        self.error: Exception | None = None
        self._call: Call = network._call_impl  # pyright: ignore
        self._weights = list(network.parameters())[:1]  # the others move with it
        self._graphs: dict[tuple[Any, ...], _Graph | None] = {}
        self._pool: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output of the network."""
        values = {**dict(enumerate(args)), **kwargs}
        if torch.is_grad_enabled() or not all(isinstance(v, Tensor) for v in values.values()):
            return self._call(*args, **kwargs)
        device = args[0].device
        casts = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        kinds = ((k, v.shape, v.stride(), v.dtype, v.device) for k, v in values.items())
        places = (weight.data_ptr() for weight in self._weights)  # kept by the graphs of a place
        kind = (*casts, torch.is_inference_mode_enabled(), *places, *kinds)
        if kind not in self._graphs and len(self._graphs) < MAX_GRAPHS:
            self._graphs[kind] = self._recorded(values, *casts)
        graph = self._graphs.get(kind)
        return self._call(*args, **kwargs) if graph is None else graph(values)

    def _recorded(self, values: Any, cast: bool, dtype: torch.dtype) -> _Graph | None:
        """Return the graph of a call, or None if it fails, for lack of memory for example."""
        try:
            if self._pool is None:
                self._pool = _pool()
            graph = _Graph(self._call, values, cast, dtype, self._pool)
            graph.weights = [weight.detach() for weight in self._weights]
            return graph
        except Exception as error:  # of any kind: an operation that a graph cannot contain
            self.error = error
            return None


class _Graph:
    """A recorded call.

    Its tensors stay where they are: arguments are copied into them, and the output out of them.

    Attributes:
        weights: whose memory is not to be used for others while the graph exists.
    """

    weights: list[Tensor]

    def __init__(
        self, call: Call, values: dict[Any, Tensor], cast: bool, dtype: torch.dtype, pool: Any
    ) -> None:
        self._inputs = {name: value.clone() for name, value in values.items()}
        args = [self._inputs[name] for name in values if isinstance(name, int)]
        kwargs = {name: self._inputs[name] for name in values if isinstance(name, str)}
        device = args[0].device

        def run() -> Tensor:
            # Casts of the weights that the context keeps would be freed at its end.
            with torch.autocast(device.type, dtype, enabled=cast, cache_enabled=False):
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
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        # Other threads may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            output = run()
    return output, graph.replay


def use_graphs(network: nn.Module) -> GraphCalls:
    """Call a network by CUDA graphs from now on, in place of ``network.compile()``."""
    calls = GraphCalls(network)
    network._compiled_call_impl = calls  # pyright: ignore
    return calls
