"""A small network of each kind, and of each embedding of time."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddpm.models import IDDPMUNet, SimpleUNet, UNet, UNet3D


class Kind(NamedTuple):
    """Class, size of the data and options of a network."""

    cls: type[nn.Module]
    size: tuple[int, ...]
    options: dict[str, Any]


_DIM = {"dim": 8, "dim_mults": (1, 2)}
_IDDPM = {
    "model_channels": 32,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (2,),
}
NETWORKS = {
    "unet": Kind(UNet, (8, 8), _DIM),
    "learned": Kind(UNet, (8, 8), {**_DIM, "learned_sinusoidal_cond": True}),
    "fourier": Kind(UNet, (8, 8), {**_DIM, "random_fourier_features": True}),
    "unet1d": Kind(UNet, (16,), {**_DIM, "dims": 1}),
    "iddpm_unet": Kind(IDDPMUNet, (8, 8), _IDDPM),
    "unet3d": Kind(UNet3D, (4, 8, 8), _DIM),
    "simple_unet": Kind(SimpleUNet, (8, 8), {}),
}
LEARNED = ("learned", "fourier")  # their frequencies turn by whole periods from step to step


def make(name: str, num_classes: int | None = None) -> tuple[nn.Module, Tensor]:
    """Return a network without layers of zeros, in eval mode, and a batch of two as its input."""
    torch.manual_seed(0)
    cls, size, options = NETWORKS[name]
    network = cls(1, 1, size, num_classes, False, **options).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return network, torch.randn(2, 1, *size)
