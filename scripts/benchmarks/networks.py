"""Networks of the peers and ours, with equal weights, outputs and operations.

:func:`compared` asserts the equality; the suites get their networks from here only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ddpm import models
from ddpm.interop import import_network
from scripts.benchmarks.improved_network import ImprovedNetwork

KERNELS = re.compile("conv|mm|attention")  # names of operations that both networks spend time in
LARGEST_DIFFERENCE = 1e-5  # of outputs, relative to their maximum


@dataclass(frozen=True)
class Networks:
    """A peer's network and ours, with equal weights.

    Attributes:
        ours: our network.
        theirs: the peer's.
        difference: largest difference of the outputs, relative to their maximum.
        operations: of a training step per image, by torch's counter.
    """

    ours: nn.Module
    theirs: nn.Module
    difference: float
    operations: float

    @property
    def facts(self) -> str:
        """Size and agreement of the networks, in sentences."""
        count = sum(parameter.numel() for parameter in self.ours.parameters())
        return (
            f"{count:,} parameters, {self.operations / 1e9:.2f} GFLOP per image and step. Both "
            "networks have equal weights, outputs that differ by at most "
            f"{self.difference:.1e} of their maximum, and the same operations."
        )


def improved(size: int) -> Networks:
    """Return our IDDPM U-Net and the network in improved-diffusion's style."""
    ours, theirs = iddpm_unet(size), ImprovedNetwork()
    theirs.load_state_dict(ours.state_dict())
    return compared(ours, theirs, size, tolerance=0.005)


def package(size: int) -> Networks:
    """Return our U-Net and denoising-diffusion-pytorch's, of version 2.3."""
    from denoising_diffusion_pytorch import Unet  # pyright: ignore

    torch.manual_seed(0)
    options = {"dim": 32, "dim_mults": (1, 2, 4)}
    ours = models.UNet(3, 3, (size, size), **options, block_norm="rms", num_mem_kv=4)  # pyright: ignore
    theirs = Unet(**options)
    theirs.load_state_dict(ours.state_dict())
    return compared(ours, theirs, size, tolerance=0.01)


def diffusers(size: int) -> Networks:
    """Return a ``UNet2DModel`` with about the operations of :func:`iddpm_unet`, and its import."""
    from diffusers import UNet2DModel  # pyright: ignore

    torch.manual_seed(0)
    theirs = randomized(
        UNet2DModel(
            sample_size=size,
            block_out_channels=(32, 64, 64),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )
    )
    ours = import_network("diffusers", theirs.config, theirs.state_dict())  # pyright: ignore
    return compared(ours, theirs, size, tolerance=0.0)


def iddpm_unet(size: int) -> nn.Module:
    """Return our IDDPM U-Net with 32 channels at levels (1, 2, 2) and a learned variance."""
    torch.manual_seed(0)
    options = {"model_channels": 32, "channel_mult": (1, 2, 2), "attention_resolutions": (2, 4)}
    return randomized(models.IDDPMUNet(3, 6, (size, size), **options))  # pyright: ignore


def randomized(network: nn.Module) -> nn.Module:
    """Draw the parameters that are zero, without which outputs are equal; return the network."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return network


def compared(ours: nn.Module, theirs: nn.Module, size: int, tolerance: float) -> Networks:
    """Return both networks after a comparison of outputs and operations.

    Args:
        ours: with the weights of the peer's.
        theirs: the peer's.
        size: side of the images.
        tolerance: largest relative difference of the operations.

    Raises:
        RuntimeError: other outputs or operations.
    """
    x, t = torch.randn(2, 3, size, size), torch.tensor([3, 700])
    with torch.no_grad():
        first, second = prediction(ours.eval(), x, t), prediction(theirs.eval(), x, t)
    ours.train()
    theirs.train()
    difference = float((first - second).abs().max() / first.abs().max())
    if not difference <= LARGEST_DIFFERENCE or not first.std() > 1e-3:
        raise RuntimeError(f"the outputs of the networks differ by {difference:.1e}")
    one, other = flops(ours, x, t), flops(theirs, x, t)
    if abs(other / one - 1) > tolerance:
        raise RuntimeError(f"{one:,.0f} operations per image against {other:,.0f}")
    return Networks(ours, theirs, difference, one)


def prediction(network: nn.Module, x: Tensor, t: Tensor) -> Tensor:
    """Return the output of a network; those of diffusers wrap it."""
    output: Any = network(x, t)
    return output if isinstance(output, Tensor) else output.sample


def flops(network: nn.Module, x: Tensor, t: Tensor) -> float:
    """Return the operations of a training step per image, by torch's counter."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        prediction(network, x, t).sum().backward()
    network.zero_grad(set_to_none=True)
    return counter.get_total_flops() / len(x)


def kernels(network: nn.Module, size: int, batch: int) -> str:
    """Return the share of :data:`KERNELS` in the time of the passes of a network, in a sentence."""
    x, t, threads = torch.randn(batch, 3, size, size), torch.arange(batch), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        prediction(network, x, t).square().mean().backward()
        with profile(activities=[ProfilerActivity.CPU]) as measured:
            prediction(network, x, t).square().mean().backward()
    finally:
        torch.set_num_threads(threads)
        network.zero_grad(set_to_none=True)
    times = {each.key: each.self_cpu_time_total for each in measured.key_averages()}
    share = sum(time for name, time in times.items() if KERNELS.search(name)) / sum(times.values())
    return (
        f"Convolutions, matrix products and attention are {share:.0%} of the time of our network "
        "(one thread)."
    )
