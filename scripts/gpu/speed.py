"""Part 3: speed of training and sampling of improved-diffusion's CIFAR-10 network."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ddpm import diffusion as d
from ddpm import models
from ddpm.data import ImageCodec
from ddpm.data.images import PixelSet
from ddpm.distributed import devices
from ddpm.distributed.cuda_graphs import use_graphs
from ddpm.distributed.trials import relative_distance
from ddpm.noise import SampleNoise
from ddpm.training import Trainer
from ddpm.training.trainer import TrainerOptions
from scripts.gpu.check import Check, Result, Setting, SkippedError, require
from scripts.gpu.improved_style import ImprovedStyle
from scripts.gpu.machine import MATMUL, peak
from scripts.operations import Operations
from scripts.training_steps import TrainingSteps

SIZE = 32
FLOPS = 50.3  # GFLOP per image, forward and backward, of the network at full width
WAITS = 0  # synchronisations of a step


class Noise(PixelSet):
    """Random images in memory, as many as a feed needs, mirrored at random."""

    def __init__(self, count: int) -> None:
        self._set_up(ImageCodec((3, SIZE, SIZE)), flip=True)
        generator = torch.Generator().manual_seed(0)
        shape = (count, 3, SIZE, SIZE)
        self._set_pixels(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))


def network(setting: Setting) -> nn.Module:
    """Return improved-diffusion's network for CIFAR-10: 128 channels, 3 blocks, dropout 0.3."""
    torch.manual_seed(0)
    return models.IDDPMUNet(
        3,
        6,
        (SIZE, SIZE),
        model_channels=setting.size(128, 32),
        num_res_blocks=setting.size(3, 1),
        channel_mult=(1, 2, 2, 2),
        attention_resolutions=(2, 4),
        dropout=0.3,
    )


def process() -> d.GaussianDiffusion:
    """Return that network's process: 4,000 steps, cosine, hybrid loss."""
    return d.GaussianDiffusion(
        d.cosine(num_steps=4000),
        d.PredNoise(),
        variance="learned_range",
        loss="hybrid",
        rescale_timesteps=True,
    )


def trainer(setting: Setting, batch: int) -> Trainer:
    """Return a trainer in bf16."""
    accelerator = devices.accelerator(
        "cuda" if setting.device == "cuda" else "cpu", "bf16", key="p"
    )
    options = TrainerOptions(batch_size=batch, max_steps=10**6, precision="bf16", lr_warmup=0)
    data = Noise(max(1024, 2 * batch))
    return Trainer(network(setting), process(), data, accelerator, 0, options=options)


def wait(setting: Setting) -> None:
    """Wait until the GPU is idle."""
    if setting.device == "cuda":
        torch.cuda.synchronize()


class Steps(TrainingSteps):
    """Training steps in bf16."""

    def __init__(self, setting: Setting, batch: int) -> None:
        super().__init__(trainer(setting, batch))
        self.setting, self.batch = setting, batch

    def timed(self, count: int) -> float:
        """Return the mean duration of ``count`` steps in seconds."""
        return seconds(self.setting, partial(self.take, count)) / count


def seconds(setting: Setting, work: Callable[[], object]) -> float:
    """Return the duration of a call in seconds, including its work on the GPU."""
    wait(setting)
    began = time.perf_counter()
    work()
    wait(setting)
    return time.perf_counter() - began


class Phases:
    """Spans of named parts of a step, by events on the GPU or by the clock.

    Attributes:
        spans: for each name, begins and ends.
    """

    def __init__(self, setting: Setting) -> None:
        self.on_gpu = setting.device == "cuda"
        self.spans: list[tuple[str, Any, Any]] = []

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its span recorded at each call."""

        def recorded(*args: Any, **kwargs: Any) -> Any:
            begin = self._now()
            result = function(*args, **kwargs)
            self.spans.append((name, begin, self._now()))
            return result

        return recorded

    def _now(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, steps: int) -> dict[str, float]:
        """Return the time of each part in a step."""
        total: Counter[str] = Counter()
        for name, begin, end in self.spans:
            total[name] += begin.elapsed_time(end) if self.on_gpu else (end - begin) * 1000
        return {name: took / steps for name, took in total.items()}


def instrument(steps: Steps) -> Phases:
    """Record the duration of the parts of each further step."""
    phases, training = Phases(steps.setting), steps.trainer
    accelerator, optimizer = training.accelerator, training.optimizer
    training._losses = phases.wrap("forward", training._losses)
    accelerator.backward = phases.wrap("backward", accelerator.backward)
    training._clip_gradient = phases.wrap("optimizer", training._clip_gradient)
    optimizer.step = phases.wrap("optimizer", optimizer.step)
    training.ema.update = phases.wrap("EMA", training.ema.update)
    return phases


def kernels(setting: Setting, work: Callable[[], object]) -> float:
    """Return the milliseconds that the GPU is busy with kernels and copies during a call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        work()
        wait(setting)
    return sum(each.self_device_time_total for each in trace.key_averages()) / 1000


def matmul(setting: Setting) -> Result:
    """Measure the peak of bf16 matrix products, which speeds are compared with."""
    side, count = (MATMUL, 20) if setting.device == "cuda" else (512, 5)
    a, b = (torch.randn(side, side, device=setting.device, dtype=torch.bfloat16) for _ in "ab")
    took = min(
        seconds(setting, lambda: [torch.mm(a, b) for _ in range(count)]) / count for _ in range(3)
    )
    measured = 2 * side**3 / took / 1e12
    stated = peak(torch.cuda.get_device_name()) if setting.device == "cuda" else None
    setting.shared["peaks"] = measured, stated
    comparison = "unknown" if stated is None else f"{stated:.0f}, {measured / stated:.0%} reached"
    return Result(f"{measured:.4g} TFLOP/s, data sheet {comparison}", {"measured": measured})


def flops(setting: Setting) -> Result:
    """Count the operations of an image, forward and backward, by torch's counter."""
    net, batch = network(setting).to(setting.device), 4
    x = torch.randn(batch, 3, SIZE, SIZE, device=setting.device)
    t = torch.zeros(batch, dtype=torch.int64, device=setting.device)
    with FlopCounterMode(display=False) as counter:
        net(x, t).sum().backward()
    each = counter.get_total_flops() / batch / 1e9
    setting.shared["flops"] = each
    require(setting.small or abs(each / FLOPS - 1) < 0.05, f"{each:.2f} GFLOP")
    return Result(
        f"{each:.2f} GFLOP per image, {sum(p.numel() for p in net.parameters()):,} weights"
    )


def training(batch: int, setting: Setting) -> Result:
    """Measure images per second, the share of the peak, the split of a step, and the memory."""
    batch = setting.size(batch, max(batch // 128, 1))
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    steps = Steps(setting, batch)
    warm, count = setting.size(10, 1), setting.size(40, 2)
    steps.take(warm)
    each = min(steps.timed(count) for _ in range(setting.size(3, 1)))
    speed = batch / each
    gflops = setting.shared.get("flops") or FLOPS
    phases = instrument(steps)
    whole = steps.timed(count) * 1000
    split = phases.milliseconds(count)
    if setting.device == "cuda":
        split["waiting"] = max(whole - kernels(setting, partial(steps.take, 3)) / 3, 0.0)
        memory = torch.cuda.max_memory_allocated() / 2**30
    else:
        split["waiting"], memory = max(whole - sum(split.values()), 0.0), None
    done = speed * gflops / 1000
    detail = f"{speed:.4g} img/s, {each * 1000:.1f} ms per step, {done:.3g} TFLOP/s"
    measured, stated = setting.shared.get("peaks", (None, None))
    if measured:
        detail += f" ({done / measured:.1%} of the measured peak"
        detail += f", {done / stated:.1%} of the data sheet's)" if stated else ")"
    parts = ", ".join(f"{name} {took:.1f}" for name, took in split.items())
    detail += f"; ms: {parts}"
    detail += "" if memory is None else f"; peak memory {memory:.2f} GiB"
    setting.shared[f"speed {batch}"] = speed
    data = {"images_per_second": speed, "split": split, "tflops": done, "gib": memory}
    return Result(detail, data)


def synchronisations(setting: Setting) -> Result:
    """Count the synchronisations of a step with the GPU, without those of distributed calls."""
    steps, count = Steps(setting, setting.size(32, 2)), setting.size(4, 1)
    steps.take(setting.size(3, 1))
    if setting.device == "cpu":
        with Operations() as operations:
            steps.take(count)
        reads = operations.reads / count
        return Result(f"{reads:g} reads of single values per step, of any tensor", {"reads": reads})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            steps.take(count)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [each for each in caught if "synchronizing CUDA operation" in str(each.message)]
    places = Counter(f"{each.filename.rpartition('/')[2]}:{each.lineno}" for each in waits)
    shown = ", ".join(f"{place} x{n / count:g}" for place, n in places.most_common(6))
    detail = f"{len(waits) / count:g} per step ({shown})"
    require(len(waits) / count <= WAITS, detail)
    return Result(detail, {"synchronisations": len(waits) / count, "places": dict(places)})


def beside(batch: int, setting: Setting) -> Result:
    """Train the same network on the same batches in improved-diffusion's style."""
    batch = setting.size(batch, max(batch // 128, 1))
    net = network(setting).to(setting.device).train()
    theirs = ImprovedStyle(net, process().schedule, setting.device, torch.bfloat16)
    images = Noise(max(256, batch))
    raw, _ = images.fetch(range(batch), range(batch))
    count = setting.size(20, 1)

    def work() -> None:
        for _ in range(count):
            theirs.step(raw)

    work()
    speed = batch * count / min(seconds(setting, work) for _ in range(setting.size(3, 1)))
    ours = setting.shared.get(f"speed {batch}")
    if ours is None:
        raise SkippedError("our own speed was not measured")
    detail = f"{speed:.4g} img/s; ours {ours / speed:.2f} times as fast"
    if setting.device == "cuda":
        require(ours > speed, detail)
    else:
        detail += ", which counts on a GPU only"
    return Result(detail, {"images_per_second": speed, "ratio": ours / speed})


@torch.inference_mode()
def sampling(setting: Setting) -> Result:
    """Measure calls of the network per second as the samplers make them, in bf16.

    On a GPU once by plain calls and once by CUDA graphs, which have to have the same outputs.
    """
    net = network(setting).to(setting.device).eval()
    details, data = [], {}
    for way in ("plain", "CUDA graphs") if setting.device == "cuda" else ("plain",):
        recorded = use_graphs(net) if way == "CUDA graphs" else None
        speeds = _calls_per_second(setting, net)
        texts = (f"batch {b}: {n:.1f} calls/s ({n * b:.4g} img/s)" for b, n in speeds.items())
        details.append(f"{way}: {', '.join(texts)}")
        data |= {f"{way} {batch}": calls for batch, calls in speeds.items()}
        if recorded is not None:
            details.append(f"relative difference {_graph_error(setting, net):.2g}")
            require(recorded.error is None and recorded.count > 0, f"{details}; {recorded.error}")
    return Result("; ".join(details), data)


def _graph_error(setting: Setting, net: nn.Module) -> float:
    """Return the relative distance of outputs by graphs from those of plain calls, checked."""
    x = torch.randn(16, 3, SIZE, SIZE, device=setting.device)
    t = torch.full((16,), 2000, device=setting.device)
    with torch.autocast(setting.device, torch.bfloat16):
        outputs: list[Tensor] = [net(factor * x, t) for factor in (1.0, 2.0)]
        plain: list[Any] = [net._call_impl(factor * x, t) for factor in (1.0, 2.0)]
    difference = relative_distance(outputs, plain)
    require(difference < 0.01, f"outputs differ by {difference:.2g} from those of plain calls")
    return difference


def _calls_per_second(setting: Setting, net: nn.Module) -> dict[int, float]:
    """Return network calls per second for each size of the batch."""
    denoiser, speeds = d.Clipping(d.Denoiser(net, process())), {}
    for batch in (256, 16, 1):
        batch = setting.size(batch, min(batch, 2))
        x = torch.randn(batch, 3, SIZE, SIZE, device=setting.device)
        count = setting.size(60, 1)

        def calls(x: Tensor = x, count: int = count) -> None:
            for t in range(count):
                denoiser(x, 3999 - t)

        with torch.autocast(setting.device, torch.bfloat16):
            calls(x, 1)
            speeds[batch] = count / min(seconds(setting, calls) for _ in range(setting.size(3, 1)))
    return speeds


@torch.inference_mode()
def step_noise(setting: Setting) -> Result:
    """Measure the noise of a sampler step, and its ratio to one call of ``torch.randn``."""
    ratios = {}
    for batch, side in ((64, 256), (256, 32), (16, 32)):
        shape, count = (setting.size(batch, 2), 3, side, side), setting.size(50, 1)
        noise, x = SampleNoise(range(shape[0])), torch.empty(shape, device=setting.device)
        works: list[Callable[[], Tensor]] = [
            lambda x=x, noise=noise: noise.like(x),
            lambda x=x: torch.randn(x.shape, device=x.device),
        ]
        spans = []
        for work in works:
            work()
            spans.append(seconds(setting, lambda work=work, n=count: [work() for _ in range(n)]))
        ratios["x".join(map(str, shape))] = (spans[0] / count, spans[0] / spans[1])
    texts = [f"{k}: {1000 * s:.3f} ms, {r:.2f} times torch.randn" for k, (s, r) in ratios.items()]
    return Result(", ".join(texts), {name: ratio for name, (_, ratio) in ratios.items()})


CHECKS = [
    Check(3, "measured peak of bf16 matrix products", matmul, 3.0),
    Check(3, f"FLOPs of the CIFAR-10 network: {FLOPS} GFLOP per image within 5 %", flops, 3.0),
    Check(3, "training, batch 256, bf16", partial(training, 256), 25.0),
    Check(3, "training, batch 32, bf16", partial(training, 32), 12.0),
    Check(3, f"host synchronisations per step: at most {WAITS}", synchronisations, 5.0),
    Check(3, "sampling, by plain calls and by CUDA graphs", sampling, 20.0),
    Check(3, "noise of a sampler step", step_noise, 2.0),
    Check(3, "improved-diffusion's style, batch 32: ours is faster", partial(beside, 32), 15.0),
    Check(3, "improved-diffusion's style, batch 256: ours is faster", partial(beside, 256), 20.0),
]
