"""Suite that times the loading of batches."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping
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
LARGE = 256
"""Side from which images are not kept in memory."""
OURS = "ours"


def batches_of(files: Any, num_workers: int) -> Iterator[Tensor]:
    """Return an endless stream of batches of a map-style data set."""
    sampler = RandomSampler(files, replacement=True, num_samples=peers.MANY)
    return iter(DataLoader(files, batch_size=BATCH, sampler=sampler, num_workers=num_workers))


def our_batches(data: Folder, num_workers: int) -> Iterator[Tensor]:
    """Return our stream of batches in model space."""
    loader = BatchLoader(data, seed=0, batch_size=BATCH, num_workers=num_workers)
    for raw, _ in loader.batches(0):
        yield data.codec.encode(raw)


def taking(batches: Iterator[Tensor]) -> peers.Take:
    """Return a function that fetches a number of batches."""

    def take(count: int) -> None:
        for _ in range(count):
            next(batches)

    return take


def opening(**options: Any) -> peers.Take:
    """Return a function that opens a folder a number of times."""

    def open_folder(count: int) -> None:
        for _ in range(count):
            Folder(**options)

    return open_folder


def peer_streams(images: Path, size: int, workers: int) -> dict[str, Iterator[Tensor]]:
    """Return the streams of batches of the peers by name, that of the package first."""
    from denoising_diffusion_pytorch.denoising_diffusion_pytorch import Dataset  # pyright: ignore

    options = {"augment_horizontal_flip": True, "convert_image_to": "RGB"}
    package = batches_of(Dataset(str(images), size, **options), workers)
    example = batches_of(ImageFiles(images, size), 0)
    name = "denoising-diffusion-pytorch"
    return {f"{name}, {workers} workers": package, "diffusers, no worker": example}


def our_streams(images: Path, size: int, cache: Path, workers: int) -> dict[str, Iterator[Tensor]]:
    """Return our streams of batches by name, from files, from the disk cache and from memory."""
    options: dict[str, Any] = {"path": str(images), "image_size": size, "flip": True}
    if size < LARGE:
        data = Folder(**options, disk_cache=False)
        return {f"{OURS}, from memory": our_batches(data, 0)}
    decoding = Folder(**options, cache_mb=0, disk_cache=False)
    stored = Folder(**options, cache_mb=0, disk_cache=str(cache))
    for index in range(len(stored)):  # the first epoch
        stored.fetch([index], [0])
    return {
        f"{OURS}, first epoch, {workers} workers": our_batches(decoding, workers),
        f"{OURS}, first epoch, no worker": our_batches(decoding, 0),
        f"{OURS}, later epochs, {workers} workers": our_batches(stored, workers),
        f"{OURS}, later epochs, no worker": our_batches(stored, 0),
    }


def rows_of(
    title: str, streams: Mapping[str, Iterator[Tensor]], units: int, rounds: int, machine: Machine
) -> list[list[str]]:
    """Return a row per stream of a folder; the first stream is the base of the ratios."""
    base, *_ = streams
    candidates = [
        Candidate(name, taking(each), units * (20 if "memory" in name else 1))
        for name, each in streams.items()
    ]
    seconds = interleave(candidates, rounds, machine)
    rows = []
    for name in streams:
        speed = f"{BATCH / statistics.median(seconds[name]):,.0f}"
        compared = "" if name == base else str(ratio(seconds[base], seconds[name]))
        rows.append([title, name, speed, compared])
    return rows


def opening_rows(folders: Mapping[str, Path], cache: Path, rounds: int, machine: Machine) -> Any:
    """Return a row per folder with the seconds to open it with and without the disk cache."""
    rows = []
    for title, images in folders.items():
        options: dict[str, Any] = {"path": str(images), "image_size": int(images.name)}
        candidates = [
            Candidate("decoded", opening(**options, disk_cache=False), 1),
            Candidate("stored", opening(**options, disk_cache=str(cache)), 1),
        ]
        seconds = interleave(candidates, rounds, machine)
        medians = [f"{statistics.median(each):.2f}" for each in seconds.values()]
        rows.append([title, *medians, str(ratio(seconds["decoded"], seconds["stored"]))])
    return rows


def data(rounds: int) -> str:
    """Return the tables of two folders, of small images and of large ones."""
    machine, rows, workers, folders = Machine(), [], os.cpu_count() or 1, {}
    cases = (("32x32 PNG", 32, "png", 2048, 60), ("256x256 JPEG", 256, "jpg", 320, 30))
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        for title, size, suffix, count, units in cases:
            images = write_images(Path(folder) / str(size), count, size, suffix)
            for path in images.iterdir():  # the disk cache ignores files that are new
                os.utime(path, (1.6e9, 1.6e9))
            streams = peer_streams(images, size, workers)
            streams |= our_streams(images, size, cache, workers)
            rows += rows_of(title, streams, units, rounds, machine)
            folders[f"{count:,} images, {title}"] = images
        opened = opening_rows(folders, cache, rounds, machine)
    header = ["folder", "loader", "images/s", "times the package, median [min..max]"]
    facts = (
        f"Batches of {BATCH} in model space from generated images, mirrored at random except by "
        "diffusers' example. Large images are not kept in memory here: in the first epoch they are "
        "decoded, in later epochs read from the disk cache. Workers fill their queues between "
        "visits, in favour of loaders with workers."
    )
    reading = ["reading into memory", "s", "s, from the disk cache", "ratio, median [min..max]"]
    tables = table(header, rows), table(reading, opened)
    return "\n\n".join((facts, *tables, machine.verdict()))
