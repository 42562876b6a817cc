"""Cost of a training step outside of the convolutions: few operations, few reads by the host."""

import pytest
import torch

from ddpm.diffusion import DiffusionLoss, GaussianDiffusion, PredNoise, cosine
from ddpm.models import IDDPMUNet
from ddpm.training.loop import TrainingLoop
from ddpm.training.meter import Meter
from scripts.operations import Operations
from tests.training.test_trainer import METADATA, Points, folder, trainer

MOST = 850
NOT_COMPUTED = ("profiler.", "aten.promote_types", "aten._unsafe_view")


class Images(Points):
    """Data set of random 32x32 images with three channels."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.values = torch.randn(8, 3, 32, 32, generator=generator)
        self.shape = (3, 32, 32)
        self.codec = type(self.codec)(self.shape)


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """Return the names of the operations of each step of a training loop, before the first log."""
    loss = DiffusionLoss(GaussianDiffusion(cosine(num_steps=1000), PredNoise()))
    network = IDDPMUNet(3, 3, (32, 32), model_channels=32, channel_mult=(1, 2, 2))
    options = {"batch_size": 2, "max_steps": 4, "log_every": 100, "clip_grad_norm": 1.0}
    training = trainer(loss, network, Images(), **options)
    mode, per_step = Operations(), []
    begin = training.accumulate_gradient

    def accumulate_gradient(batches):
        per_step.append(mode.names)
        mode.names = []
        return begin(batches)

    training.accumulate_gradient = accumulate_gradient
    run = folder(tmp_path_factory.mktemp("run") / "a")
    with mode:
        TrainingLoop(training, run, METADATA).train()
    return per_step[2:]  # the first step also creates the optimizer's state


def test_number_of_operations_of_a_step(steps):
    assert len(steps) == 2
    for names in steps:
        computed = [name for name in names if not name.startswith(NOT_COMPUTED)]
        assert len(computed) <= MOST
        assert sum("_foreach_lerp_" in name for name in computed) == 1  # the moving average
        assert sum("_fused_adamw_" in name for name in computed) == 1


def test_the_host_reads_one_number_per_step(steps):
    """The norm of the gradient, which decides whether the gradient is used."""
    for names in steps:
        assert sum("_local_scalar_dense" in name for name in names) == 1


def test_a_step_costs_the_meter_no_operation():
    training = trainer()
    meter = Meter(training.accelerator, 4)
    with Operations() as mode:
        for _ in range(3):
            meter.add(torch.ones(2, 4), torch.tensor([[0, 1, 2, 3]] * 2))
    computed = [name for name in mode.names if "ones" not in name and "lift_fresh" not in name]
    assert computed == []
