"""Suite that times the loading of batches."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from ddpm.data import Folder
from ddpm.training.batch_loader import BatchLoader
from scripts.benchmarks import peers
from scripts.benchmarks.images import ImageFiles, write_images
from scripts.benchmarks.tables import table
from scripts.benchmarks.timing import Candidate, Machine, interleave, ratio

BATCH = 16
OURS = "ours"


def batches_of(files: Any, num_workers: int) -> Iterator[Tensor]:
    """Return an endless stream of batches of a map-style data set."""
    sampler = RandomSampler(files, replacement=True, num_samples=peers.MANY)
    return iter(DataLoader(files, batch_size=BATCH, sampler=sampler, num_workers=num_workers))


def our_batches(data: Folder) -> Iterator[Tensor]:
    """Return our stream of batches in model space."""
    loader = BatchLoader(
        data, seed=0, batch_size=BATCH, accumulate=1, rank=0, world=1, pin_memory=False
    )
    for raw, _ in loader.batches(0):
        yield data.codec.encode(raw)


def taking(batches: Iterator[Tensor]) -> peers.Take:
    """Return a function that fetches a number of batches."""

    def take(count: int) -> None:
        for _ in range(count):
            next(batches)

    return take


def streams(images: Path, size: int, cache_mb: int) -> dict[str, Iterator[Tensor]]:
    """Return the streams of batches from a folder by name, ours last."""
    from denoising_diffusion_pytorch.denoising_diffusion_pytorch import Dataset  # pyright: ignore

    options = {"augment_horizontal_flip": True, "convert_image_to": "RGB"}
    workers = os.cpu_count() or 1
    package = batches_of(Dataset(str(images), size, **options), workers)
    example = batches_of(ImageFiles(images, size), 0)
    ours = our_batches(Folder(path=str(images), image_size=size, flip=True, cache_mb=cache_mb))
    name = "denoising-diffusion-pytorch"
    return {f"{name}, {workers} workers": package, "diffusers, no worker": example, OURS: ours}


def data(rounds: int) -> str:
    """Return the tables of two folders: small images from memory, and large ones from files."""
    machine, rows = Machine(), []
    cases = (
        ("32x32 PNG, ours in memory", 32, "png", 2048, 60, 2048),
        ("256x256 JPEG, ours not in memory", 256, "jpg", 320, 30, 0),
    )
    with tempfile.TemporaryDirectory() as folder:
        for title, size, suffix, count, units, cache_mb in cases:
            images = write_images(Path(folder) / str(size), count, size, suffix)
            loaders = streams(images, size, cache_mb)
            candidates = [
                Candidate(name, taking(each), units * (20 if name == OURS and cache_mb else 1))
                for name, each in loaders.items()
            ]
            seconds = interleave(candidates, rounds, machine)
            for name in loaders:
                speed = BATCH / statistics.median(seconds[name])
                compared = "" if name == OURS else str(ratio(seconds[name], seconds[OURS]))
                rows.append([title, name, f"{speed:,.0f}", compared])
    header = ["folder", "loader", "images/s", "speed-up of ours, median [min..max]"]
    facts = (
        f"Batches of {BATCH} in model space from generated images, mirrored at random except by "
        "diffusers' example; our first pass over the folder, which decodes it into memory, is not "
        "included. Workers fill their queues between visits, in favour of loaders with workers."
    )
    return "\n\n".join((facts, table(header, rows), machine.verdict()))
