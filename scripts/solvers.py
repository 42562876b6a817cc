r"""Compare samplers and grids of a model: error and FID against the number of network calls.

    python scripts/solvers.py ckpt=outputs/latest
    python scripts/solvers.py ckpt=outputs/latest fid=false calls=[5,10,20]
    python scripts/solvers.py ckpt=outputs/latest samplers=[dpmpp,unipc] spacings=[uniform,trailing]

The error of a deterministic sampler is the root mean square difference, in model space, to the
solution of the same noise in T steps by DPM-Solver++ of order 2, with the same clipping. FID is
that of ``ddpm-evaluate`` with as many samples as the training data have. Seconds are those of the
samples of the error, on this machine, in one run. The table and the plot are written to ``out``, by
default ``solvers`` in the run: ``solvers.md``, ``solvers.json`` and ``solvers.png``.

Options: ``samplers``, ``spacings``, ``clip`` (null: that of each sampler), ``calls``, ``count``
(samples of the error), ``fid`` (true, false), ``fid_calls`` (of ``calls``), ``num_samples`` (of
FID), ``guidance``, ``seed``, ``out``.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import ddpm  # noqa: E402
from ddpm import samplers  # noqa: E402
from ddpm.console import progress  # noqa: E402
from ddpm.errors import ConfigError, did_you_mean, require  # noqa: E402
from ddpm.files import replacing  # noqa: E402
from ddpm.guidance import Guidance  # noqa: E402
from ddpm.noise import SampleNoise  # noqa: E402
from ddpm.samplers import Sampler  # noqa: E402
from ddpm.seeding import RandomStream, mix  # noqa: E402
from scripts import typed_options  # noqa: E402

STOCHASTIC = ("ddpm", "ddim_eta1")
VARIANTS: dict[str, tuple[type[Sampler], dict[str, Any]]] = {  # name in the table
    "ddpm": (samplers.DDPM, {}),
    "ddim_eta1": (samplers.DDIM, {"eta": 1.0}),
    "ddim": (samplers.DDIM, {}),
    "dpmpp": (samplers.DPMpp, {}),
    "dpmpp3": (samplers.DPMpp, {"order": 3}),
    "unipc": (samplers.UniPC, {}),
    "unipc3": (samplers.UniPC, {"order": 3}),
    "deis": (samplers.DEIS, {}),
    "ipndm": (samplers.IPNDM, {}),
    "heun": (samplers.Heun, {}),
}


@dataclass(frozen=True)
class Options:
    """Options of the script, as typed."""

    ckpt: str
    samplers: list[str] = field(default_factory=lambda: list(VARIANTS))
    spacings: list[str] = field(
        default_factory=lambda: ["uniform", "trailing", "log_snr", "karras"]
    )
    clip: str | None = None
    calls: list[int] = field(default_factory=lambda: [5, 8, 10, 12, 15, 20, 30, 50, 100])
    count: int = 128
    fid: bool = True
    fid_calls: list[int] = field(default_factory=lambda: [8, 12, 20])
    num_samples: int | None = None
    guidance: float = 1.0
    seed: int = 0
    out: str | None = None


@dataclass
class Row:
    """Measurements of one sampler on one grid with one number of network calls."""

    sampler: str
    spacing: str
    calls: int
    error: float | None
    seconds: float
    fid: float | None = None


def parse(arguments: list[str]) -> Options:
    """Return the options of ``key=value`` arguments.

    Raises:
        ConfigError: an unknown option, or no ``ckpt``.
    """
    options = typed_options.parse(Options, arguments, {"ckpt": "a run or a checkpoint"})
    for name in options.samplers:
        require(name in VARIANTS, "samplers", name, f"unknown{did_you_mean(name, VARIANTS)}")
    return options


def num_steps(sampler: str, calls: int) -> int:
    """Return the number of steps of a sampler for about that many network calls."""
    return (calls + 1) // 2 if sampler == "heun" else calls


class Measurement:
    """Samples of one noise with every sampler.

    Args:
        options: of the script.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.model = ddpm.load(options.ckpt)
        seeds = [mix(options.seed, RandomStream.SAMPLE, i) for i in range(options.count)]
        self.noise = SampleNoise(seeds).draw(self.model.codec.shape)
        names, self.labels = self.model.spec.names, None
        if names is not None:
            self.labels = torch.arange(options.count) % len(names)
        self._solutions: dict[str, Tensor] = {}

    def sampler(self, name: str, **options: Any) -> Sampler:
        """Return a sampler of :data:`VARIANTS` with further options."""
        cls, own = VARIANTS[name]
        clip = {} if self.options.clip is None else {"clip": self.options.clip}
        return cls(**{**own, **clip, **options})

    def draw(self, sampler: Sampler) -> tuple[Tensor, float]:
        """Return the samples in model space, and the seconds that they took."""
        pipeline = self.model.pipeline(sampler, guidance=Guidance(scale=self.options.guidance))
        began, parts = time.perf_counter(), []
        for rows in torch.arange(self.options.count).split(64):
            labels = None if self.labels is None else self.labels[rows]
            noise = SampleNoise([int(row) for row in rows])
            parts.append(pipeline.sample(self.noise[rows], noise, labels=labels).cpu())
        return torch.cat(parts), time.perf_counter() - began

    def solution(self, clip: str) -> Tensor:
        """Return the samples of T steps."""
        if clip not in self._solutions:
            steps = self.model.schedule.num_steps
            fine = self.sampler("dpmpp", steps=steps, spacing="uniform", clip=clip)
            self._solutions[clip] = self.draw(fine)[0]
        return self._solutions[clip]

    def row(self, name: str, spacing: str, calls: int) -> Row | None:
        """Return the measurements of a sampler; None if the calls do not fit."""
        steps = num_steps(name, calls)
        if steps > self.model.schedule.num_steps:
            return None
        sampler = self.sampler(name, steps=steps, spacing=spacing)
        used = sampler.num_calls(len(sampler.timesteps(self.model.schedule)) - 1)
        samples, seconds = self.draw(sampler)
        error = None
        if name not in STOCHASTIC:
            error = float((samples - self.solution(sampler.clip)).double().square().mean().sqrt())
        return Row(name, spacing, used, error, seconds)

    def fid(self, row: Row) -> float:
        """Return the FID of a sampler."""
        steps = num_steps(row.sampler, row.calls)
        result = self.model.evaluate(
            "fid",
            sampler=self.sampler(row.sampler, steps=steps, spacing=row.spacing),
            num_samples=self.options.num_samples,
            seed=self.options.seed,
            guidance=self.options.guidance,
        )
        return next(value for name, value in result.numbers.items() if name.startswith("fid"))


def measure(options: Options) -> list[Row]:
    """Return the rows of the table."""
    run, rows = Measurement(options), []
    cells = [
        (name, spacing, calls)
        for name in options.samplers
        for spacing in (options.spacings if name not in STOCHASTIC else options.spacings[:1])
        for calls in options.calls
    ]
    with progress(sum(cell[2] for cell in cells), "solvers", "call") as bar:
        for cell in cells:
            row = run.row(*cell)
            bar.update(cell[2])
            if row is not None:
                rows.append(row)
    if options.fid:
        chosen = [
            row
            for row in rows
            if row.spacing == best_spacing(rows, row.sampler)
            and (row.calls in options.fid_calls or row.calls + 1 in options.fid_calls)
        ]
        for index, row in enumerate(chosen, start=1):
            row.fid = run.fid(row)
            print(f"FID {index}/{len(chosen)}: {row.sampler} {row.calls} calls: {row.fid:.4f}")
    return rows


def best_spacing(rows: list[Row], sampler: str) -> str:
    """Return the grid of a sampler whose errors have the lowest geometric mean."""
    products: dict[str, list[float]] = {}
    for row in rows:
        if row.sampler == sampler and row.calls >= 10:
            products.setdefault(row.spacing, []).append(row.error or 1.0)
    if not products:
        return next(row.spacing for row in rows if row.sampler == sampler)
    means = {key: torch.tensor(values).log().mean().item() for key, values in products.items()}
    return min(means, key=means.__getitem__)


def table(rows: list[Row], name: str) -> str:
    """Return a Markdown table of one quantity: rows are samplers, columns network calls."""
    columns = sorted({row.calls for row in rows if row.sampler != "heun"})
    lines = [
        "| sampler | spacing | " + " | ".join(map(str, columns)) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for sampler, spacing in dict.fromkeys((row.sampler, row.spacing) for row in rows):
        values = {
            row.calls: getattr(row, name)
            for row in rows
            if (row.sampler, row.spacing) == (sampler, spacing) and getattr(row, name) is not None
        }
        if not values:
            continue
        cells = []
        for column in columns:
            value = values.get(column, values.get(column - 1) if sampler == "heun" else None)
            cells.append("" if value is None else f"{value:.3g}")
        lines.append(f"| {sampler} | {spacing} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Write the plot of error and FID against network calls, each sampler on its best grid."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row.sampler for row in rows))
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for place, (quantity, label) in enumerate(
        (("error", "RMS difference to T steps"), ("fid", "FID")), start=1
    ):
        axes = figure.add_subplot(1, 2, place)
        for index, name in enumerate(names):
            spacing = best_spacing(rows, name)
            points = [
                (row.calls, getattr(row, quantity))
                for row in rows
                if (row.sampler, row.spacing) == (name, spacing)
                and getattr(row, quantity) is not None
            ]
            if points:
                draw = axes.loglog if quantity == "error" else axes.plot
                color = colormaps["tab20"](index)
                legend = f"{name}, {spacing}"
                draw(*zip(*sorted(points), strict=True), marker=".", color=color, label=legend)
        axes.set_xlabel("network calls")
        axes.set_ylabel(label)
        axes.grid(which="both", alpha=0.2)
        if axes.has_data():
            axes.legend(fontsize=7)
        if quantity == "fid":
            axes.set_ylim(bottom=0)
    with replacing(path) as aside:
        figure.savefig(aside, dpi=130, format="png")


def main() -> None:
    """Run the script; an invalid option is reported in one line."""
    try:
        options = parse(sys.argv[1:])
        rows = measure(options)
        out = Path(options.out or Path(options.ckpt) / "solvers")
        out.mkdir(parents=True, exist_ok=True)
        text = f"Error:\n\n{table(rows, 'error')}\n\nSeconds:\n\n{table(rows, 'seconds')}\n"
        if options.fid:
            text += f"\nFID:\n\n{table(rows, 'fid')}\n"
        with replacing(out / "solvers.md") as aside:
            aside.write_text(text, encoding="utf-8")
        with replacing(out / "solvers.json") as aside:
            aside.write_text(json.dumps([asdict(row) for row in rows], indent=1))
        plot(rows, out / "solvers.png")
    except ConfigError as error:
        sys.exit(str(error))
    print(f"{text}\nwritten to {out}")


if __name__ == "__main__":
    main()
