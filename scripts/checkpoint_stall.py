"""Measure how long training waits for a checkpoint that is written by a thread, or at once.

    python scripts/checkpoint_stall.py --out checkpoints_to_delete

A U-Net of improved-diffusion's CIFAR size by default (52.5 million parameters: weights, average and
two moments are 840 MB). In each round, one after the other: the copy into memory alone, a
checkpoint on a thread, one on the spot (at once). Prints medians over the rounds and their ratios.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import recursively_apply

from ddpm.models import IDDPMUNet
from ddpm.training import checkpoint
from ddpm.training.checkpoint import CheckpointMetadata
from ddpm.training.saving import Saver


def content(channels: int) -> dict[str, Any]:
    """Return the content of a checkpoint of such a network."""
    network = IDDPMUNet(
        3, 3, (32, 32), model_channels=channels, num_res_blocks=3, channel_mult=(1, 2, 2, 2)
    )
    raw = network.state_dict()
    moments = {i: {"exp_avg": w + 1, "exp_avg_sq": w + 2} for i, w in enumerate(raw.values())}
    ema = {name: value.clone() for name, value in raw.items()}
    return {"raw": raw, "ema": ema, "state": {"optimizer": {"state": moments}}}


def seconds(work: Callable[[], object]) -> float:
    """Return the duration of a call in seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def one_round(place: Path, contents: dict[str, Any]) -> dict[str, float]:
    """Return the seconds that training waits for each of the three; remove ``place``."""
    saver, metadata = Saver(place, lambda _: None, print), CheckpointMetadata(config={})
    try:
        copy = seconds(lambda: recursively_apply(_copy, contents))
        thread = seconds(lambda: saver.start(metadata, **contents))
        failure = saver.error(last=True)
        if failure is not None:
            raise failure
        spot = seconds(lambda: checkpoint.save(place / "spot", metadata, **contents))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return {"copy": copy, "on a thread": thread, "on the spot": spot}


def main() -> None:
    """Measure and print the times."""
    parser = argparse.ArgumentParser(description="how long a checkpoint stops training")
    parser.add_argument("--out", type=Path, required=True, help="a folder to write to and remove")
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    contents = content(options.channels)
    times: dict[str, list[float]] = {"copy": [], "on a thread": [], "on the spot": []}
    for number in range(options.rounds):
        for name, taken in one_round(options.out / str(number), contents).items():
            times[name].append(taken)
    size = sum(value.nbytes for value in contents["raw"].values()) * 4 / 1e6
    print(f"{size:.0f} MB, {options.rounds} rounds, torch {torch.__version__}")
    copy = statistics.median(times["copy"])
    for name, taken in times.items():
        middle = statistics.median(taken)
        print(f"{name:12} waits {middle:7.3f} s [{min(taken):.3f}..{max(taken):.3f}], ", end="")
        print(f"{middle / copy:5.2f} of a copy")


def _copy(value: torch.Tensor) -> torch.Tensor:
    return value.detach().to("cpu", copy=True)


if __name__ == "__main__":
    main()
