"""Calls of a network by CUDA graphs, with an emulated record: a replay computes again."""

from contextlib import nullcontext
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
    inputs = [arguments(2, seed) for seed in range(4)]
    with torch.inference_mode():
        expected = [network(*args, **kwargs) for args, kwargs in inputs]
        use_graphs(network)
        outputs = [network(*args, **kwargs) for args, kwargs in inputs]
    assert recorded == [torch.device("cpu")]
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
    assert not torch.equal(outputs[2], outputs[3])


def test_each_kind_of_call_has_a_graph_until_there_are_too_many(network, recorded):
    calls = use_graphs(network)
    (x, time), others = arguments(2)
    for count in (0, 1, 1):  # the first call of a kind is plain
        with torch.inference_mode():
            network(x, time, **others)
        assert calls.count == count
    for _ in range(2):
        with torch.inference_mode():
            network(x, time.float(), **others)
            with torch.autocast("cpu", torch.bfloat16):
                half = network(x, time, **others)
        with torch.no_grad():
            network(x, time, **others)
    assert calls.count == len(recorded) == MAX_GRAPHS == 4 and calls.error is None
    args, kwargs = arguments(3)
    with torch.inference_mode():
        for _ in range(2):
            assert torch.equal(network(*args, **kwargs), network._call_impl(*args, **kwargs))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(network._call_impl(x, time, **others), half)
    assert calls.count == MAX_GRAPHS


def test_weights_may_change_in_place(network, recorded):
    calls, (args, kwargs) = use_graphs(network), arguments(2)
    with torch.no_grad():
        before = [network(*args, **kwargs) for _ in range(2)][1]
        network.final_conv.bias.add_(1)
        torch.testing.assert_close(network(*args, **kwargs), before + 1)
    assert calls.count == 1


def test_calls_with_gradients_and_other_arguments_are_plain(network, recorded):
    calls, (args, kwargs) = use_graphs(network), arguments(2)
    for _ in range(2):
        network(*args, **kwargs).sum().backward()
        with torch.no_grad():
            network(*args, y=kwargs["y"], x_self_cond=None)
    assert calls.count == 0 and calls.error is None


def failing(monkeypatch, message):
    """Emulate a record that fails; a list of the failures."""
    failures = []

    def record(run, device, pool):
        failures.append(run())
        raise RuntimeError(message)

    monkeypatch.setattr(cuda_graphs, "_record", record)
    return failures


def test_nothing_is_recorded_after_a_failure(network, recorded, monkeypatch):
    failures = failing(monkeypatch, "operation not permitted when stream is capturing\n...")
    calls = use_graphs(network)
    with torch.inference_mode():
        for size in (2, 2, 2, 3, 3):
            args, kwargs = arguments(size)
            assert torch.equal(network(*args, **kwargs), network._call_impl(*args, **kwargs))
    assert len(failures) == 1
    assert calls.error == "operation not permitted when stream is capturing"


@pytest.mark.parametrize("plain", [True, False])
def test_memory_that_runs_out_is_freed(network, recorded, monkeypatch, plain):
    calls, (args, kwargs) = use_graphs(network), arguments(2)
    expected = network._call_impl(*args, **kwargs)
    run_out = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\n...")
    with torch.no_grad():
        for _ in range(2):
            network(*args, **kwargs)
        assert calls.count == 1
        graph = next(iter(calls._graphs.values()))
        if plain:  # of a new kind
            args, kwargs = arguments(3)
            expected = network._call_impl(*args, **kwargs)
            answers = iter([run_out, expected])

            def call(*_, **__):
                answer = next(answers)
                if isinstance(answer, Exception):
                    raise answer
                return answer

            monkeypatch.setattr(calls, "_call", call)
        else:
            monkeypatch.setattr(graph, "_replay", lambda: (_ for _ in ()).throw(run_out))
        assert torch.equal(network(*args, **kwargs), expected)
    assert calls.count == 0 and calls.error.startswith("CUDA out of memory")


def test_other_errors_are_raised(network, recorded):
    use_graphs(network)
    args, kwargs = arguments(2)
    with torch.no_grad():
        for _ in range(2):
            network(*args, **kwargs)
        with pytest.raises(IndexError):
            network(args[0], args[1], **{**kwargs, "y": kwargs["y"] + 100})


def test_a_failed_record_restores_the_stream(monkeypatch):
    """With the context of torch and a graph that CUDA has invalidated."""

    class Stream:
        def wait_stream(self, other):
            pass

    class Graph:
        def capture_begin(self, **_):
            pass

        def capture_end(self):
            raise RuntimeError("previous error during capture")

    def run():
        if streams[-1] is not streams[1]:  # not a warm-up
            raise RuntimeError("operation not permitted")

    streams = [Stream()]
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: streams[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: Capture())

    class Capture:
        """As torch.cuda.graph: the stream is left after the end of the capture."""

        def __enter__(self):
            streams.append(Stream())

        def __exit__(self, *_):
            Graph().capture_end()
            streams.pop()

    class Side:
        def __init__(self, stream):
            self.stream = stream

        def __enter__(self):
            streams.append(self.stream)

        def __exit__(self, *_):
            streams.append(streams[0])

    monkeypatch.setattr(torch.cuda, "stream", Side)
    with pytest.raises(RuntimeError, match="previous error"):
        cuda_graphs._record(run, torch.device("cuda"), None)
    assert len(streams) > 3 and streams[-1] is streams[0]


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
    failing(monkeypatch, "operation not permitted\n...")
    session = gpu_session(network)
    tuning.choose_compilation(session, lambda: Work(network, (1.0, 1.0)), "auto")
    assert network._compiled_call_impl is None
    assert capsys.readouterr().out == "CUDA graphs: false (it fails: operation not permitted)\n"


def gpu_session(network):
    device = torch.device("cuda")
    model = SimpleNamespace(network=network, autocast=Arithmetic(device, "no"))
    accelerator = SimpleNamespace(is_main_process=True, num_processes=1, device=device)
    return SimpleNamespace(model=model, accelerator=accelerator)
