"""Compare losses by likelihood: bits per dimension of simple, hybrid and bound, and the gradients.

Trains the same network on the digits with ``diffusion=ddpm``, ``iddpm`` and ``iddpm_vlb``, each by
the command that is printed, and prints a table of the variational bound on images that are drawn
from the training set, with the network's averaged weights. Then it measures the variance of the
gradient of the bound over batches for the last run, with timesteps drawn uniformly and by their
losses, at the same weights and on the same images. A quarter of an hour on two cores.

    .venv/bin/python scripts/likelihood.py --out outputs/likelihood
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from ddpm import instantiate
from ddpm.console import progress
from ddpm.data import Digits
from ddpm.diffusion import Clipping, Denoiser, DiffusionLoss
from ddpm.diffusion.process import Variance
from ddpm.evaluation.bits_per_dimension import bits_per_dimension
from ddpm.training import LossSecondMoment, Timesteps, Uniform, checkpoint

# The first, whose variance is not learned, is measured with both fixed variances.
RUNS: tuple[tuple[str, Variance | None], ...] = (
    ("ddpm", "fixed_small"),
    ("ddpm", "fixed_large"),
    ("iddpm", None),
    ("iddpm_vlb", None),
)


def train(out: Path, diffusion: str, steps: int) -> Path:
    """Train one run with the command line, or reuse a finished one; return its folder."""
    arguments = [
        f"out={out}",
        f"name={diffusion}",
        f"diffusion={diffusion}",
        "objective=pred_noise",
        f"trainer.max_steps={steps}",
        "trainer.preview_every=0",
    ]
    print("ddpm-train", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "ddpm.cli.train", *arguments], check=True)
    return out / diffusion


def images(count: int) -> Tensor:
    """Return the first ``count`` digits of a fixed shuffle, in model space."""
    data = Digits()
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count]
    raw, _ = data.fetch(chosen.tolist(), [0] * count)
    return data.codec.encode(raw)


def bound_of(run: Path, x0: Tensor, variance: Variance | None) -> Tensor:
    """Return bits per dimension of each image, with the averaged weights."""
    network, process, spec = instantiate.trained(checkpoint.find(str(run), print), "ema")
    process.variance = variance or process.variance
    denoiser = Clipping(Denoiser(network.eval(), process), bounds=spec.codec.bounds)
    generator = torch.Generator().manual_seed(1)
    with progress(process.num_steps, f"bound of {run.name}", "term", shown=True) as bar:
        return bits_per_dimension(
            denoiser,
            x0,
            randn_like=lambda x: torch.randn(x.shape, generator=generator),
            on_step=bar.update,
        ).total


def gradient_variance(run: Path, x0: Tensor, batches: int, batch_size: int) -> dict[str, float]:
    """Return the variance of the gradient over batches, for both distributions of t."""
    loaded = checkpoint.find(str(run), print)
    network, process, _ = instantiate.trained(loaded, "raw")
    learned = LossSecondMoment(process.schedule)
    learned.load(loaded.state()["timesteps"])
    distributions: dict[str, Timesteps] = {
        "uniform": Uniform(process.schedule),
        "by loss": learned,
    }
    return {
        name: _variance(network, process, timesteps, x0, batches, batch_size)
        for name, timesteps in distributions.items()
    }


def _variance(
    network: torch.nn.Module,
    process: instantiate.GaussianDiffusion,
    timesteps: Timesteps,
    x0: Tensor,
    batches: int,
    batch_size: int,
) -> float:
    torch.manual_seed(2)
    total, squares = torch.zeros(()), 0.0
    for _ in range(batches):
        chosen = x0[torch.randint(len(x0), (batch_size,))]
        t, weights = timesteps.draw(batch_size, x0.device)
        losses = DiffusionLoss(process)(network, chosen, t, torch.randn_like(chosen))
        network.zero_grad()
        (losses if weights is None else losses * weights).mean().backward()
        gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        total = total + gradient
        squares += float(gradient.square().sum())
    mean = total / batches
    return (squares / batches - float(mean.square().sum())) * batches / (batches - 1)


def main() -> None:
    """Train, measure and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/likelihood"))
    parser.add_argument("--steps", type=int, default=1500, help="optimizer steps per run")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batches", type=int, default=300, help="for the gradients")
    options = parser.parse_args()
    x0 = images(options.images)
    rows = []
    for diffusion, variance in RUNS:
        bits = bound_of(train(options.out, diffusion, options.steps), x0, variance)
        error, name = float(bits.std()) / len(bits) ** 0.5, variance or "learned_range"
        rows.append(f"| {diffusion} | {name} | {float(bits.mean()):.3f} +- {error:.3f} |")
    variances = gradient_variance(options.out / "iddpm_vlb", x0, options.batches, 64)
    print("\n| diffusion | variance | bits per dimension |\n|---|---|---|", *rows, sep="\n")
    print("\n| t drawn | variance of the gradient |\n|---|---|")
    for name, variance in variances.items():
        print(f"| {name} | {variance:.4g} |")
    print(f"\nratio uniform / by loss: {variances['uniform'] / variances['by loss']:.2f}")


if __name__ == "__main__":
    main()
