r"""Train a classifier of noisy digits, for gradient guidance of an unconditional model.

    python scripts/digit_classifier.py classifier.pt
    python scripts/digit_classifier.py second.pt --half 1 --seed 1
    python scripts/digit_classifier.py second.pt --count digits/samples.npz --digit 3

The first command trains on one half of the embedded digits, the second one on the other half: a
network of its own that counts how many samples are of the digit that was requested. The file is
TorchScript: images (B, 1, 8, 8) in model space, -1 to 1, to logits (B, 10).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm.console import progress
from ddpm.data import Digits
from ddpm.errors import ConfigError, require
from ddpm.files import replacing

MAX_NOISE = 0.8  # standard deviation of the noise of training images, at most


def network() -> nn.Module:
    """Return a classifier (B, 1, 8, 8) to (B, 10) without trained weights."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2),
        nn.SiLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(64 * 16, 10),
    )


def digits() -> tuple[Tensor, Tensor]:
    """Return the images (N, 1, 8, 8) in model space and their labels (N,)."""
    data = Digits(class_cond=True)
    raw, labels = data.fetch(range(len(data)), [0] * len(data))
    assert labels is not None
    return data.codec.encode(raw), labels


def train(images: Tensor, labels: Tensor, steps: int, seed: int) -> nn.Module:
    """Return a classifier of images (N, 1, 8, 8) with up to :data:`MAX_NOISE` of noise."""
    torch.manual_seed(seed)
    model, generator = network(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps + 1)
    with progress(steps, "training", "step") as bar:
        for _ in range(steps):
            chosen = torch.randint(len(images), (128,), generator=generator)
            noise = torch.randn(128, *images.shape[1:], generator=generator)
            level = MAX_NOISE * torch.rand(128, 1, 1, 1, generator=generator)
            loss = F.cross_entropy(model(images[chosen] + level * noise), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
    return model.eval()


@torch.inference_mode()
def fraction(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the fraction of images (N, 1, 8, 8) in model space with these labels (N,)."""
    return float((model(images).argmax(1) == labels).double().mean())


def work(options: argparse.Namespace) -> None:
    """Train and write a classifier, or count with one."""
    if options.count is not None:
        problem = "the file does not exist; train it first, without --count"
        require(options.file.is_file(), "FILE", str(options.file), problem)
        require(options.digit is not None, "--digit", None, "requires a number from 0 to 9")
        problem = "the file does not exist; draw samples with format=npz"
        require(options.count.is_file(), "--count", str(options.count), problem)
        raw = np.load(options.count)["arr_0"]
        images = torch.from_numpy(raw).permute(0, 3, 1, 2).float() / 127.5 - 1
        model = torch.jit.load(str(options.file))
        share = fraction(model, images, torch.full((len(images),), options.digit))
        print(f"{options.count}: {round(share * len(images))} of {len(images)} are {options.digit}")
        return
    images, labels = digits()
    own, other = (torch.arange(half, len(images), 2) for half in (options.half, 1 - options.half))
    model = train(images[own], labels[own], options.steps, options.seed)
    with replacing(options.file) as aside:
        torch.jit.save(torch.jit.trace(model, images[:2]), str(aside))
    accuracy = fraction(model, images[other], labels[other])
    print(f"{options.file}: {accuracy:.1%} of the other half are right")


def main() -> None:
    """Run the script; an invalid option is reported in one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE", help="the TorchScript file")
    parser.add_argument("--half", type=int, choices=(0, 1), default=0, help="of the digits (0)")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (0)")
    parser.add_argument("--count", type=Path, help="an .npz of ddpm-sample to classify instead")
    parser.add_argument("--digit", type=int, choices=range(10), help="of --count")
    options = parser.parse_args()
    try:
        work(options)
    except ConfigError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
