"""Names of the suites, and the process that runs one of them.

python -m scripts.benchmarks.suites SUITE ROUNDS FILE
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddpm.errors import did_you_mean
from scripts.benchmarks.tables import provenance


@dataclass(frozen=True)
class Suite:
    """A suite.

    Attributes:
        module: of :mod:`scripts.benchmarks`, imported by the process of the suite only.
        function: in the module; called with the number of rounds, returns Markdown.
        summary: description in one line.
        by_default: part of a run without names.
        most_rounds: upper limit of the rounds, for slow suites.
    """

    module: str
    function: str
    summary: str
    by_default: bool = True
    most_rounds: int = 1000


SUITES = {
    "train_iddpm": Suite("training", "train_iddpm", "IDDPM U-Net, improved-diffusion's style"),
    "train_small": Suite("training", "train_small", "the same at 16x16, batch 4"),
    "train_unet": Suite("training", "train_unet", "U-Net of denoising-diffusion-pytorch"),
    "train_diffusers": Suite("training", "train_diffusers", "U-Net and example of diffusers"),
    "sample_eager": Suite("sampling", "sample_eager", "DDIM beside each peer"),
    "sample_auto": Suite(
        "sampling_auto", "sample_auto", "the same as shipped, compiled", by_default=False
    ),
    "sampler_step": Suite("sampling", "sampler_step", "sampler steps without a network"),
    "noise": Suite("noise", "noise", "noise of stochastic steps beside one torch.randn"),
    "data": Suite("data", "data", "batches from memory and from files"),
    "start": Suite("start", "start", "commands until their first result", most_rounds=5),
    "demo": Suite("demo", "demo", "the default ddpm-train, whole", by_default=False, most_rounds=3),
    "batch_parts": Suite(
        "training", "batch_parts", "whole micro-batches, and a part per thread", by_default=False
    ),
    "compile": Suite("training", "compiled", "trainer.compile; takes minutes", by_default=False),
}


def selected(names: Sequence[str]) -> list[str]:
    """Return the suites to run: those named, or those that run by default.

    Raises:
        ValueError: an unknown name.
    """
    for name in names:
        if name not in SUITES:
            raise ValueError(f"unknown suite '{name}'{did_you_mean(name, SUITES)}")
    return list(names) or [name for name, suite in SUITES.items() if suite.by_default]


def main() -> None:
    """Run a suite and write its part of the file of results."""
    suite, file = SUITES[sys.argv[1]], Path(sys.argv[3])
    rounds = min(int(sys.argv[2]), suite.most_rounds)
    import torch

    function = getattr(
        importlib.import_module(f"scripts.benchmarks.{suite.module}"), suite.function
    )
    body = function(rounds)
    file.write_text(f"{provenance(torch.get_num_threads(), rounds)} {body}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
