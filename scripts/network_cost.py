"""Print the parameters and the floating-point operations of the networks in docs/choosing.md.

    python scripts/network_cost.py

Operations are those of a forward and a backward pass per item, by torch's counter: convolutions
and matrix products, a multiplication and an addition each. Nothing is computed: all tensors are on
the device "meta".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ddpm.models import IDDPMUNet, UNet, UNet3D
from ddpm.models.layers import Network


class Case(NamedTuple):
    """A network and the data that it is for.

    Attributes:
        options: what is typed after ``model=``.
        network: its class.
        shape: (channels, *spatial) of an item.
        arguments: of the class.
        factor: output channels per channel, 2 with a learned variance.
    """

    options: str
    network: Callable[..., Network]
    shape: tuple[int, ...]
    arguments: dict[str, Any]
    factor: int = 1


DIGITS = {"dim": 32, "dim_mults": (1, 2), "attn_heads": 2, "attn_dim_head": 16}
SEQUENCES = {"dims": 1, "full_attn": False}
ADM = {
    "model_channels": 192, "num_res_blocks": 3, "channel_mult": (1, 2, 3, 4),
    "attention_resolutions": (2, 4, 8), "num_head_channels": 64, "resblock_updown": True,
    "use_new_attention_order": True,
}  # fmt: skip
CASES = (
    Case("unet data=digits", UNet, (1, 8, 8), DIGITS),
    Case("unet on a CPU", UNet, (1, 28, 28), {**UNet.cpu_defaults}),
    Case("unet on a CPU", UNet, (3, 32, 32), {**UNet.cpu_defaults}),
    Case("unet", UNet, (1, 28, 28), {}),
    Case("unet", UNet, (3, 32, 32), {}),
    Case("unet", UNet, (3, 64, 64), {}),
    Case("unet", UNet, (3, 128, 128), {}),
    Case("unet1d", UNet, (2, 128), SEQUENCES),
    Case("unet1d", UNet, (2, 1024), SEQUENCES),
    Case("unet3d", UNet3D, (3, 16, 64, 64), {}),
    Case("iddpm_unet", IDDPMUNet, (3, 32, 32), {}),
    Case("iddpm_unet model.num_res_blocks=3", IDDPMUNet, (3, 32, 32), {"num_res_blocks": 3}, 2),
    Case("iddpm_unet", IDDPMUNet, (3, 64, 64), {}),
    Case("iddpm_unet, guided-diffusion's of ImageNet 64", IDDPMUNet, (3, 64, 64), ADM, 2),
)


def cost(case: Case) -> tuple[int, int]:
    """Return the parameters, and the operations of a forward and a backward pass per item."""
    channels, *size = case.shape
    with torch.device("meta"):
        outputs = case.factor * channels
        network = case.network(channels, outputs, tuple(size), None, False, **case.arguments)
    return num_parameters(network), operations(network, case.shape)


def num_parameters(network: nn.Module) -> int:
    """Return the number of parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def operations(network: Network, shape: tuple[int, ...], *, backward: bool = True) -> int:
    """Return the floating-point operations per item of a network on the device "meta".

    Args:
        network: the network; a class-conditional one is called with a label.
        shape: (channels, *spatial) of an item.
        backward: include the backward pass.
    """
    with torch.device("meta"), torch.set_grad_enabled(backward):
        x, t = torch.zeros(1, *shape), torch.zeros(1)
        y = None if network.num_classes is None else torch.zeros(1, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            output = network(x, t) if y is None else network(x, t, y)
            if backward:
                output.sum().backward()
    return counter.get_total_flops()


def main() -> None:
    """Print the table."""
    print("| `model=` | data | parameters | GFLOP per item |\n|---|---|---|---|")
    for case in CASES:
        parameters, operations = cost(case)
        shape = "x".join(map(str, case.shape))
        print(f"| {case.options} | {shape} | {parameters / 1e6:.1f} M | {operations / 1e9:.1f} |")


if __name__ == "__main__":
    main()
