"""``ddpm-sample``: draw samples of a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ddpm.cli import app
from ddpm.console import info_once
from ddpm.errors import require

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from ddpm.data.spec import DataSpec
    from ddpm.trajectory import Trajectory


def main() -> None:
    """The console script."""
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
    """Draw samples and write them, each process its share."""
    from ddpm.distributed.sharding import Shard, gather_samples
    from ddpm.drawing import Trained, label
    from ddpm.generation import generate
    from ddpm.trajectory import GRID, Trajectory, on_step

    require(num_samples >= 1, "num_samples", num_samples, "must be at least 1")
    require(batch_size >= 1, "batch_size", batch_size, "must be at least 1")
    trained = Trained.load(ckpt, weights, device, precision)
    codec, wanted = trained.codec, trained.class_numbers(classes)
    pipeline = trained.pipeline(sampler, guidance=guidance, guidance_rescale=guidance_rescale)
    singly, jointly = trained.formats(format)
    known = trained.given(condition)
    calls, step = pipeline.num_calls(), trained.checkpoint.step
    look = "grid.gif" if codec.has_motion else "grid.png"
    names = trained.facts.names
    of_items = None
    if names is not None and wanted is not None:
        of_items = [names[wanted[n % len(wanted)]] for n in range(num_samples)]
    pictures = ["grid.png", look, *(["trajectory.gif"] if trajectory else [])]
    with trained.writing(
        "sample",
        [*codec.file_names([*singly, *jointly], num_samples, of_items), *pictures],
        out=out,
        default=f"step-{step:08d}-{label(sampler)}-{calls}-seed-{seed}",
        samples=codec.output_names([*singly, *jointly]),
    ) as folder:
        said = f"drawing {num_samples} samples of step {step} into {folder.path}"
        info_once(trained.accelerator, said)
        film = Trajectory(codec, calls) if trajectory else None
        shard = Shard(trained.accelerator, num_samples, batch_size, calls=calls, single_items=True)
        mine, total, kept = shard.indices, shard.calls, []
        size = min(batch_size, len(mine))
        trained.use_threads(threads, lambda: trained.trial(pipeline, total, size, wanted))
        with trained.progress(total, "sampling") as bar:
            batches = generate(
                pipeline,
                mine,
                seed=seed,
                batch_size=batch_size,
                classes=wanted,
                condition=known,
                on_step=on_step(bar, film),
            )
            first = mine.start
            for raw, numbers in batches:
                labels = trained.facts.values(numbers)
                here = None if of_items is None else of_items[first : first + len(raw)]
                for each in singly:
                    codec.write(raw, folder.aside, format=each, first=first, classes=here)
                folder.publish()
                if jointly or first < GRID:
                    kept.append((raw, labels))
                first += len(raw)
        raw, labels = gather_samples(kept)
        if trained.accelerator.is_main_process:
            for each in jointly:
                codec.write(raw, folder.aside, format=each, labels=labels)
            _draw(trained.facts, raw[:GRID], wanted, film, folder.aside)
    info_once(trained.accelerator, f"done: {folder.path} (look at {look})")
    trained.accelerator.end_training()


def _draw(
    facts: DataSpec, raw: Tensor, classes: list[int] | None, film: Trajectory | None, folder: Path
) -> None:
    """Write the pictures beside the samples."""
    from ddpm.data.class_rows import cyclic_class_rows

    codec, rows = facts.codec, cyclic_class_rows(len(raw), classes, facts.names)
    codec.picture(raw, rows=rows).save(folder / "grid.png")
    codec.write_motion_gif(raw, folder / "grid.gif", rows=rows)
    if film is not None:
        rows = cyclic_class_rows(len(film.frames[0]), classes, facts.names)
        codec.animate(film.frames, folder / "trajectory.gif", rows=rows)


if __name__ == "__main__":
    main()
