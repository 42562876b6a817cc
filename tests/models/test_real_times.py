"""Networks at times between two timesteps."""

import pytest
import torch

from ddpm.models import IDDPMUNet, SimpleUNet, UNet, UNet3D
from tests.reference_cases import relative_error

NETWORKS = {
    "unet": lambda: UNet(1, 1, (8, 8), None, False, dim=8, dim_mults=(1, 2)),
    "learned": lambda: UNet(
        1, 1, (8, 8), None, False, dim=8, dim_mults=(1, 2), learned_sinusoidal_cond=True
    ),
    "fourier": lambda: UNet(
        1, 1, (8, 8), None, False, dim=8, dim_mults=(1, 2), random_fourier_features=True
    ),
    "unet1d": lambda: UNet(1, 1, (16,), None, False, dims=1, dim=8, dim_mults=(1, 2)),
    "iddpm_unet": lambda: IDDPMUNet(
        1,
        1,
        (8, 8),
        None,
        False,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(2,),
    ),
    "unet3d": lambda: UNet3D(1, 1, (4, 8, 8), None, False, dim=8, dim_mults=(1, 2)),
    "simple_unet": lambda: SimpleUNet(1, 1, (8, 8), None, False),
}
SIZES = {"unet1d": (16,), "unet3d": (4, 8, 8)}


LEARNED = ("learned", "fourier")  # their frequencies turn by whole periods from step to step


def outputs(name, *times):
    """Return the outputs of a network at times of the whole batch."""
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    for parameter in network.parameters():  # some networks begin with layers of zeros
        parameter.add_(0.02 * torch.randn_like(parameter))
    x = torch.randn(2, 1, *SIZES.get(name, (8, 8)))
    return [network(x, torch.full((2,), t)) for t in times]


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_continuous_in_time(name):
    whole, real, near = outputs(name, 10, 10.0, 10.001)
    assert torch.equal(whole, real)
    assert 0 < relative_error(near, whole) < 0.01


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in LEARNED])
def test_outputs_between_two_timesteps_are_near_both(name):
    low, middle, high = outputs(name, 10, 10.5, 11)
    distance = (high - low).norm()
    for end in (low, high):
        assert 0 < (middle - end).norm() < distance
