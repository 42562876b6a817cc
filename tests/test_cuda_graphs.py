"""Calls of a network by CUDA graphs, with an emulated record: a replay computes again."""

from types import SimpleNamespace

import pytest
import torch

from ddpm.arithmetic import Arithmetic
from ddpm.data import ImageCodec
from ddpm.diffusion import GaussianDiffusion, PredX0, cosine
from ddpm.distributed import cuda_graphs
from ddpm.distributed.cuda_graphs import MAX_GRAPHS, use_graphs
from ddpm.models import UNet
from ddpm.noise import SampleNoise
from ddpm.pipeline import build_pipeline
from ddpm.runs import tuning
from ddpm.samplers import UniPC


@pytest.fixture
def recorded(monkeypatch):
    """Emulate the record; a list of the devices, one per graph."""
    devices = []

    def record(run, device, pool):
        assert pool == "pool"
        devices.append(device)
        output = run()

        def replay():
            output.copy_(run())

        return output, replay

    monkeypatch.setattr(cuda_graphs, "_pool", lambda: "pool")
    monkeypatch.setattr(cuda_graphs, "_record", record)
    return devices


@pytest.fixture
def network():
    torch.manual_seed(0)
    return UNet(1, 1, (8, 8), dim=8, dim_mults=[1, 2], num_classes=3, self_condition=True).eval()


def arguments(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, condition = (torch.randn(size, 1, 8, 8, generator=generator) for _ in range(2))
    time = torch.randint(0, 100, (size,), generator=generator)
    labels = torch.randint(0, 3, (size,), generator=generator)
    return (x, time), {"y": labels, "x_self_cond": condition}


def test_outputs_are_those_of_plain_calls_and_stay(network, recorded):
    inputs = [arguments(2, seed) for seed in range(3)]
    with torch.inference_mode():
        expected = [network(*args, **kwargs) for args, kwargs in inputs]
        use_graphs(network)
        outputs = [network(*args, **kwargs) for args, kwargs in inputs]
    assert recorded == [torch.device("cpu")]
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
    assert not torch.equal(outputs[0], outputs[1])


def test_each_kind_of_call_has_a_graph_until_there_are_too_many(network, recorded):
    calls = use_graphs(network)
    (x, time), others = arguments(2)
    with torch.inference_mode():
        network(x, time, **others)
        network(x, time.float(), **others)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x, time, **others)
    with torch.no_grad():
        network(x, time, **others)
    assert len(recorded) == MAX_GRAPHS == 4 and calls.error is None
    with torch.inference_mode():
        args, kwargs = arguments(3)
        plain = network._call_impl(*args, **kwargs)
        assert torch.equal(network(*args, **kwargs), plain)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(network._call_impl(x, time, **others), half)
    assert len(recorded) == MAX_GRAPHS


def test_calls_with_gradients_are_plain(network, recorded):
    use_graphs(network)
    args, kwargs = arguments(2)
    network(*args, **kwargs).sum().backward()
    assert recorded == []


def test_weights_may_change_in_place_and_move(network, recorded):
    args, kwargs = arguments(2)
    use_graphs(network)
    with torch.no_grad():
        network(*args, **kwargs)
        network.final_conv.bias.add_(1)
        assert torch.equal(network(*args, **kwargs), network._call_impl(*args, **kwargs))
        assert len(recorded) == 1
        network.to(torch.float64)
        network.to(torch.float32)
        assert torch.equal(network(*args, **kwargs), network._call_impl(*args, **kwargs))
    assert len(recorded) == 2


def test_a_kind_that_cannot_be_recorded_is_called_plainly(network, recorded, monkeypatch):
    def record(*_):
        tried.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    tried, (args, kwargs) = [], arguments(2)
    monkeypatch.setattr(cuda_graphs, "_record", record)
    calls = use_graphs(network)
    with torch.inference_mode():
        expected = network._call_impl(*args, **kwargs)
        for _ in range(3):
            assert torch.equal(network(*args, **kwargs), expected)
    assert tried == [1] and "capturing" in str(calls.error)


def test_samples_are_those_of_plain_calls(recorded):
    # Without clipping and with a network that predicts x0, its outputs are the sampler's history.
    torch.manual_seed(0)
    network = UNet(1, 1, (8, 8), dim=8, dim_mults=[1, 2])
    pipeline = build_pipeline(
        network,
        GaussianDiffusion(cosine(num_steps=50), PredX0()),
        UniPC(steps=6, order=3, clip="none"),
        ImageCodec((1, 8, 8)),
        device=torch.device("cpu"),
    )
    noise = SampleNoise([1, 2])
    x = noise.draw((1, 8, 8))
    expected = pipeline.sample(x, noise)
    use_graphs(network)
    assert torch.equal(pipeline.sample(x, noise), expected)
    assert len(recorded) == 1


class Work:
    """Network calls with given durations and predictions, without graphs and with them."""

    def __init__(self, network, values):
        self.network, self.values, self.calls = network, values, 100
        denoiser = SimpleNamespace(needs_gradients=False)
        self.pipeline = SimpleNamespace(device=torch.device("cuda"), denoiser=denoiser)

    def seconds(self, duration=1.0):
        return (2.0, 0.5)[self.network._compiled_call_impl is not None]

    def predictions(self):
        args, kwargs = arguments(2)
        with torch.inference_mode():
            self.network(*args, **kwargs)
        return [torch.ones(2) * self.values[self.network._compiled_call_impl is not None]]


@pytest.mark.parametrize(
    ("values", "compile", "used", "line"),
    [
        ((1.0, 1.0), "auto", True, "CUDA graphs: true (recorded: 500 ms per call after 0 s"),
        ((1.0, 1.1), "auto", False, "CUDA graphs: false (recorded: 500 ms per call after 0 s"),
        ((1.0, 1.0), False, False, None),
    ],
)
def test_a_trial_on_a_gpu_chooses(network, recorded, capsys, values, compile, used, line):
    session = gpu_session(network)
    tuning.choose_compilation(session, lambda: Work(network, values), compile)
    assert (network._compiled_call_impl is not None) == used
    out = capsys.readouterr().out
    assert out.startswith(line) if line else out == ""


def test_a_network_that_cannot_be_recorded_has_the_reason(network, recorded, capsys, monkeypatch):
    def record(*_):
        raise RuntimeError("operation not permitted\n...")

    monkeypatch.setattr(cuda_graphs, "_record", record)
    session = gpu_session(network)
    tuning.choose_compilation(session, lambda: Work(network, (1.0, 1.0)), "auto")
    assert network._compiled_call_impl is None
    assert capsys.readouterr().out == "CUDA graphs: false (it fails: operation not permitted)\n"


def gpu_session(network):
    device = torch.device("cuda")
    model = SimpleNamespace(network=network, autocast=Arithmetic(device, "no"))
    accelerator = SimpleNamespace(is_main_process=True, num_processes=1, device=device)
    return SimpleNamespace(model=model, accelerator=accelerator)
