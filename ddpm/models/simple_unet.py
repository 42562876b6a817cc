"""U-Net of a widely used tutorial implementation of DDPM: small and plain.

It has blocks of two convolutions with one norm group, max-pooling in the encoder, bilinear
upsampling in the decoder, and self-attention after every stage. Parameters have the tutorial's
names.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.errors import ConfigError, require
from ddpm.models.embeddings import SinusoidalEmbedding
from ddpm.models.layers import (
    GroupNorm,
    Network,
    attend,
    check_positive,
    norm_operands,
)
from ddpm.models.sizes import Fit, describe_size, padded_size, padding_note

_NUM_HALVINGS = 3


def _convolution(channels: int, out_channels: int) -> nn.Sequential:
    """Return a 3x3 convolution, a norm with a single group, and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, 3, padding=1), GroupNorm(1, out_channels), nn.ReLU()
    )


class DoubleConv(nn.Module):
    """Two convolutions, each with norm and ReLU."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = _convolution(channels, out_channels)
        self.conv2 = _convolution(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, out_channels, H, W)`` for ``(B, channels, H, W)``."""
        return self.conv2(self.conv1(x))


class Down(nn.Module):
    """Encoder stage: max-pooling, two convolutions, and the time embedding added."""

    def __init__(self, channels: int, out_channels: int, time_dim: int) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.MaxPool2d(2), DoubleConv(channels, out_channels))
        # ReLU here and SiLU in Up, as in the tutorial, whose checkpoints require it.
        self.emb_layer = nn.Sequential(nn.ReLU(), nn.Linear(time_dim, out_channels))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Return ``(B, out_channels, H/2, W/2)``.

        Args:
            x: ``(B, channels, H, W)``.
            emb: embedding ``(B, time_dim)``.
        """
        return self.down(x) + self.emb_layer(emb)[:, :, None, None]


class Up(nn.Module):
    """Decoder stage: bilinear upsampling, skip connection, two convolutions, time embedding."""

    def __init__(self, channels: int, out_channels: int, time_dim: int) -> None:
        super().__init__()
        self.conv = DoubleConv(channels, out_channels)
        self.emb_layer = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, out_channels))

    def forward(self, x: Tensor, skip: Tensor, emb: Tensor) -> Tensor:
        """Return ``(B, out_channels, H, W)``.

        Args:
            x: ``(B, C1, H/2, W/2)``, of the coarser stage.
            skip: ``(B, C2, H, W)``, of the encoder; C1 + C2 is ``channels``.
            emb: embedding ``(B, time_dim)``.
        """
        larger = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return self.conv(torch.cat((skip, larger), dim=1)) + self.emb_layer(emb)[:, :, None, None]


class _Attention(nn.Module):
    """Multi-head self-attention with the parameters of ``nn.MultiheadAttention``."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, N, C)`` for N tokens ``(B, N, C)``."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        q, k, v = (each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for each in qkv)
        return self.out_proj(attend(q, k, v).transpose(1, 2).flatten(2))


class _LayerNorm(nn.LayerNorm):
    """Layer normalisation computed in float32 or better."""

    def forward(self, input: Tensor) -> Tensor:
        x, weight, bias = norm_operands(input, self.weight, self.bias)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps).to(input.dtype)


class SelfAttention(nn.Module):
    """Self-attention and a feed-forward network, each with norm and residual."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.mha = _Attention(channels, num_heads)
        self.ln = _LayerNorm(channels)
        self.ff_self = nn.Sequential(
            _LayerNorm(channels),
            nn.Linear(channels, channels),
            nn.GELU(),
            nn.Linear(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, C, H, W)`` for an input of the same shape."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.mha(self.ln(tokens))
        tokens = tokens + self.ff_self(tokens)
        return tokens.transpose(1, 2).reshape(x.shape)


class SimpleUNet(Network):
    """U-Net of the tutorial, for images: ``(B, channels, H, W)`` to ``(B, out_channels, H, W)``.

    Args:
        channels: channels of the data.
        out_channels: channels of the output.
        size: (height, width) of the data. The network accepts all sizes divisible by 8, and with
            ``pad`` all sizes.
        num_classes: number of classes; the label embedding is added to the time embedding.
        self_condition: also receive an earlier estimate of x0.
        width: channels of the first stage.
        time_dim: width of the sinusoidal time embedding, sines first.
        num_heads: attention heads at every stage.
        pad: pad inputs whose size is not divisible by 8, and crop the output; None = only if
            ``size`` is not divisible by 8.

    Raises:
        ConfigError: invalid options, or data that are not images.
    """

    thread_safe = True
    adaptive = ("pad",)
    cpu_defaults = {"width": 16}

    def __init__(
        self,
        channels: int,
        out_channels: int,
        size: tuple[int, ...],
        num_classes: int | None = None,
        self_condition: bool = False,
        *,
        width: int = 64,
        time_dim: int = 128,
        num_heads: int = 4,
        pad: bool | None = None,
    ) -> None:
        fit, factors = _fit(size, pad), (2**_NUM_HALVINGS,) * 2
        super().__init__(channels, out_channels, num_classes, self_condition, factors, fit)
        check_positive(width=width, time_dim=time_dim, num_heads=num_heads)
        problem = "width must be divisible by num_heads"
        require(width % num_heads == 0, "num_heads", num_heads, problem)
        problem = "must be even: half sines, half cosines"
        require(time_dim % 2 == 0, "time_dim", time_dim, problem)
        w = width
        self.time = SinusoidalEmbedding(time_dim, cos_first=False, reach_end=False)
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, time_dim)
        self.inc = DoubleConv(self.in_channels, w)
        stages = [("1", w, 2 * w), ("2", 2 * w, 4 * w), ("3", 4 * w, 4 * w)]
        for name, before, after in stages:
            self.add_module(f"down{name}", Down(before, after, time_dim))
            self.add_module(f"sa{name}", SelfAttention(after, num_heads))
        self.bot1 = DoubleConv(4 * w, 8 * w)
        self.bot2 = DoubleConv(8 * w, 8 * w)
        self.bot3 = DoubleConv(8 * w, 4 * w)
        for name, attention, before, after in (
            ("1", "4", 8 * w, 2 * w),
            ("2", "5", 4 * w, w),
            ("3", "6", 2 * w, w),
        ):
            self.add_module(f"up{name}", Up(before, after, time_dim))
            self.add_module(f"sa{attention}", SelfAttention(after, num_heads))
        self.outc = nn.Conv2d(w, out_channels, 1)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, x_self_cond: Tensor | None = None
    ) -> Tensor:
        """Return the prediction ``(B, out_channels, H, W)``.

        Args:
            x: ``(B, channels, H, W)``.
            t: timesteps ``(B,)``, integer or real.
            y: labels ``(B,)``, required if and only if the network has classes.
            x_self_cond: earlier estimate of x0, of the shape of x.

        Raises:
            ValueError: see :meth:`~ddpm.models.layers.Network.prepare`.
        """
        h = self.inc(self.prepare(x, y, x_self_cond))
        emb = self.time(t, x.dtype)
        if y is not None:
            emb = emb + self.label_emb(y)
        skips = []
        for stage in "123":
            skips.append(h)
            h = self.get_submodule(f"sa{stage}")(self.get_submodule(f"down{stage}")(h, emb))
        h = self.bot3(self.bot2(self.bot1(h)))
        for stage, attention in zip("123", "456", strict=True):
            h = self.get_submodule(f"up{stage}")(h, skips.pop(), emb)
            h = self.get_submodule(f"sa{attention}")(h)
        return self.crop(self.outc(h), x)


def _fit(size: tuple[int, ...], pad: bool | None) -> Fit:
    """Return the padding for data of this size; raise ConfigError for data it cannot accept."""
    problem = f"is for images, but the data are {describe_size(size)}; use another model"
    require(len(size) == 2, "_target_", "ddpm.models.SimpleUNet", problem)
    factor = 2**_NUM_HALVINGS
    factors = (factor, factor)
    needed = padded_size(size, factors) != size
    if needed and pad is False:
        shown = "x".join(map(str, size))
        remedy = f"set data.image_size to a multiple of {factor} or set pad=true"
        raise ConfigError("size", shown, f"is not divisible by {factor}; {remedy}")
    pad = needed if pad is None else pad
    return Fit(pad, {"pad": pad}, padding_note("pad=true", size, factors))
