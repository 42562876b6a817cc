"""``ddpm-sample``: draw samples of a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ddpm.cli import app
from ddpm.console import info_once
from ddpm.errors import require

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor

    from ddpm.data.spec import DataSpec
    from ddpm.outputs import OutputFolder
    from ddpm.trajectory import Trajectory


def main() -> None:
    """Run the console script."""
    app.main("sample", lambda: sample)


def sample(
    *,
    ckpt: str,
    sampler: dict[str, Any],
    num_samples: int,
    batch_size: int,
    seed: int,
    classes: list[int | str] | int | str | None,
    guidance: float,
    guidance_rescale: float,
    condition: str | None,
    weights: Literal["ema", "raw"],
    trajectory: bool,
    format: Literal["png", "gif", "npz", "npy"] | None,
    out: str | None,
    device: Literal["auto", "cpu", "cuda"],
    threads: int | Literal["auto"],
    precision: Literal["no", "fp16", "bf16"],
    plugins: list[str],
) -> None:
    """Draw samples and write them; each process draws its share."""
    from ddpm.distributed.sharding import Shard, gather_samples
    from ddpm.drawing import Trained, label
    from ddpm.generation import generate
    from ddpm.trajectory import GRID, Trajectory, on_step

    require(num_samples >= 1, "num_samples", num_samples, "must be at least 1")
    require(batch_size >= 1, "batch_size", batch_size, "must be at least 1")
    trained = Trained.load(ckpt, weights, device, precision)
    codec, numbers = trained.codec, trained.class_numbers(classes)
    pipeline = trained.pipeline(sampler, guidance=guidance, guidance_rescale=guidance_rescale)
    formats = per_item, joint = trained.formats(format)
    conditions, calls = trained.given(condition), pipeline.num_calls()
    names = _class_names(trained.facts, numbers, num_samples)
    grid = "grid.gif" if codec.has_motion else "grid.png"
    pictures = ["grid.png", grid, *(["trajectory.gif"] if trajectory else [])]
    with trained.writing(
        "sample",
        [*codec.file_names([*per_item, *joint], num_samples, names), *pictures],
        out=out,
        default=f"step-{trained.checkpoint.step:08d}-{label(sampler)}-{calls}-seed-{seed}",
        samples=codec.output_names([*per_item, *joint]),
    ) as folder:
        start = f"drawing {num_samples} samples of step {trained.checkpoint.step}"
        info_once(trained.accelerator, f"{start} into {folder.path}")
        film = Trajectory(codec, calls) if trajectory else None
        shard = Shard(trained.accelerator, num_samples, batch_size, calls=calls, single_items=True)
        indices, size = shard.indices, min(batch_size, len(shard.indices))
        trained.use_threads(threads, lambda: trained.trial(pipeline, shard.calls, size, numbers))
        with trained.progress(shard.calls, "sampling") as bar:
            options = {"classes": numbers, "condition": conditions, "on_step": on_step(bar, film)}
            batches = generate(pipeline, indices, seed=seed, batch_size=batch_size, **options)
            needed = _write_batches(trained.facts, batches, folder, indices.start, formats, names)
        data, labels = gather_samples(needed)
        if trained.accelerator.is_main_process:
            for each in joint:
                codec.write(data, folder.aside, format=each, labels=labels)
            _draw(trained.facts, data[:GRID], numbers, film, folder.aside)
    info_once(trained.accelerator, f"done: {folder.path} (look at {grid})")
    trained.accelerator.end_training()


def _class_names(facts: DataSpec, numbers: list[int] | None, num_samples: int) -> list[str] | None:
    """Return the name of the class of each sample, or None without classes."""
    names = facts.names
    if names is None or numbers is None:
        return None
    return [names[numbers[n % len(numbers)]] for n in range(num_samples)]


def _write_batches(
    facts: DataSpec,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    folder: OutputFolder,
    first: int,
    formats: tuple[list[str], list[str]],
    names: list[str] | None,
) -> list[tuple[Tensor, Tensor | None]]:
    """Write samples to one file each, and return those that are needed later.

    Args:
        facts: of the model's data.
        batches: raw data (N, C, *spatial) and class numbers (N,).
        folder: the output folder.
        first: index of the first sample.
        formats: of one file per sample, and of one file for all.
        names: of the class of each sample.
    """
    from ddpm.trajectory import GRID

    per_item, joint = formats
    needed = []
    for data, numbers in batches:
        classes = None if names is None else names[first : first + len(data)]
        for each in per_item:
            facts.codec.write(data, folder.aside, format=each, first=first, classes=classes)
        folder.publish()
        if joint or first < GRID:
            needed.append((data, facts.values(numbers)))
        first += len(data)
    return needed


def _draw(
    facts: DataSpec, data: Tensor, classes: list[int] | None, film: Trajectory | None, folder: Path
) -> None:
    """Write the pictures of the samples."""
    from ddpm.data.class_rows import cyclic_class_rows

    codec, rows = facts.codec, cyclic_class_rows(len(data), classes, facts.names)
    codec.picture(data, rows=rows).save(folder / "grid.png")
    codec.write_motion_gif(data, folder / "grid.gif", rows=rows)
    if film is not None:
        rows = cyclic_class_rows(len(film.frames[0]), classes, facts.names)
        codec.animate(film.frames, folder / "trajectory.gif", rows=rows)


if __name__ == "__main__":
    main()
