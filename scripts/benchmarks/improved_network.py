"""A U-Net and a DDIM loop in the style of improved-diffusion, to compare speeds with; written anew.

The network has the parameters of :class:`ddpm.models.IDDPMUNet`. Its style is: SiLU as a product
with a sigmoid; group normalisation with casts to float32 and back; a scale and a shift as two
operations; attention by two products around a softmax in float32; frequencies of the time embedding
computed on the host in each call. The DDIM loop copies each table of coefficients to the device
whenever it is used, computes the variance and the posterior mean, which DDIM does not need, and
draws noise that it multiplies by zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddpm.diffusion import Schedule
from ddpm.samplers.grids import respaced_timesteps
from scripts.gpu.improved_style import coefficients

GROUPS = 32


class SigmoidProduct(nn.Module):
    """SiLU in two operations."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x times its sigmoid."""
        return x * torch.sigmoid(x)


class CastingGroupNorm(nn.GroupNorm):
    """Group normalisation in float32."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, ...)."""
        return super().forward(input.float()).type(input.dtype)


class Residual(nn.Module):
    """Residual block of two convolutions, modulated by the embedding."""

    def __init__(self, channels: int, width: int, embedding: int) -> None:
        super().__init__()
        first = nn.Conv2d(channels, width, 3, padding=1)
        second = nn.Conv2d(width, width, 3, padding=1)
        self.in_layers = nn.Sequential(CastingGroupNorm(GROUPS, channels), SigmoidProduct(), first)
        self.emb_layers = nn.Sequential(SigmoidProduct(), nn.Linear(embedding, 2 * width))
        norm = CastingGroupNorm(GROUPS, width)
        self.out_layers = nn.Sequential(norm, SigmoidProduct(), nn.Dropout(0.0), second)
        same = channels == width
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return (B, width, H, W)."""
        h = self.in_layers(x)
        modulation = self.emb_layers(embedding).type(h.dtype)[..., None, None]
        scale, shift = torch.chunk(modulation, 2, dim=1)
        h = self.out_layers[0](h) * (1 + scale) + shift
        for layer in list(self.out_layers)[1:]:
            h = layer(h)
        return self.skip_connection(x) + h


class Attention(nn.Module):
    """Residual block of attention over all positions, whose weights are stored."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = CastingGroupNorm(GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        flat = x.reshape(*x.shape[:2], -1)
        qkv = self.qkv(self.norm(flat))
        qkv = qkv.reshape(len(x) * self.heads, -1, flat.shape[-1])
        q, k, v = torch.chunk(qkv, 3, dim=1)
        root = 1 / math.sqrt(math.sqrt(q.shape[1]))
        weights = torch.einsum("bci,bcj->bij", q * root, k * root)
        weights = torch.softmax(weights.float(), dim=-1).type(weights.dtype)
        h = torch.einsum("bij,bcj->bci", weights, v).reshape(len(x), -1, flat.shape[-1])
        return (flat + self.proj_out(h)).reshape(x.shape)


class Down(nn.Module):
    """Halve the image by a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H / 2, W / 2)."""
        return self.op(x)


class Up(nn.Module):
    """Double the image, then apply a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, 2 H, 2 W)."""
        return self.conv(nn.functional.interpolate(x, scale_factor=2, mode="nearest"))


class Layers(nn.Sequential):
    """Layers, of which the residual blocks receive the embedding."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        """Apply all layers."""
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, Residual) else layer(x)
        return x


class ImprovedNetwork(nn.Module):
    """U-Net with attention at all levels but the first, two blocks per level, scales and shifts.

    Args:
        channels: of the first level.
        mults: channels of each level, in units of ``channels``.
        heads: of the attention.
    """

    def __init__(
        self, channels: int = 32, mults: Sequence[int] = (1, 2, 2), heads: int = 4
    ) -> None:
        super().__init__()
        self.channels, wide = channels, 4 * channels
        first, second = nn.Linear(channels, wide), nn.Linear(wide, wide)
        self.time_embed = nn.Sequential(first, SigmoidProduct(), second)
        down, up = [Layers(nn.Conv2d(3, channels, 3, padding=1))], []
        widths, width = [channels], channels
        for level, mult in enumerate(mults):
            for _ in range(2):
                layers: list[nn.Module] = [Residual(width, mult * channels, wide)]
                width = mult * channels
                layers += [Attention(width, heads)] if level else []
                down.append(Layers(*layers))
                widths.append(width)
            if level < len(mults) - 1:
                down.append(Layers(Down(width)))
                widths.append(width)
        middle = Residual(width, width, wide), Attention(width, heads), Residual(width, width, wide)
        for level, mult in reversed(list(enumerate(mults))):
            for block in range(3):
                layers = [Residual(width + widths.pop(), mult * channels, wide)]
                width = mult * channels
                layers += [Attention(width, heads)] if level else []
                layers += [Up(width)] if level and block == 2 else []
                up.append(Layers(*layers))
        self.input_blocks, self.output_blocks = nn.ModuleList(down), nn.ModuleList(up)
        self.middle_block = Layers(*middle)
        last = nn.Conv2d(channels, 6, 3, padding=1)
        self.out = nn.Sequential(CastingGroupNorm(GROUPS, width), SigmoidProduct(), last)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the noise and the variance output, (B, 6, H, W)."""
        half = self.channels // 2
        exponents = torch.arange(half, dtype=torch.float32) / half
        frequencies = torch.exp(-math.log(10000) * exponents).to(t.device)
        angles = t[:, None].float() * frequencies[None]
        embedding = self.time_embed(torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1))
        h, skips = x, []
        for block in self.input_blocks:
            h = block(h, embedding)
            skips.append(h)
        h = self.middle_block(h, embedding)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        return self.out(h.type(x.dtype))


class ImprovedDDIM:
    """DDIM steps on evenly respaced timesteps, with clipping.

    Args:
        network: predicts the noise and the variance.
        schedule: of the process.
        steps: number of steps.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, steps: int) -> None:
        self.network, self.scale = network, 1000.0 / schedule.num_steps
        self.timesteps = list(respaced_timesteps(schedule.num_steps, f"ddim{steps}"))
        self.tables = coefficients(Schedule.from_alpha_bar(schedule.alpha_bar[self.timesteps]))

    def _at(self, name: str, t: Tensor, shape: torch.Size) -> Tensor:
        values = torch.from_numpy(self.tables[name]).to(t.device)[t].float()
        return values[:, None, None, None].expand(shape)

    @torch.no_grad()
    def sample(self, x: Tensor) -> Tensor:
        """Return clean data from noise (B, 3, H, W)."""
        for index in reversed(range(len(self.timesteps))):
            x = self._step(x, torch.tensor([index] * len(x), device=x.device))
        return x

    def _step(self, x: Tensor, t: Tensor) -> Tensor:
        times = torch.tensor(self.timesteps, device=x.device, dtype=t.dtype)[t].float()
        eps, fraction = torch.split(self.network(x, times * self.scale), x.shape[1], dim=1)
        fraction = (fraction + 1) / 2
        low, high = self._at("small", t, x.shape), self._at("large", t, x.shape)
        _variance = torch.exp(fraction * high + (1 - fraction) * low)
        inverse, inverse_noise = (self._at(n, t, x.shape) for n in ("inverse", "inverse_noise"))
        x0 = (inverse * x - inverse_noise * eps).clamp(-1, 1)
        _mean = self._at("of_x0", t, x.shape) * x0 + self._at("of_x", t, x.shape) * x
        inverse, inverse_noise = (self._at(n, t, x.shape) for n in ("inverse", "inverse_noise"))
        eps = (inverse * x - x0) / inverse_noise
        bar, before = self._at("bar", t, x.shape), self._at("bar_before", t, x.shape)
        sigma = 0.0 * torch.sqrt((1 - before) / (1 - bar)) * torch.sqrt(1 - bar / before)
        mean = x0 * torch.sqrt(before) + torch.sqrt(1 - before - sigma**2) * eps
        present = (t != 0).float()[:, None, None, None]
        return mean + present * sigma * torch.randn_like(x)
