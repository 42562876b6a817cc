"""Cost of a step outside of the network: few tensor operations, no read by the host."""

import pytest
import torch

from ddpm.diffusion import Clipping, Denoiser, GaussianDiffusion, cosine
from ddpm.samplers import DDIM, DDPM, DPMpp, UniPC
from scripts.operations import Operations
from tests.oracle import OBJECTIVES

MOST = 10
SAMPLERS = {
    "ddim": DDIM(steps=6),
    "ddim, eta 1": DDIM(steps=6, eta=1.0),
    "ddim, log_snr": DDIM(steps=6, spacing="log_snr"),
    "dpmpp": DPMpp(steps=6),
    "unipc": UniPC(steps=6),
    "ddpm": DDPM(steps=6),
    "ddpm, fixed_large": DDPM(steps=6, variance="fixed_large"),
}


def operations_of_steps(sampler, objective):
    """Return the names of the operations of each step, without those of the network."""
    mode, steps = Operations(), []

    def network(x_t, time):
        mode.active = False
        output = torch.sin(x_t)
        mode.active = True
        return output

    def randn_like(x):
        mode.active = False
        noise = torch.randn_like(x)
        mode.active = True
        return noise

    def on_step(done, total, x):
        steps.append(mode.names)
        mode.names = []

    denoiser = Clipping(Denoiser(network, GaussianDiffusion(cosine(num_steps=100), objective())))
    x = torch.ones(2, 1, 4)
    with mode:
        sampler.sample(denoiser, x, randn_like=randn_like, on_step=on_step)
    return [names for names in steps if names]  # a step with two calls reports twice


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_step_takes_few_operations_and_no_read_by_the_host(name, objective):
    steps = operations_of_steps(SAMPLERS[name], OBJECTIVES[objective])
    assert len(steps) == 6
    for names in steps:
        assert len(names) <= MOST, names
        assert not {name for name in names if "_local_scalar_dense" in name or "item" in name}
