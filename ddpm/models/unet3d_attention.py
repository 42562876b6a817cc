"""Attention of the video U-Nets: along time, and within frames.

Inputs and outputs are ``(B, C, F, H, W)``, F frames of H x W pixels; residuals are included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddpm.models.embeddings import Float32Module
from ddpm.models.layers import at_least_float32, attend, linear_attend, standardize_channels

SPATIAL_DIM_HEAD = 32
"""Channels per head of attention within frames, fixed in the original implementations."""

_NUM_BUCKETS, _MAX_DISTANCE = 32, 32


class LayerNorm(nn.Module):
    """Layer normalisation over the channels of each position, without a bias (Ba 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(B, C, F, H, W)``."""
        return (standardize_channels(at_least_float32(x), 1e-5) * self.gamma).to(x.dtype)


class RelativePositionBias(nn.Module):
    """Learned bias of attention scores by the relative position of two frames (Raffel 2020, T5).

    Half of the 32 buckets are for keys that are later than the query. In each half, distances below
    8 frames have one bucket each, distances from 8 to 32 share the rest on a logarithmic scale, and
    larger distances have the last bucket.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.relative_attention_bias = nn.Embedding(_NUM_BUCKETS, heads)

    def forward(self, num_frames: int) -> Tensor:
        """Return the biases ``(heads, num_frames, num_frames)``; the last axis is that of keys."""
        at = torch.arange(num_frames, device=self.relative_attention_bias.weight.device)
        return self.relative_attention_bias(_bucket(at[:, None] - at)).permute(2, 0, 1)


def _bucket(lag: Tensor) -> Tensor:
    """Return the bucket of a key that is ``lag`` frames earlier than its query."""
    half, exact = _NUM_BUCKETS // 2, _NUM_BUCKETS // 4
    distance = lag.abs()
    octaves = torch.log(distance.clamp(min=exact) / exact) / math.log(_MAX_DISTANCE / exact)
    far = (exact + (octaves * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + half * (lag < 0)


class Rotary(Float32Module):
    """Angles of rotary position embedding (Su 2021, "RoFormer", 3.2.2).

    Pair i of the first ``dim`` features rotates by ``10000 ** -(2 i / dim)`` radians per frame. As
    in the original, ``freqs`` is a parameter that is never trained. It is not stored in state
    dicts.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        powers = torch.arange(0, dim, 2)[: dim // 2].float() / dim
        self.freqs = nn.Parameter(1.0 / (10000**powers), requires_grad=False)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Store nothing; the frequencies are constants."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Load nothing; the frequencies are constants."""

    def forward(self, num_frames: int) -> Tensor:
        """Return angles ``(num_frames, dim // 2)``, in radians, in float32 or better."""
        at = torch.arange(num_frames, device=self.freqs.device)
        return at[:, None].to(self.freqs.dtype) * self.freqs


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate the first R pairs of features of ``(..., F, D)`` by ``angles`` ``(F, R)``."""
    rotated, rest = x.split((2 * angles.shape[-1], x.shape[-1] - 2 * angles.shape[-1]), dim=-1)
    even, odd = at_least_float32(rotated).unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    pairs = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return torch.cat((pairs.flatten(-2).to(x.dtype), rest), dim=-1)


@dataclass(frozen=True)
class FrameAxis:
    """Positions of the frames, for temporal attention.

    Attributes:
        angles: angles of the rotary embedding, ``(F, R)`` in float32 or better.
        bias: relative position bias, ``(heads, F, F)``.
        focus: bool ``(B,)``, true for samples in which each frame attends only to itself; None for
            no such samples.
    """

    angles: Tensor
    bias: Tensor
    focus: Tensor | None


class Attention(nn.Module):
    """Base class of attention along time and within frames: norm, projections, heads."""

    def __init__(self, channels: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = LayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, channels, bias=False)

    def project(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values ``(A, heads, N, D)`` of tokens ``(A, N, C)``."""
        qkv = self.to_qkv(rows).unflatten(-1, (3, self.heads, -1)).transpose(1, 3)
        q, k, v = qkv.unbind(2)
        return q, k, v

    def merge(self, out: Tensor) -> Tensor:
        """Merge the heads ``(A, heads, N, D)`` to tokens ``(A, N, C)``."""
        return self.to_out(out.transpose(1, 2).flatten(2))


class TemporalAttention(Attention):
    """Attention along time at each pixel, with residual."""

    def forward(self, x: Tensor, axis: FrameAxis) -> Tensor:
        """Return ``(B, C, F, H, W)`` for an input of the same shape."""
        rows = self.norm(x).permute(0, 3, 4, 2, 1)
        q, k, v = self.project(rows.flatten(0, 2))
        q, k = _rotate(q, axis.angles), _rotate(k, axis.angles)
        # Not `attend`: with a learned bias it is slower on the CPU (by half for 16 frames), and in
        # half precision it also rounds the bias.
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        weights = torch.softmax(at_least_float32(scores) + at_least_float32(axis.bias), dim=-1)
        out = weights.to(v.dtype) @ v
        if axis.focus is not None:
            pixels = axis.focus.repeat_interleave(q.shape[0] // x.shape[0])
            out = torch.where(pixels[:, None, None, None], v, out)
        return x + self.merge(out).reshape(rows.shape).permute(0, 4, 3, 1, 2)


class SpatialAttention(Attention):
    """Full attention within each frame, with residual."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, C, F, H, W)`` for an input of the same shape."""
        rows = self.norm(x).permute(0, 2, 3, 4, 1)
        out = attend(*self.project(rows.flatten(2, 3).flatten(0, 1)))
        return x + self.merge(out).reshape(rows.shape).permute(0, 4, 1, 2, 3)


class SpatialLinearAttention(nn.Module):
    """Attention within each frame at a cost linear in its pixels, with residual."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        hidden = heads * SPATIAL_DIM_HEAD
        self.norm = LayerNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * hidden, 1, bias=False)
        self.to_out = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, C, F, H, W)`` for an input of the same shape."""
        frames = self.norm(x).transpose(1, 2).flatten(0, 1)
        q, k, v = self.to_qkv(frames).flatten(2).unflatten(1, (3, self.heads, -1)).unbind(1)
        out = linear_attend(q, k, v).flatten(1, 2).unflatten(-1, x.shape[3:])
        return x + self.to_out(out).unflatten(0, (-1, x.shape[2])).transpose(1, 2)
