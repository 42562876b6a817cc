"""Measure the speed-up of a checkpoint's network on a CPU with channels last in memory.

    python scripts/sampling_speed.py outputs/latest

Calls of the network on noise, alternating between the layouts, in float32 and bf16; medians of
rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

from ddpm import instantiate
from ddpm.console import warn
from ddpm.training import checkpoint


@torch.inference_mode()
def seconds(network: nn.Module, x: torch.Tensor, calls: int, bf16: bool) -> float:
    """Return the mean duration of a call in seconds."""
    t = torch.full((len(x),), 500)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        began = time.perf_counter()
        for _ in range(calls):
            network(x, t)
        return (time.perf_counter() - began) / calls


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("ckpt", help="a run of images without classes, or a checkpoint of one")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    loaded = checkpoint.find(options.ckpt, warn)
    network, _, spec = instantiate.trained(loaded, "ema")
    other, _, _ = instantiate.trained(loaded, "ema")
    layouts = {"contiguous": network.eval(), "channels last": other.eval()}
    layouts["channels last"].to(memory_format=torch.channels_last)  # pyright: ignore
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print("precision  batch  contiguous  channels last  ratio of times, median [min..max]")
    for bf16 in (False, True):
        for batch in (64, 256):
            x = torch.randn(batch, *spec.shape)
            took: dict[str, list[float]] = {name: [] for name in layouts}
            for _ in range(options.rounds + 1):
                for name, each in layouts.items():
                    took[name].append(seconds(each, x, 512 // batch, bf16))
            first, second = (times[1:] for times in took.values())  # the first round warms up
            ratios = sorted(b / a for a, b in zip(first, second, strict=True))
            ms = [1000 * statistics.median(times) for times in (first, second)]
            print(
                f"{'bf16' if bf16 else 'float32':9}  {batch:5}  {ms[0]:7.1f} ms  {ms[1]:10.1f} ms  "
                f"{statistics.median(ratios):.2f} [{ratios[0]:.2f}..{ratios[-1]:.2f}]"
            )


if __name__ == "__main__":
    main()
