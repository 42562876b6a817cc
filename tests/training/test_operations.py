"""Cost of a training step outside of the convolutions: few operations, no reads by the host."""

import gc
import importlib
from collections import deque

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm.diffusion import DiffusionLoss, GaussianDiffusion, PredNoise, cosine
from ddpm.distributed.consensus import Agreed, PostedStatus
from ddpm.models import IDDPMUNet
from ddpm.training import LogitNormal, LogNormal, LossSecondMoment, Stratified, Uniform
from ddpm.training.loop import TrainingLoop
from ddpm.training.meter import Meter
from ddpm.training.run import Run
from scripts.operations import Operations
from tests.training.test_trainer import METADATA, Points, folder, trainer

MOST = 850
NOT_COMPUTED = ("profiler.", "aten.promote_types", "aten._unsafe_view")


class Images(Points):
    """Data set of random 32x32 images with three channels."""

    def __init__(self, num_classes=None):
        super().__init__(num_classes=num_classes)
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


class Scale(nn.Module):
    """Network that multiplies its input by a number."""

    null_label = 10

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, t, y=None, x_self_cond=None):
        return self.scale * x


class StopError(Exception):
    """End of a training loop that has not reached its last step."""


class Copies(TorchDispatchMode):
    """Records copies from the host to the meta device that wait for the device.

    Attributes:
        waiting: names of their operations.
    """

    def __init__(self):
        super().__init__()
        self.waiting = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        source = args[1] if str(func).startswith("aten.copy_") else args[0] if args else None
        result = func(*args, **kwargs)
        if str(func).startswith(("aten.copy_", "aten._to_copy")):
            to_device = result.device.type == "meta" and source.device.type == "cpu"
            if to_device and not (kwargs.get("non_blocking") or True in args[2:3]):
                self.waiting.append(str(func))
        return result


@pytest.mark.parametrize(
    "timesteps", [Uniform, Stratified, LogitNormal, LogNormal, LossSecondMoment]
)
def test_the_host_does_not_wait_for_the_device(tmp_path, monkeypatch, timesteps):
    """Meta tensors have no values: reading one is an error.

    The status of a step is copied to the host while the device computes the next one.
    """
    monkeypatch.setattr(Accelerator, "device", torch.device("meta"))
    optimizers = importlib.import_module("torch.optim.optimizer")
    monkeypatch.setattr(optimizers, "_get_fused_kernels_supported_devices", lambda: ["meta"])
    sizes = {"num_res_blocks": 1, "channel_mult": (1,), "attention_resolutions": (1,)}
    network = IDDPMUNet(3, 6, (32, 32), 11, True, model_channels=32, dropout=0.1, **sizes)
    bound = {"variance": "learned_range", "loss": "hybrid"}
    options = bound if timesteps is Uniform else {"offset_noise": 0.1}
    options |= {"label_dropout": 0.1, "self_condition": True}
    objective = PredNoise(min_snr_gamma=5)
    loss = DiffusionLoss(GaussianDiffusion(cosine(num_steps=1000), objective, **options))
    network = network if timesteps is Uniform else Scale()
    training = trainer(loss, network, Images(10), max_steps=200, log_every=100, clip_grad_norm=1.0)
    training.timesteps = timesteps(loss.diffusion.schedule)
    events, begin, update = [], training.accumulate_gradient, training.optimizer.step

    def read(_):
        events.append("read")
        return Agreed(finite=True, stop=False, failed=False)

    def accumulate_gradient(batches):
        if training.step == 2:
            raise StopError
        copies.waiting.clear()  # the first step also copies tables, once
        events.append("gradient")
        return begin(batches)

    copies = Copies()
    monkeypatch.setattr(PostedStatus, "read", read)
    monkeypatch.setattr(training, "conditions_itself", lambda micro: training.step == 1)
    training.accumulate_gradient = accumulate_gradient
    training.optimizer.step = lambda: (events.append("update"), update())
    with pytest.raises(StopError), copies:
        TrainingLoop(training, folder(tmp_path / "a"), METADATA).train()
    first, later = ["gradient", "update"], ["gradient", "read", "update"]
    assert events == first + later and copies.waiting == []
    with pytest.raises(RuntimeError, match="meta"):
        float(next(network.parameters()).detach().sum())


def test_a_step_costs_the_meter_no_operation():
    training = trainer()
    meter = Meter(training.accelerator, 4)
    with Operations() as mode:
        for _ in range(3):
            meter.add(torch.ones(2, 4), torch.tensor([[0, 1, 2, 3]] * 2))
    computed = [name for name in mode.names if "ones" not in name and "lift_fresh" not in name]
    assert computed == []


@pytest.mark.parametrize("delayed", [False, True])
def test_the_memory_of_a_training_does_not_grow(tmp_path, monkeypatch, delayed):
    """The number of tensors is the same at the same place between two logs."""
    training = trainer(max_steps=11, log_every=4, on_nonfinite="skip")
    loop, counts = TrainingLoop(training, folder(tmp_path / "a"), METADATA), []
    loop.updates.delayed, begin = delayed, training.accumulate_gradient

    def accumulate_gradient(batches):
        if training.step in (6, 10):
            counts.append(sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects()))
        return begin(batches)

    monkeypatch.setattr(Run, "plot", lambda _: None)
    training.loss.calls = deque(maxlen=0)
    training.accumulate_gradient = accumulate_gradient
    loop.train()
    assert len(counts) == 2 and counts[0] == counts[1]
