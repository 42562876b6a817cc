"""Suites that time sampling, with networks and without."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddpm import samplers
from ddpm.data import ImageCodec
from ddpm.diffusion import Clipping, Denoiser, GaussianDiffusion, PredNoise, Schedule
from ddpm.noise import SampleNoise
from ddpm.pipeline import SamplingPipeline, build_pipeline, placed
from ddpm.samplers import DDIM, Sampler
from scripts.benchmarks import networks, peers
from scripts.benchmarks.improved_network import ImprovedDDIM
from scripts.benchmarks.tables import table
from scripts.benchmarks.timing import Candidate, Machine, interleave, peak_line, peaks, ratio
from scripts.gpu.speed import process as iddpm_process
from scripts.operations import Operations

SIZE, BATCH = 32, 16
STEPS = 5  # of DDIM; the cost of both sides is linear in them, so that 50 have the same ratio
PATH = 50  # steps of the samplers without a network

Sample = Callable[[], Tensor]


@dataclass(frozen=True)
class Pair:
    """A peer's sampling of a batch, and ours.

    Attributes:
        peer: its name.
        theirs: draws a batch.
        pipeline: draws our batch.
        network: of the pipeline.
        calls: network calls of the peer's default sampler.
        facts: agreement of the two.
    """

    peer: str
    theirs: Sample
    pipeline: SamplingPipeline
    network: nn.Module
    calls: int
    facts: str

    def ours(self) -> Tensor:
        """Draw our batch."""
        return draw(self.pipeline, noise())


def check_samples(theirs: Tensor, ours: Tensor) -> str:
    """Return the agreement of samples from equal noise.

    Raises:
        RuntimeError: they differ by more than 1e-4 in the root mean square.
    """
    difference = float((theirs - ours).double().square().mean().sqrt())
    if not difference < 1e-4:
        raise RuntimeError(f"samples from equal noise differ by {difference:.1e}")
    return f"equal weights and operations, samples of equal noise differ by {difference:.0e}"


def our_pipeline(
    network: nn.Module, process: GaussianDiffusion, sampler: Sampler
) -> SamplingPipeline:
    """Return our pipeline as ``ddpm-sample`` builds it."""
    cpu, codec = torch.device("cpu"), ImageCodec((3, SIZE, SIZE))
    return build_pipeline(placed(network, cpu, 2), process, sampler, codec, device=cpu)


def noise() -> Tensor:
    """Return the noise that all sampling begins with."""
    return torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def improved() -> Pair:
    """Return the sampling of improved-diffusion's style."""
    pair, process = networks.improved(SIZE), iddpm_process()
    peer = ImprovedDDIM(pair.theirs.eval(), process.schedule, STEPS)
    pipeline, x = our_pipeline(pair.ours, process, DDIM(steps=f"ddim{STEPS}")), noise()
    first, second = peer.sample(x), pipeline.sample(x, SampleNoise([]))
    facts = check_samples(first, second)
    name, calls = "improved-diffusion style", process.num_steps
    return Pair(name, lambda: peer.sample(x), pipeline, pair.ours, calls, facts)


def package() -> Pair:
    """Return the sampling of denoising-diffusion-pytorch."""
    from denoising_diffusion_pytorch import GaussianDiffusion as Package  # pyright: ignore

    pair = networks.package(SIZE)
    options = {"image_size": SIZE, "sampling_timesteps": STEPS, "auto_normalize": False}
    peer = Package(pair.theirs.eval(), **options)
    sampler = DDIM(steps=STEPS, spacing="trailing")
    pipeline = our_pipeline(pair.ours, peers.unet_process(), sampler)

    def sample() -> Tensor:
        torch.manual_seed(0)  # the package draws the noise of the start itself, first
        with peers.quiet():
            return peer.sample(BATCH)

    torch.manual_seed(0)
    start = torch.randn(BATCH, 3, SIZE, SIZE)
    facts = check_samples(sample(), pipeline.sample(start, SampleNoise([])))
    return Pair("denoising-diffusion-pytorch", sample, pipeline, pair.ours, 1000, facts)


def diffusers() -> Pair:
    """Return the sampling of diffusers' pipeline."""
    from diffusers import DDIMPipeline, DDIMScheduler  # pyright: ignore

    pair = networks.diffusers(SIZE)
    scheduler = DDIMScheduler(num_train_timesteps=1000)
    peer = DDIMPipeline(unet=pair.theirs.eval(), scheduler=scheduler)
    process = GaussianDiffusion(diffusers_schedule(), PredNoise())
    pipeline = our_pipeline(pair.ours, process, DDIM(steps=STEPS, spacing="leading"))
    options = {"num_inference_steps": STEPS, "use_clipped_model_output": True}

    def sample() -> Tensor:
        generator = torch.Generator().manual_seed(0)  # draws noise()
        with peers.quiet():
            images = peer(BATCH, generator=generator, output_type="np", **options).images
        return torch.from_numpy(images)

    theirs = 2 * sample().movedim(-1, 1) - 1
    check_times(peer.scheduler.timesteps, pipeline)
    facts = check_samples(theirs, pipeline.sample(noise(), SampleNoise([])))
    return Pair("diffusers", sample, pipeline, pair.ours, 1000, facts)


def check_times(theirs: Tensor, pipeline: SamplingPipeline) -> None:
    """Raise RuntimeError if the times of a peer's network calls are not ours."""
    ours = pipeline.sampler.timesteps(pipeline.diffusion.schedule)
    if [*theirs.tolist(), -1] != ours:
        raise RuntimeError(f"the times {theirs.tolist()} are not ours, {ours}")


def draw(pipeline: SamplingPipeline, x: Tensor) -> Tensor:
    """Return uint8 images."""
    return pipeline.codec.decode(pipeline.sample(x, SampleNoise([])))


def diffusers_schedule() -> Schedule:
    """Return diffusers' default schedule."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float32)
    return Schedule.from_alpha_bar(torch.cumprod(1 - betas, dim=0).double())


def sample_eager(rounds: int) -> str:
    """Return the table of DDIM with each peer's network and sampler, in float32."""
    machine, best, rows = Machine(), peaks(), []
    calls = samplers.UniPC.default_steps
    assert calls is not None
    for pair in (improved(), package(), diffusers()):
        candidates = [
            Candidate("theirs", lambda count, work=pair.theirs: repeat(work, count), 1),
            Candidate("ours", lambda count, work=pair.ours: repeat(work, count), 1),
        ]
        seconds = interleave(candidates, rounds, machine)
        speed_up = ratio(seconds["theirs"], seconds["ours"])
        shipped = speed_up.median * pair.calls / calls
        times = [f"{1000 * statistics.median(seconds[n]) / STEPS:.1f}" for n in ("theirs", "ours")]
        note = f"{shipped:.0f} ({pair.calls:,} calls)"
        rows.append([pair.peer, *times, str(speed_up), note, pair.facts])
    header = ["peer", "its ms per step", "ours", "speed-up", "as shipped, computed", "equality"]
    facts = (
        f"DDIM in {STEPS} steps, whole path with its start and its end, batch {BATCH}, "
        f"3x{SIZE}x{SIZE}, float32. As shipped, the peers draw with an ancestral sampler in all "
        f"steps of the process, and ours is `unipc` in {calls}: the ratio per step, times that of "
        "the calls. In that of diffusers, the noise is that of the clipped x0, as in ours "
        "(`use_clipped_model_output=True`)."
    )
    return "\n\n".join((facts, table(header, rows), f"{peak_line(best)} {machine.verdict()}"))


def repeat(work: Sample, count: int) -> None:
    """Call a function several times."""
    for _ in range(count):
        work()


def sampler_pairs() -> dict[str, tuple[type[Any], dict[str, Any], Sampler]]:
    """Return diffusers' schedulers, their options, and our samplers with the same results."""
    import diffusers  # pyright: ignore

    return {
        "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}, DDIM(clip="none")),
        "dpmpp": (diffusers.DPMSolverMultistepScheduler, {}, samplers.DPMpp(clip="none")),
        "unipc": (diffusers.UniPCMultistepScheduler, {}, samplers.UniPC(clip="none")),
    }


def sampler_step(rounds: int) -> str:
    """Return the table of sampler steps without a network."""
    machine, rows = Machine(), []
    for name, (scheduler_class, options, sampler) in sampler_pairs().items():
        theirs, ours = _paths(scheduler_class(num_train_timesteps=1000, **options), sampler)
        expected = theirs()
        difference = float((expected - ours()).abs().max() / expected.abs().max())
        if not difference < 1e-3:
            raise RuntimeError(f"{name} differs from diffusers by {difference:.1e}")
        counts = []
        for each in (theirs, ours):
            with Operations() as mode:
                each()
            computed = len(mode.names) - mode.reads
            counts.append(f"{computed / PATH:.1f}, {mode.reads / PATH:.1f}")
        candidates = [
            Candidate("theirs", lambda count, work=theirs: repeat(work, count), 4),
            Candidate("ours", lambda count, work=ours: repeat(work, count), 4),
        ]
        seconds = interleave(candidates, rounds, machine)
        times = [f"{1000 * statistics.median(seconds[n]) / PATH:.3f}" for n in ("theirs", "ours")]
        speed_up = ratio(seconds["theirs"], seconds["ours"])
        rows.append([name, *counts, *times, str(speed_up), f"{difference:.0e}"])
    counted = ["diffusers: operations, host reads", "ours"]
    header = ["sampler", *counted, "its ms", "ours", "speed-up", "relative difference"]
    facts = (
        f"Per step of {PATH}, with a network that returns a fixed tensor, batch {BATCH}, "
        f"3x{SIZE}x{SIZE}, without clipping, both on the same times; the start of a path is "
        "included. Views are not operations."
    )
    return "\n\n".join((facts, table(header, rows), machine.verdict()))


def _paths(scheduler: Any, sampler: Sampler) -> tuple[Sample, Sample]:
    """Return functions that draw a batch by a scheduler of diffusers, and by our sampler."""
    x, output = noise(), 0.5 * noise().flip(0)
    scheduler.set_timesteps(PATH)
    times = [*(float(t) for t in scheduler.timesteps), -1.0]
    process = GaussianDiffusion(diffusers_schedule(), PredNoise())
    denoiser = Clipping(Denoiser(lambda x, t: output, process), clip="none")  # pyright: ignore

    @torch.no_grad()
    def theirs() -> Tensor:
        scheduler.set_timesteps(PATH)
        state = x * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            state = scheduler.step(output, t, scheduler.scale_model_input(state, t)).prev_sample
        return state

    def ours() -> Tensor:
        return sampler.sample(denoiser, x, randn_like=torch.randn_like, times=times)

    return theirs, ours
