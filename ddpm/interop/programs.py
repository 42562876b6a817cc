"""Programs for sampling without this package: torch.export and ONNX.

A program maps x_t and the timestep to the prediction of x0. The parametrization is included: the
scale of the network's input, its time and the inverse of its target.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ddpm.diffusion import Denoiser, GaussianDiffusion
from ddpm.errors import ConfigError, require
from ddpm.memory import is_out_of_memory

TORCH_EXPORT, ONNX = "torch-export", "onnx"
SUFFIXES = {TORCH_EXPORT: ".pt2", ONNX: ".onnx"}
"""Formats of programs, with the suffixes of their files."""
INFO = "sampling.json"
"""Name of the description of a program in its file, see :func:`ddpm.model_export.export_files`."""

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_MAX_ONNX_BYTES = 2**31 - 2**24  # of a protobuf file, less the graph
_CLOSE = 1e-3  # largest accepted distance to the network's predictions, relative to the largest
_Outputs = dict[str, Tensor]


class SamplingProgram(nn.Module):
    """Network of a process as a module from x_t and timesteps to x0, with all parametrization.

    Args:
        network: in evaluation mode; its parameters will not require gradients.
        process: its process.
        shape: of a sample, (C, *spatial).
        num_classes: number of classes, without the one that stands for "no class"; None for a
            network without labels.
    """

    alphas: Tensor
    sigmas: Tensor

    def __init__(
        self,
        network: nn.Module,
        process: GaussianDiffusion,
        shape: Sequence[int],
        num_classes: int | None,
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.process, self.shape, self.num_classes = process, tuple(shape), num_classes
        alpha_bar = process.schedule.alpha_bar
        self.register_buffer("alphas", alpha_bar.sqrt().float())
        self.register_buffer("sigmas", (1 - alpha_bar).sqrt().float())

    def forward(
        self, x_t: Tensor, t: Tensor, y: Tensor | None = None, x_self_cond: Tensor | None = None
    ) -> _Outputs:
        """Return ``x0``, unclipped, and ``variance_output`` if the variance is learned.

        Args:
            x_t: (B, C, *spatial), float32.
            t: timesteps (B,) int64, 0 to T-1.
            y: class numbers (B,) int64, of a network with labels.
            x_self_cond: earlier prediction of x0, (B, C, *spatial), for self-conditioned networks.

        Returns:
            Tensors (B, C, *spatial) by name.
        """
        denoiser = _TableDenoiser(self.network, self.process, self.alphas, self.sigmas)
        prediction = denoiser(x_t, t, x_self_cond, None if y is None else {"y": y})
        outputs = {"x0": prediction.x0, "variance_output": prediction.variance_output}
        return {name: value for name, value in outputs.items() if value is not None}

    def examples(self, size: int) -> dict[str, Tensor]:
        """Return inputs for a batch of ``size``, at different timesteps, by name."""
        generator, last = torch.Generator().manual_seed(size), self.process.num_steps - 1
        x = torch.randn(2, size, *self.shape, generator=generator)
        t = torch.linspace(last / 4, last / 2, size).long()
        inputs = {"x_t": x[0], "t": t}
        if self.num_classes is not None:
            inputs["y"] = torch.arange(size) % self.num_classes
        if self.process.self_condition:
            inputs["x_self_cond"] = x[1]
        return inputs


class _TableDenoiser(Denoiser):
    """Denoiser of whole times only, with coefficients from tables (T,) in float32."""

    def __init__(
        self, network: nn.Module, process: GaussianDiffusion, alphas: Tensor, sigmas: Tensor
    ) -> None:
        super().__init__(network, process)
        self._tables = alphas, sigmas

    def scales(self, t: Tensor | float, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma at timesteps (B,)."""
        assert isinstance(t, Tensor)
        shape = (-1,) if like is None else (-1, *[1] * (like.ndim - 1))
        alphas, sigmas = (table.index_select(0, t).reshape(shape) for table in self._tables)
        return alphas, sigmas


@dataclass(frozen=True)
class Program:
    """A file of a program.

    Attributes:
        content: of the file.
        inputs: names of the inputs, in their order.
        outputs: names of the outputs, in their order.
    """

    content: bytes
    inputs: list[str]
    outputs: list[str]


def export_program(
    format: str,
    module: SamplingProgram,
    describe: Callable[[Sequence[str], Sequence[str]], str],
) -> Program:
    """Return the file of a program, after comparing its outputs with those of the module.

    Args:
        format: one of :data:`SUFFIXES`.
        module: on the CPU.
        describe: returns the text to store as :data:`INFO`, for the names of inputs and outputs.

    Raises:
        ConfigError: a process with a conditioning mask, a missing package, a network that cannot be
            exported, or one whose program has other outputs.
    """
    problem = (
        "does not support data with a condition (data.condition), which must be restored after "
        "every step; use format=safetensors"
    )
    require(not module.process.conditioning_mask, "format", format, problem)
    if format == ONNX:
        _check_onnx(module)
    program = _traced(format, module)
    inputs, outputs = list(module.examples(1)), _names(module)
    info = describe(inputs, outputs)
    if format == TORCH_EXPORT:
        run = program.module()
        _check_outputs(format, module, lambda values: _call(run, values))
        file = io.BytesIO()
        torch.export.save(program, file, extra_files={INFO: info})
        return Program(file.getvalue(), inputs, outputs)
    content = _onnx_file(program, inputs, outputs, info)
    _check_outputs(format, module, _onnx_runner(content))
    return Program(content, inputs, outputs)


def _call(module: nn.Module, inputs: Mapping[str, Tensor]) -> _Outputs:
    """Call a module with x_t and t, and with the other inputs by name."""
    others = {name: value for name, value in inputs.items() if name not in ("x_t", "t")}
    with torch.no_grad():
        return module(inputs["x_t"], inputs["t"], **others)


def _names(module: SamplingProgram) -> list[str]:
    """Return the names of the outputs."""
    return ["x0", "variance_output"] if module.process.learns_variance else ["x0"]


def _traced(format: str, module: SamplingProgram) -> ExportedProgram:
    """Return the program of a module for batches of any size.

    Raises:
        ConfigError: the network cannot be traced.
    """
    examples, batch = module.examples(2), Dim("batch", min=1)
    others = {name: value for name, value in examples.items() if name not in ("x_t", "t")}
    try:
        with torch.no_grad():
            program = torch.export.export(
                module,
                (examples["x_t"], examples["t"]),
                others,
                dynamic_shapes={name: {0: batch} for name in examples},
            )
    except Exception as error:  # the network of a plugin may raise any
        if is_out_of_memory(error):
            raise
        raise _refused(format, module, error) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # has paths of this machine
    return program


def _refused(format: str, module: SamplingProgram, error: Exception) -> ConfigError:
    """Return the error of a network that cannot be exported."""
    reason = str(error).strip().partition("\n")[0].rstrip(".:") or type(error).__name__
    problem = (
        f"{type(module.network).__name__} cannot be exported for batches of any size ({reason}); "
        "use format=safetensors, or change its forward"
    )
    return ConfigError("format", format, problem)


def _check_outputs(
    format: str, module: SamplingProgram, run: Callable[[Mapping[str, Tensor]], _Outputs]
) -> None:
    """Raise ConfigError unless a program has the outputs of the module, for two sizes of a batch.

    x0 is compared at the scale of x_t, where an error of the network has the same size for every
    objective.
    """
    for size in (1, 3):
        inputs = module.examples(size)
        expected, actual = _call(module, inputs), run(inputs)
        alpha = module.alphas[inputs["t"]].reshape(-1, *[1] * len(module.shape))
        pairs = [(actual["x0"] * alpha, expected["x0"] * alpha)]
        pairs += [(actual[name], expected[name]) for name in expected if name != "x0"]
        for value, correct in pairs:
            distance = float((value - correct).abs().max() / correct.abs().max().clamp(min=1e-12))
            problem = (
                f"the exported program differs from the network by {distance:.1e}, more than "
                f"{_CLOSE}; use format=safetensors"
            )
            require(distance <= _CLOSE, "format", format, problem)


def _check_onnx(module: SamplingProgram) -> None:
    """Raise ConfigError for a missing package, or weights that exceed an ONNX file."""
    for name in _ONNX_PACKAGES:
        try:
            import_module(name)
        except ImportError as error:
            problem = f"requires the package {name}, which is not installed"
            raise ConfigError("format", ONNX, problem, "run: pip install 'ddpm[onnx]'") from error
    size = sum(value.nbytes for value in (*module.parameters(), *module.buffers()))
    problem = f"the weights have {size / 1e9:.1f} GB, but a file holds 2; use format=torch-export"
    require(size <= _MAX_ONNX_BYTES, "format", ONNX, problem)


def _onnx_file(
    program: ExportedProgram, inputs: Sequence[str], outputs: Sequence[str], info: str
) -> bytes:
    """Return the ONNX file of a program, with metadata.

    Raises:
        ConfigError: an operation without an equivalent.
    """
    from torch.onnx import OnnxExporterError

    try:
        exported: Any = torch.onnx.export(
            program, input_names=inputs, output_names=outputs, dynamo=True, verbose=False
        )
    except OnnxExporterError as error:
        reason = str(error).strip().partition("\n")[0]
        problem = f"torch.onnx cannot convert the program ({reason}); use format=torch-export"
        raise ConfigError("format", ONNX, problem) from error
    exported.model.metadata_props[INFO] = info
    return exported.model_proto.SerializeToString()


def _onnx_runner(content: bytes) -> Callable[[Mapping[str, Tensor]], _Outputs]:
    """Return a function that runs an ONNX file."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, Tensor]) -> _Outputs:
        values = session.run(names, {name: value.numpy() for name, value in inputs.items()})
        return dict(zip(names, map(torch.from_numpy, values), strict=True))

    return run
