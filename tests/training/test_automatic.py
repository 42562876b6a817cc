"""Choice of precision and compilation: trials, their conditions, and their reasons."""

import math
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ddpm.diffusion import DiffusionLoss, GaussianDiffusion, PredNoise, cosine
from ddpm.distributed import devices, trials
from ddpm.distributed.trials import attempt, relative_distance
from ddpm.training import automatic
from ddpm.training.automatic import gradients, try_bf16, try_compiling
from tests.training.test_trainer import trainer

LONG, SHORT = 1e6, 10.0


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 1), nn.SiLU(), nn.Conv2d(8, 1, 1))

    def forward(self, x, t):
        return self.layers(x)


@pytest.fixture
def training():
    process = GaussianDiffusion(cosine(num_steps=4), PredNoise())
    torch.manual_seed(0)
    return trainer(DiffusionLoss(process), Small(), compile="auto", precision="auto")


def fake_seconds(monkeypatch, *seconds):
    left = list(seconds)
    monkeypatch.setattr(automatic, "seconds_per_step", lambda *_, **options: left.pop(0))
    return left


@pytest.mark.parametrize(
    ("device", "gpu", "expected"),
    [("cpu", True, "no"), ("cuda", True, "bf16"), ("cuda", False, "no")],
)
def test_precision_without_a_trial(monkeypatch, device, gpu, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu)
    assert devices.default_precision(torch.device(device)) == expected


def test_all_processes_use_the_precision_of_the_main_process(monkeypatch):
    answers = iter([["bf16"], AssertionError])
    monkeypatch.setattr(devices, "broadcast_object_list", lambda _: next(answers))
    assert devices.accelerator("cpu", "auto", key="p").mixed_precision == "bf16"


def test_kernels_of_a_gpu():
    cuda, before = torch.device("cuda"), torch.backends.cudnn.benchmark
    try:
        for precision, tf32 in (("bf16", "high"), ("no", "highest")):
            for deterministic in (True, False):
                devices.use_fast_kernels(cuda, precision, deterministic=deterministic)
                assert torch.backends.cudnn.benchmark == (not deterministic)
                assert torch.get_float32_matmul_precision() == tf32
    finally:
        torch.backends.cudnn.benchmark = before
        torch.set_float32_matmul_precision("highest")
    devices.use_fast_kernels(torch.device("cpu"), "bf16", deterministic=False)
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("precision", ["auto", "no", "bf16"])
def test_bf16_is_tried_on_a_cpu_with_its_instructions(monkeypatch, precision, fast):
    monkeypatch.setattr(automatic, "has_bf16_instructions", lambda: fast)
    made = trainer(precision=precision)
    assert automatic.tries_bf16(made) == (fast and precision == "auto")
    gpu = SimpleNamespace(
        options=made.options, accelerator=SimpleNamespace(device=torch.device("cuda"))
    )
    assert not automatic.tries_bf16(gpu)


def test_layouts():
    assert trainer().channels_last is False
    assert trainer(channels_last=True).layout is torch.channels_last


def test_bf16_is_used_where_it_is_faster_and_close(training, monkeypatch):
    for seconds, expected in (((1.0, 0.5), True), ((1.0, 0.97), False), ((1.0, 2.0), False)):
        left = fake_seconds(monkeypatch, 3.0, *seconds)  # of a glance first
        tried = try_bf16(training, lambda _: LONG)
        assert tried.use == expected and left == []
        assert tried.seconds == (min(seconds) if expected else 1.0)
    assert tried.line.startswith("precision: no (1e+03 ms per step, 2e+03 ms with bf16; gradients")
    fake_seconds(monkeypatch, 0.05)
    tried = try_bf16(training, lambda _: LONG, 0.1)
    start = "precision: bf16 (50 ms per step against 100 ms with float32; gradients differ by 0.0"
    assert tried.line.startswith(start)
    for difference in (0.2, math.nan):
        fake_seconds(monkeypatch, 0.05)
        monkeypatch.setattr(automatic, "relative_distance", lambda *_, value=difference: value)
        assert not try_bf16(training, lambda _: LONG, 0.1).use


def test_a_short_run_has_no_trial(training, monkeypatch):
    left = fake_seconds(monkeypatch, 1.0, 1.0)
    assert try_bf16(training, lambda one: SHORT * one) is None
    assert try_compiling(training, lambda one: SHORT * one) is None
    assert left == [] and training.network._compiled_call_impl is None


def test_the_gradients_of_bf16_are_compared(training):
    plain = gradients(training)
    with torch.autocast("cpu", torch.bfloat16):
        half = gradients(training)
    assert all(each.grad is None for each in training.network.parameters())
    assert (
        relative_distance(plain, plain) == 0
        and 0 < relative_distance(half, plain) < automatic._CLOSE_IN_HALF
    )
    assert math.isnan(relative_distance([plain[0] * math.nan, *plain[1:]], plain))
    assert relative_distance([-each for each in plain], plain) == pytest.approx(2)


def compiling(training, monkeypatch, change=0.0):
    """Replace torch.compile: the network then adds ``change`` to its output."""
    network = training.network

    def compiled():
        network._compiled_call_impl = lambda *a, **k: network._call_impl(*a, **k) * (1 + change)

    monkeypatch.setattr(network, "compile", compiled)


@pytest.mark.parametrize(
    ("seconds", "change", "left", "use"),
    [
        ((1.0, 0.5), 0.0, LONG, True),
        ((1.0, 0.96), 0.0, LONG, False),
        ((1.0, 0.5), 0.1, LONG, False),
        ((1.0, 0.5), math.nan, LONG, False),
        ((1.0, 0.5), 0.0, -LONG, False),
    ],
)
def test_compilation_is_used_where_it_pays(training, monkeypatch, seconds, change, left, use):
    """The last run is shorter than compiling takes."""
    monkeypatch.setattr(automatic, "WORTH_COMPILING", -math.inf)
    fake_seconds(monkeypatch, 3.0, *seconds)
    compiling(training, monkeypatch, change)
    training.batch_parts = 2
    tried = try_compiling(training, lambda _: left)
    assert tried.use == use == training.compile and training.batch_parts == (1 if use else 2)
    assert (training.network._compiled_call_impl is not None) == use
    assert tried.line.startswith(f"compile: {str(use).lower()} (")
    assert "; compiling takes 0 s and saves " in tried.line


def test_a_network_that_cannot_be_compiled(training, monkeypatch):
    def fail():
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(automatic, "WORTH_COMPILING", 0)
    fake_seconds(monkeypatch, 1.0, 1.0)
    compiling(training, monkeypatch)
    monkeypatch.setattr(automatic, "relative_distance", lambda *_: fail())
    tried = try_compiling(training, lambda _: LONG)
    assert tried == (False, 1.0, "compile: false (it fails: no compiler)")
    assert training.network._compiled_call_impl is None and training.compile is False


@pytest.mark.parametrize("reason", ["it fails: no g++ there", "it takes more than 5 min"])
def test_no_process_compiles_if_one_of_them_cannot(training, monkeypatch, reason):
    """The others would wait for it in the first step."""
    monkeypatch.setattr(automatic, "WORTH_COMPILING", 0)
    fake_seconds(monkeypatch, 1.0, 1.0, 0.5)
    compiling(training, monkeypatch)
    monkeypatch.setattr(trials, "gather", lambda _, own: [own, trials.Failure(reason)])
    tried = try_compiling(training, lambda _: LONG)
    assert tried == (False, 1.0, f"compile: false ({reason})")
    assert training.network._compiled_call_impl is None and training.compile is False


def test_compiling_has_a_time_limit(training, monkeypatch):
    monkeypatch.setattr(automatic, "WORTH_COMPILING", 0)
    monkeypatch.setattr(attempt, "__defaults__", (0.02,))
    fake_seconds(monkeypatch, 1.0, 1.0)
    network = training.network
    monkeypatch.setattr(network, "compile", lambda: time.sleep(60))
    tried = try_compiling(training, lambda _: LONG)
    assert tried.line == "compile: false (it takes more than 0 s)"
