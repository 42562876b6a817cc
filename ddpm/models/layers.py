"""What the networks share: convolutions of any rank, norms, embeddings, attention, checks.

Shapes are ``(B, C, *spatial)`` with one, two or three spatial axes. Whatever normalises, takes a
softmax or embeds a timestep works in float32 or better under any autocast.
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
    padding: int = 0,
    bias: bool = True,
) -> nn.Module:
    """A convolution over ``dims`` spatial axes (1, 2 or 3)."""
    return _CONVS[dims](channels, out_channels, kernel, stride=stride, padding=padding, bias=bias)


class AvgPool3d(nn.AvgPool3d):
    """Means over windows that do not overlap, with a gradient that is deterministic on a GPU too.

    torch has none for its own and raises where ``trainer.deterministic`` asks for one. The sums are
    in the order of torch's, so that they are equal bit for bit on a CPU.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Take ``(B, C, F, H, W)`` to the means."""
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
    """Means over windows that do not overlap, over ``dims`` spatial axes (1, 2 or 3)."""
    return _POOLS[dims](window)


_POOLS: dict[int, Callable[..., nn.Module]] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: AvgPool3d}


def zero_module(module: ModuleT) -> ModuleT:
    """The same module with its parameters set to zero, so that its branch starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` itself, or in float32 where its type has fewer bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class GroupNorm(nn.GroupNorm):
    """Group normalisation in float32 or better, in the type of its input on the way out."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``(B, C, *spatial)``."""
        x = at_least_float32(input)
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.group_norm(x, self.num_groups, weight, bias, self.eps).to(input.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the channels, ``x / rms(x) * g`` (Zhang, Sennrich 2019).

    Its gain is ``g`` of shape ``(1, C, 1, ...)``, as in denoising-diffusion-pytorch.
    """

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, *(1,) * dims))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(B, C, *spatial)``."""
        unit = F.normalize(at_least_float32(x), dim=1)
        return (unit * (self.g * math.sqrt(x.shape[1]))).to(x.dtype)


class LayerNorm(nn.Module):
    """Normalisation over the channels of each position, with a gain alone (Ba 2016).

    The gain is ``g`` of shape ``(1, C, 1, ...)``; what is added to the variance depends on the type
    of the input. Both are as in denoising-diffusion-pytorch.
    """

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, *(1,) * dims))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(B, C, *spatial)``."""
        wide = at_least_float32(x)
        var, mean = torch.var_mean(wide, dim=1, correction=0, keepdim=True)
        return ((wide - mean) * (var + small(x.dtype)).rsqrt() * self.g).to(x.dtype)


def small(dtype: torch.dtype) -> float:
    """What lucidrains adds to a variance: 1e-5, or 1e-3 in types with fewer bits than float32."""
    return 1e-5 if torch.promote_types(dtype, torch.float32) == dtype else 1e-3


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of the timestep at geometric frequencies, from 1 down (Vaswani 2017, 3.5).

    The frequencies are ``max_period ** -(i / n)`` for i = 0..dim//2-1. Two habits exist:
    OpenAI's has n = dim//2 and the cosines first, lucidrains's n = dim//2 - 1
    (``reach_end``, so that the last is exactly ``1 / max_period``) and the sines first. An odd
    ``dim`` is filled up with a zero.
    """

    frequencies: Tensor

    def __init__(
        self, dim: int, *, max_period: float = 10000, cos_first: bool, reach_end: bool
    ) -> None:
        super().__init__()
        self.dim, self.max_period = dim, max_period
        self.cos_first, self.reach_end = cos_first, reach_end
        # Not persistent: the names in a state dict are the originals', which compute them anew.
        self.register_buffer("frequencies", self._compute(), persistent=False)

    def _compute(self) -> Tensor:
        half = self.dim // 2
        steps = torch.arange(half, dtype=torch.float64) / (half - 1 if self.reach_end else half)
        return torch.exp(-math.log(self.max_period) * steps).float()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SinusoidalEmbedding:
        """Move with the network, but stay in float32 when it is cast to something else."""
        super()._apply(fn, recurse)
        if self.frequencies.dtype != torch.float32:
            self.frequencies = self._compute().to(self.frequencies.device)
        return self

    def forward(self, t: Tensor) -> Tensor:
        """Embed ``(B,)`` timesteps, whole or fractional, as ``(B, dim)`` in float32."""
        angles = t.float()[:, None] * self.frequencies[None]
        sin, cos = angles.sin(), angles.cos()
        embedding = torch.cat((cos, sin) if self.cos_first else (sin, cos), dim=1)
        return F.pad(embedding, (0, 1)) if self.dim % 2 else embedding


class FourierEmbedding(nn.Module):
    """The timestep itself, and its sines and cosines at ``dim // 2`` random frequencies.

    The frequencies are ``weights``, drawn from N(0, 1) and trained where ``learned`` (Tancik 2020,
    "Fourier Features"; the timestep features of v-diffusion).
    """

    def __init__(self, dim: int, *, learned: bool) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(dim // 2), requires_grad=learned)

    def forward(self, t: Tensor) -> Tensor:
        """Embed ``(B,)`` timesteps, whole or fractional, as ``(B, 1 + dim)`` in float32."""
        t = t.float()[:, None]
        angles = t * self.weights.float()[None] * (2 * math.pi)
        return torch.cat((t, angles.sin(), angles.cos()), dim=1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention ``softmax(q k^T / sqrt(D)) v``, with the softmax in float32 or better.

    ``q`` is ``(B, heads, N, D)``, ``k`` and ``v`` are ``(B, heads, M, D)``, the result is
    ``(B, heads, N, D)``. Contiguous, because the fused kernels are several times slower, or not
    taken at all, where the channels are strided; made so, they are no slower than two products
    and a softmax on the CPU either, and keep no N x M matrix.
    """
    return F.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous())


def linear_attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention linear in the number of positions: softmax of q over features, of k over positions.

    ``q`` is ``(B, heads, D, N)``, ``k`` and ``v`` are ``(B, heads, D, M)``, the result is
    ``(B, heads, D, N)`` (Shen 2018, "Efficient Attention"). The softmaxes are in float32.
    """
    weights_q = torch.softmax(at_least_float32(q), dim=-2) / math.sqrt(q.shape[-2])
    weights_k = torch.softmax(at_least_float32(k), dim=-1)
    context = torch.einsum("bhdm,bhem->bhde", weights_k.to(k.dtype), v)
    return torch.einsum("bhde,bhdn->bhen", context, weights_q.to(q.dtype))


class Network(nn.Module):
    """A network that predicts ``(B, out_channels, *spatial)`` from x_t, t and what it is told.

    With ``self_condition`` it also takes an earlier estimate of x0 (Chen 2022, "Analog Bits"),
    and its first convolution has ``in_channels = 2 * channels``. ``factors`` says by what each
    spatial axis of the data must be divisible; any such size can be given. With ``fit.pad`` any
    size at all can be given: a network pads its inputs in ``prepare`` and crops its output.
    """

    adaptive: ClassVar[tuple[str, ...]] = ()
    """Options that are taken from the size of the data where the first of them is null."""
    legacy_defaults: ClassVar[Mapping[str, Any]] = {"pad": False}
    """Options that did not exist in earlier versions, with the value that does what these did."""
    cpu_defaults: ClassVar[Mapping[str, Any]] = {}
    """Options of smaller networks, with which training begins on a CPU if the first is null."""

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
        self.factors = factors
        self.in_channels = channels * (2 if self_condition else 1)

    def prepare(self, x: Tensor, y: Tensor | None, x_self_cond: Tensor | None) -> Tensor:
        """Check the inputs and put the estimate of x0, zeros where there is none, in front of x.

        Gives ``(B, in_channels, *spatial)``, padded where the network pads. Raises ValueError where
        labels are given to a network that has none or missing from one that has, where there is an
        estimate of x0 that the network cannot take, and where the size cannot be halved as often
        as the network does.
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
                "the network has no classes, but labels y were given"
                if self.num_classes is None
                else f"the network has {self.num_classes} classes and needs labels y of shape (B,)"
            )
        if y is not None and y.shape != x.shape[:1]:
            raise ValueError(f"labels y have shape {tuple(y.shape)}, not ({x.shape[0]},)")
        if not self.self_condition:
            if x_self_cond is not None:
                raise ValueError("x_self_cond was given to a network without self_condition")
        else:
            estimate = torch.zeros_like(x) if x_self_cond is None else x_self_cond
            x = torch.cat((estimate, x), dim=1)
        return pad_to_multiple(x, self.factors) if self.fit.pad else x

    def crop(self, answer: Tensor, x: Tensor) -> Tensor:
        """Return the answer without what ``prepare`` padded x with."""
        return crop_to(answer, x.shape[2:]) if self.fit.pad else answer


def check_positive(**values: int | Sequence[int] | None) -> None:
    """Raise ConfigError for the first value, or tuple, that is not made of numbers above zero.

    None stands for a value that is yet to be chosen.
    """
    for key, value in values.items():
        if value is None:
            continue
        numbers = (value,) if isinstance(value, int) else value
        require(len(numbers) > 0, key, value, "needs at least one entry")
        require(all(n > 0 for n in numbers), key, value, "must be greater than zero")


def check_dropout(dropout: float) -> None:
    """Raise ConfigError unless ``dropout`` is a probability."""
    require(0 <= dropout < 1, "dropout", dropout, "is a probability: choose from 0 up to below 1")
