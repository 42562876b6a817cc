"""Layers that the networks share: convolutions of any rank, norms, attention.

Shapes are ``(B, C, *spatial)`` with one, two or three spatial axes. Normalisation and softmax use
float32 or better under any autocast.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.errors import require
from ddpm.models.sizes import Fit, crop_to, pad_to_multiple

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_CONVS: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def conv_nd(
    dims: int,
    channels: int,
    out_channels: int,
    kernel: int,
    *,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    bias: bool = True,
) -> nn.Module:
    """Return a convolution over ``dims`` spatial axes (1, 2 or 3)."""
    return _CONVS[dims](channels, out_channels, kernel, stride=stride, padding=padding, bias=bias)


class AvgPool3d(nn.AvgPool3d):
    """Average pooling over disjoint windows, with a gradient that is deterministic on a GPU too.

    ``torch.nn.AvgPool3d`` has no deterministic gradient on a GPU and raises if
    ``trainer.deterministic`` requires one. The order of summation is that of torch, so that results
    on a CPU are equal bit for bit.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the means ``(B, C, F // f, H // h, W // w)`` over windows ``(f, h, w)``."""
        if not torch.are_deterministic_algorithms_enabled():
            return super().forward(input)
        window = self.kernel_size
        sizes = (window,) * 3 if isinstance(window, int) else tuple(window)
        ends = [length // n * n for length, n in zip(input.shape[2:], sizes, strict=True)]
        x = at_least_float32(input)
        total = torch.zeros((), dtype=x.dtype, device=x.device)
        for at in itertools.product(*map(range, sizes)):
            strided = (slice(i, end, n) for i, end, n in zip(at, ends, sizes, strict=True))
            total = total + x[(..., *strided)]
        return (total / math.prod(sizes)).to(input.dtype)


def avg_pool_nd(dims: int, window: int | tuple[int, ...]) -> nn.Module:
    """Return average pooling over disjoint windows of ``dims`` spatial axes (1, 2 or 3)."""
    return _POOLS[dims](window)


_POOLS: dict[int, Callable[..., nn.Module]] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: AvgPool3d}


def zero_module(module: ModuleT) -> ModuleT:
    """Set the parameters of a module to zero, so that it outputs zeros at first, and return it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x``, converted to float32 if its type has fewer bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def norm_operands(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the operands with which a norm of torch computes in float32 or better.

    With float32 weights, the CPU kernels of group and layer normalisation do so for activations in
    half precision, too: these are not copied. Inductor instead rounds the statistics to the type of
    the activations, and fuses the conversion; therefore compiled graphs convert.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        x = x.to(wide)
    return x, weight.to(wide), bias.to(wide)


class GroupNorm(nn.GroupNorm):
    """Group normalisation computed in float32 or better; the output has the type of the input."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``(B, C, *spatial)``."""
        x, weight, bias = norm_operands(input, self.weight, self.bias)
        return F.group_norm(x, self.num_groups, weight, bias, self.eps).to(input.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the channels, ``x / rms(x) * g`` (Zhang, Sennrich 2019).

    The gain ``g`` has shape ``(1, C, 1, ...)``, as in denoising-diffusion-pytorch.
    """

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, *(1,) * dims))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(B, C, *spatial)``."""
        unit = unit_vectors(at_least_float32(x))
        return (unit * (self.g * math.sqrt(x.shape[1]))).to(x.dtype)


def unit_vectors(x: Tensor) -> Tensor:
    """Return ``x`` divided by its norm over the channels, axis 1, or by 1e-12 if that is larger.

    On a CPU this form is 5 times faster than that of torch, and 2.3 times with its gradient: the
    norm of torch is not vectorized over an inner axis.
    """
    if x.device.type != "cpu":
        return F.normalize(x, dim=1)
    return x * (x * x).sum(1, keepdim=True).clamp_min(1e-24).rsqrt()


class LayerNorm(nn.Module):
    """Layer normalisation over the channels of each position, without a bias (Ba 2016).

    The gain ``g`` has shape ``(1, C, 1, ...)``; the epsilon added to the variance depends on the
    type of the input. Both are as in denoising-diffusion-pytorch.
    """

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, *(1,) * dims))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(B, C, *spatial)``."""
        wide = at_least_float32(x)
        return (standardize_channels(wide, variance_eps(x.dtype)) * self.g).to(x.dtype)


def standardize_channels(x: Tensor, eps: float) -> Tensor:
    """Return ``x`` with mean 0 and variance 1 over the channels, axis 1.

    On a CPU this form is 5 times faster than ``torch.var_mean``, which is not vectorized over an
    inner axis, and 2.4 times with its gradient.

    Args:
        x: ``(B, C, *spatial)``.
        eps: number added to the variance.
    """
    if x.device.type != "cpu":
        var, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        return (x - mean) * (var + eps).rsqrt()
    centered = x - x.mean(1, keepdim=True)
    return centered * ((centered * centered).mean(1, keepdim=True) + eps).rsqrt()


def variance_eps(dtype: torch.dtype) -> float:
    """Return the epsilon that denoising-diffusion-pytorch adds to a variance.

    It is 1e-5, or 1e-3 for types with fewer bits than float32.
    """
    return 1e-5 if torch.promote_types(dtype, torch.float32) == dtype else 1e-3


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax attention ``softmax(q k^T / sqrt(D)) v``, softmax in float32 or better.

    Args:
        q: ``(B, heads, N, D)``.
        k: ``(B, heads, M, D)``.
        v: ``(B, heads, M, D)``.

    Returns:
        ``(B, heads, N, D)``.
    """
    # For strided channels the fused kernels are several times slower, or not used at all.
    q, k, v = (each if each.stride(-1) == 1 else each.contiguous() for each in (q, k, v))
    wide = torch.promote_types(q.dtype, torch.float32)
    if q.device.type != "cpu" or q.dtype == wide:
        return F.scaled_dot_product_attention(q, k, v)
    # On a CPU the float32 kernel is faster for half precision, too, conversions included: in
    # training by 1.5 (16 tokens), 3 (64) and 4 (256 and 1024), without gradients by 1 to 1.2.
    # Matrix products are not faster in float32. CUDA, not measured, has kernels for all types.
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.to(wide), k.to(wide), v.to(wide)).to(q.dtype)


def linear_attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return attention at a cost linear in the number of positions (Shen 2018).

    The softmax of q is over features, that of k over positions, both in float32 or better
    ("Efficient Attention").

    Args:
        q: ``(B, heads, D, N)``.
        k: ``(B, heads, D, M)``.
        v: ``(B, heads, D, M)``.

    Returns:
        ``(B, heads, D, N)``.
    """
    weights_q = torch.softmax(at_least_float32(q), dim=-2).to(q.dtype)
    weights_k = torch.softmax(at_least_float32(k), dim=-1).to(k.dtype)
    # The scale is on the smallest factor, and the product in the layout that needs no copies of it.
    context = v @ weights_k.mT / math.sqrt(q.shape[-2])
    return context @ weights_q


class Network(nn.Module):
    """Base class of networks that predict ``(B, out_channels, *spatial)`` from x_t and t.

    A subclass defines ``forward(x, t, y=None, x_self_cond=None)``, which passes the inputs through
    :meth:`prepare` and the output through :meth:`crop`.

    Args:
        channels: channels of x_t.
        out_channels: channels of the output.
        num_classes: number of classes of the labels ``y``; None for a network without labels.
        self_condition: also receive an earlier estimate of x0 (Chen 2022, "Analog Bits"); the
            first convolution then has ``in_channels = 2 * channels``.
        factors: divisor of each spatial axis; the network accepts all sizes that are multiples.
        fit: options that depend on the size of the data; with ``fit.pad`` the network accepts
            every size.
    """

    adaptive: ClassVar[tuple[str, ...]] = ()
    """Options that are chosen by the size of the data if the first of them is null."""
    legacy_defaults: ClassVar[Mapping[str, Any]] = {"pad": False}
    """Options that earlier versions lacked, with the values that reproduce their behaviour."""
    cpu_defaults: ClassVar[Mapping[str, Any]] = {}
    """Values of a smaller network, used if training starts on a CPU and the first is null."""
    thread_safe: bool = False
    """True if threads may call it at the same time, each on a part of the batch.

    Calls then store nothing in the network and, except in dropout layers, draw no random numbers.
    """
    null_label: int | None = None
    """Label ``y`` that stands for "no class" in a network that is trained with dropped labels.

    By default it is the last of ``num_classes`` labels, which then include one for it. A subclass
    that sets a number, such as -1, has a null embedding beside those of ``num_classes`` labels.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        num_classes: int | None,
        self_condition: bool,
        factors: tuple[int, ...],
        fit: Fit | None = None,
    ) -> None:
        super().__init__()
        self.fit = Fit() if fit is None else fit
        self.channels, self.out_channels = channels, out_channels
        self.num_classes, self.self_condition = num_classes, self_condition
        if type(self).null_label is None and num_classes is not None:
            self.null_label = num_classes - 1
        self.factors = factors
        self.in_channels = channels * (2 if self_condition else 1)

    def prepare(self, x: Tensor, y: Tensor | None, x_self_cond: Tensor | None) -> Tensor:
        """Check the inputs, and return the input of the first convolution.

        Args:
            x: ``(B, channels, *spatial)``.
            y: labels ``(B,)``, required if and only if the network has classes.
            x_self_cond: earlier estimate of x0, of the shape of x; None stands for zeros.

        Returns:
            ``(B, in_channels, *spatial)``: the estimate of x0, if the network uses one, then x;
            padded to multiples of ``factors`` if ``fit.pad``.

        Raises:
            ValueError: a size that is not a multiple of ``factors`` without ``fit.pad``, missing,
                unexpected or misshaped labels, or an unexpected estimate of x0.
        """
        sizes = tuple(x.shape[2:])
        fits = len(sizes) == len(self.factors) and (
            self.fit.pad
            or not any(n % factor for n, factor in zip(sizes, self.factors, strict=True))
        )
        if not fits:
            raise ValueError(f"x has spatial size {sizes}, not a multiple of {self.factors}")
        if (y is None) != (self.num_classes is None):
            raise ValueError(
                "the network has no classes; call it without labels y"
                if self.num_classes is None
                else f"the network has {self.num_classes} classes and needs labels y of shape (B,)"
            )
        if y is not None and y.shape != x.shape[:1]:
            raise ValueError(f"labels y have shape {tuple(y.shape)}, not ({x.shape[0]},)")
        if not self.self_condition:
            if x_self_cond is not None:
                raise ValueError("x_self_cond requires a network with self_condition")
        else:
            estimate = torch.zeros_like(x) if x_self_cond is None else x_self_cond
            x = torch.cat((estimate, x), dim=1)
        return pad_to_multiple(x, self.factors) if self.fit.pad else x

    def crop(self, output: Tensor, x: Tensor) -> Tensor:
        """Crop the output to the spatial size of x: remove the padding of :meth:`prepare`."""
        return crop_to(output, x.shape[2:]) if self.fit.pad else output


def check_positive(**values: int | Sequence[int] | None) -> None:
    """Raise ConfigError for the first keyword whose number, or tuple of numbers, is not positive.

    None is accepted: the value is chosen later.
    """
    for key, value in values.items():
        if value is None:
            continue
        numbers = (value,) if isinstance(value, int) else value
        require(len(numbers) > 0, key, value, "needs at least one entry")
        require(all(n > 0 for n in numbers), key, value, "must be greater than zero")


def check_dropout(dropout: float) -> None:
    """Raise ConfigError unless ``dropout`` is in [0, 1)."""
    require(0 <= dropout < 1, "dropout", dropout, "must be a probability, at least 0 and below 1")
