"""Part 1: results of the GPU equal those of the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ddpm import diffusion as d
from ddpm import models
from ddpm.distributed.trials import relative_distance
from ddpm.inversion import invert
from ddpm.noise import SampleNoise, counter_normal
from ddpm.samplers import DDIM, DDPM
from ddpm.seeding import mix_array
from scripts.gpu.check import Check, Result, Setting, require

OUTPUT, GRADIENT = 1e-4, 1e-3  # relative error of vectors, float32 with TF32 off
HALF = {"bf16": 5e-2, "fp16": 2e-2}  # of outputs
LOSS, SAMPLES, NOISE = 1e-4, 1e-3, 1e-5


class Case(NamedTuple):
    """A network and the shape of its data."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    labels: bool = False
    self_condition: bool = False


def _unet(shape: tuple[int, ...], **options: Any) -> nn.Module:
    options = {"dim": 32, "dim_mults": (1, 2), "dims": len(shape) - 1, **options}
    return models.UNet(shape[0], shape[0], shape[1:], **options)


def _iddpm(shape: tuple[int, ...], **options: Any) -> nn.Module:
    sizes = {"model_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2)}
    options = {**sizes, "attention_resolutions": (2,), **options}
    return models.IDDPMUNet(shape[0], 2 * shape[0], shape[1:], **options)


def _unet3d(shape: tuple[int, ...], **options: Any) -> nn.Module:
    options = {"dim": 16, "dim_mults": (1, 2), "attn_heads": 2, "attn_dim_head": 32, **options}
    return models.UNet3D(shape[0], shape[0], shape[1:], **options)


IMAGE, SEQUENCE, VIDEO = (3, 16, 16), (2, 32), (1, 4, 16, 16)
CASES = {
    "unet": Case(lambda: _unet(IMAGE), IMAGE),
    "unet (rms, memory, self-conditioned, classes)": Case(
        lambda: _unet(IMAGE, block_norm="rms", num_mem_kv=4, self_condition=True, num_classes=5),
        IMAGE,
        labels=True,
        self_condition=True,
    ),
    "unet1d": Case(lambda: _unet(SEQUENCE, full_attn=False), SEQUENCE),
    "iddpm_unet": Case(lambda: _iddpm(IMAGE, num_classes=5), IMAGE, labels=True),
    "iddpm_unet (checkpointing)": Case(lambda: _iddpm(IMAGE, use_checkpoint=True), IMAGE),
    "iddpm_unet 1-D": Case(lambda: _iddpm(SEQUENCE), SEQUENCE),
    "iddpm_unet 3-D": Case(lambda: _iddpm(VIDEO), VIDEO),
    "iddpm_unet 3-D (average pooling)": Case(lambda: _iddpm(VIDEO, resblock_updown=True), VIDEO),
    "unet3d": Case(lambda: _unet3d(VIDEO), VIDEO),
    "unet3d (full)": Case(lambda: _unet3d(VIDEO, conv="full", block_norm="group"), VIDEO),
    "simple_unet": Case(lambda: models.SimpleUNet(3, 3, IMAGE[1:], width=16), IMAGE),
}


@contextmanager
def exact_float32() -> Iterator[None]:
    """Disable TF32, which has a 10-bit mantissa and is the default of convolutions."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def deterministic() -> Iterator[None]:
    """Enable deterministic algorithms, as ``trainer.deterministic`` does."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def distance(x: Tensor, reference: Tensor) -> float:
    """Return the norm of the difference over the norm of the reference; infinite for NaN."""
    far = relative_distance([x.detach().cpu()], [reference.detach().cpu()])
    return far if far == far else float("inf")


def network(case: Case) -> nn.Module:
    """Return the network of a case without the all-zero layers that it has before training."""
    torch.manual_seed(0)
    net = case.make()
    for parameter in net.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.05)
    return net


def inputs(case: Case, batch: int, device: str) -> tuple[dict[str, Tensor], Tensor]:
    """Return the arguments of a network, and a gradient of its outputs."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *case.shape, generator=generator)
    arguments = {"x": x, "t": torch.arange(batch) * 100 + 7}
    if case.labels:
        arguments["y"] = torch.arange(batch) % 5
    if case.self_condition:
        arguments["x_self_cond"] = torch.randn(x.shape, generator=generator)
    output_gradient = torch.randn(batch, 2 * case.shape[0], *case.shape[1:], generator=generator)
    return {name: value.to(device) for name, value in arguments.items()}, output_gradient.to(device)


def passes(net: nn.Module, case: Case, batch: int, device: str) -> tuple[Tensor, Tensor]:
    """Return outputs, and the gradient of all parameters as one vector."""
    arguments, output_gradient = inputs(case, batch, device)
    net.zero_grad()
    output = net(**arguments)
    output.backward(output_gradient[:, : output.shape[1]])
    gradients = [p.grad.flatten() for p in net.parameters() if p.grad is not None]
    return output.detach(), torch.cat(gradients)


def equal_to_cpu(case: Case, setting: Setting) -> Result:
    """Compare outputs and gradients in float32."""
    net, batch = network(case), setting.size(8, 2)
    expected, output_gradient = passes(net, case, batch, "cpu")
    with exact_float32():
        output, gradient = passes(net.to(setting.device), case, batch, setting.device)
    far = distance(output, expected), distance(gradient, output_gradient)
    detail = f"outputs {far[0]:.1e}, gradient {far[1]:.1e}"
    require(far[0] <= OUTPUT and far[1] <= GRADIENT, detail)
    return Result(detail, {"output": far[0], "gradient": far[1]})


def tf32(setting: Setting) -> Result:
    """Measure what the default for float32 convolutions, TF32, costs in accuracy."""
    case, batch = CASES["iddpm_unet"], setting.size(8, 2)
    net = network(case)
    expected, _ = passes(net, case, batch, "cpu")
    far = distance(passes(net.to(setting.device), case, batch, setting.device)[0], expected)
    require(far <= 1e-2, f"outputs {far:.1e}")
    return Result(f"outputs {far:.1e}", {"output": far})


def half(setting: Setting) -> Result:
    """Compare outputs under autocast with float32 on the CPU, for every network."""
    largest: dict[str, float] = {}
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if setting.device == "cpu":
        kinds.pop("fp16")
    for name, case in CASES.items():
        net = network(case).eval()
        with torch.inference_mode():
            expected = net(**inputs(case, 2, "cpu")[0])
            net = net.to(setting.device)
            for kind, dtype in kinds.items():
                with torch.autocast(setting.device, dtype):
                    output = net(**inputs(case, 2, setting.device)[0])
                far = distance(output, expected)
                largest[kind] = max(largest.get(kind, 0.0), far)
                require(far <= HALF[kind], f"{name} in {kind}: {far:.1e}")
    return Result(", ".join(f"{kind} at most {far:.1e}" for kind, far in largest.items()), largest)


def channels_last(setting: Setting) -> Result:
    """Compare the two layouts of images, forward and backward."""
    worst = 0.0
    for name, case in CASES.items():
        if len(case.shape) == 3:
            net = network(case).to(setting.device)
            with exact_float32():
                plain = passes(net, case, 2, setting.device)
                net = net.to(memory_format=torch.channels_last)  # pyright: ignore
                last = passes(net, case, 2, setting.device)
            far = max(distance(a, b) for a, b in zip(last, plain, strict=True))
            require(far <= GRADIENT, f"{name}: {far:.1e}")
            worst = max(worst, far)
    return Result(f"at most {worst:.1e}", {"distance": worst})


def same_bits(setting: Setting) -> Result:
    """Run every network twice under deterministic algorithms, in float32 and in bf16."""
    for name, case in CASES.items():
        net = network(case).to(setting.device)
        for enabled in (False, True):
            with deterministic(), torch.autocast(setting.device, torch.bfloat16, enabled=enabled):
                try:
                    batch = setting.size(4, 1)
                    first, second = (passes(net, case, batch, setting.device) for _ in range(2))
                except RuntimeError as error:
                    raise AssertionError(f"{name}: {error}") from error
            equal = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
            require(equal, f"{name}: different bits in the second run, bf16={enabled}")
    return Result(f"{len(CASES)} networks, float32 and bf16")


def _processes() -> Iterator[tuple[str, d.GaussianDiffusion]]:
    mask = torch.zeros(3, 1, 1, dtype=torch.bool)
    mask[2] = True
    for schedule in (d.linear(), d.cosine(), d.sigmoid()):
        for objective in (d.PredNoise(), d.PredX0(loss="l1"), d.PredV(min_snr_gamma=5.0)):
            yield "simple", d.GaussianDiffusion(schedule, objective)
    yield (
        "hybrid",
        d.GaussianDiffusion(d.cosine(), d.PredNoise(), variance="learned_range", loss="hybrid"),
    )
    yield "bound", d.GaussianDiffusion(d.linear(), d.PredX0(), mask, loss="vlb")


def losses(setting: Setting) -> Result:
    """Compare losses and their gradients with respect to the network output."""
    worst = 0.0
    for kind, process in _processes():
        generator = torch.Generator().manual_seed(2)
        x0, noise = torch.randn(2, 16, 3, 8, 8, generator=generator).clamp(-1, 1).unbind()
        t = torch.randint(0, 1000, (16,), generator=generator)
        t[0] = 0
        channels = process.output_channels(3)
        prediction = torch.randn(16, channels, 8, 8, generator=generator)
        results = []
        for device in ("cpu", setting.device):
            output = prediction.to(device).requires_grad_()
            clean, at, eps = (value.to(device) for value in (x0, t, noise))
            each = d.DiffusionLoss(process)(lambda *_, output=output: output, clean, at, eps)
            each.mean().backward()
            assert output.grad is not None
            results.append((each, output.grad))
        far = max(distance(b, a) for a, b in zip(*results, strict=True))
        require(far <= LOSS, f"{kind}, {type(process.objective).__name__}: {far:.1e}")
        worst = max(worst, far)
    return Result(f"at most {worst:.1e}", {"distance": worst})


def _perfect(process: d.GaussianDiffusion, mean: float, spread: float) -> Callable[..., Tensor]:
    """Return the exact conditional mean of x0 for normal data as a network."""

    def model(x_t: Tensor, t: Tensor) -> Tensor:
        a, s = process.schedule.scales(t, x_t)
        return (mean * s**2 + a * x_t * spread**2) / (s**2 + (a * spread) ** 2)

    return model


def _drawn_on_cpu(noise: SampleNoise, x: Tensor) -> Tensor:
    """Return the next noise in the shape of ``x``, which is the same on both devices."""
    return noise.draw(tuple(x.shape[1:])).to(x.device)


def samplers(setting: Setting) -> Result:
    """Compare samples of the same noise, and their mean and spread with those of the data."""
    process = d.GaussianDiffusion(d.cosine(), d.PredX0())
    model, worst = _perfect(process, 0.3, 0.2), 0.0
    denoiser = d.Denoiser(model, process)
    count = setting.size(64, 16)
    for sampler in (DDPM(steps=100), DDIM(steps=50), DDIM(steps=50, eta=1.0, spacing="trailing")):
        samples = []
        for device in ("cpu", setting.device):
            noise = SampleNoise(range(count))
            x = noise.draw((3, 8, 8)).to(device)
            samples.append(sampler.sample(denoiser, x, randn_like=partial(_drawn_on_cpu, noise)))
        far = distance(samples[1], samples[0])
        mean, spread = float(samples[1].mean()), float(samples[1].std())
        what = f"{type(sampler).__name__}: {far:.1e}, mean {mean:.3f}, spread {spread:.3f}"
        good = far <= SAMPLES and abs(mean - 0.3) < 0.03 and abs(spread - 0.2) < 0.03
        require(good, what)
        worst = max(worst, far)
    back = invert(DDIM(steps=50), denoiser, samples[1], start=999)
    require(bool(back.isfinite().all()), "the inversion is not finite")
    return Result(f"at most {worst:.1e}; mean {mean:.3f} of 0.3, spread {spread:.3f} of 0.2")


def step_noise(setting: Setting) -> Result:
    """Compare the noise of sampler steps with that of the CPU, and rows of it with others."""
    keys = mix_array(np.arange(64), 0)
    host, noise = (counter_normal(keys, IMAGE, place) for place in ("cpu", setting.device))
    far = distance(noise, host)
    require(far <= NOISE, f"differs by {far:.1e}")
    alone = counter_normal(keys[5:6], IMAGE, setting.device)
    require(bool(torch.equal(alone, noise[5:6])), "a sample depends on its batch")
    mean, spread = float(noise.mean()), float(noise.std())
    require(abs(mean) < 0.02 and abs(spread - 1) < 0.02, f"mean {mean:.3f}, spread {spread:.3f}")
    return Result(f"{far:.1e}; mean {mean:.3f} of 0, spread {spread:.3f} of 1")


CHECKS = [
    *(
        Check(
            1,
            f"{name}: as the CPU in float32, outputs within {OUTPUT:.0e}, gradient {GRADIENT:.0e}",
            partial(equal_to_cpu, case),
            seconds=2.0,
        )
        for name, case in CASES.items()
    ),
    Check(1, f"losses and their gradients: as the CPU, within {LOSS:.0e}", losses),
    Check(1, f"samplers: as the CPU, within {SAMPLES:.0e}; mean and spread within 0.03", samplers),
    Check(1, f"noise of sampler steps: as the CPU, within {NOISE:.0e}", step_noise),
    Check(1, "all networks: the same bits twice under deterministic algorithms", same_bits, 10.0),
    Check(1, "all networks under autocast: bf16 within 5e-2, fp16 within 2e-2", half, 10.0),
    Check(1, f"channels last: as contiguous, within {GRADIENT:.0e}", channels_last, 10.0),
    Check(1, "float32 with TF32 convolutions, the default: within 1e-2", tf32, 3.0),
]
