"""``ddpm-sample``: draw samples of a checkpoint."""

from __future__ import annotations

from typing import Any, Literal

from ddpm.cli import app
from ddpm.console import info_once
from ddpm.errors import require


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
    guidance_interval: tuple[float, float] | None,
    guide: str | None,
    guide_scale: float | None,
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
    from ddpm.generation import generate
    from ddpm.guidance import Guidance
    from ddpm.runs.session import Session, sampler_name, trial
    from ddpm.sample_files import SampleFiles
    from ddpm.trajectory import GRID, Trajectory, on_step

    require(num_samples >= 1, "num_samples", num_samples, "must be at least 1")
    require(batch_size >= 1, "batch_size", batch_size, "must be at least 1")
    session = Session.load(ckpt, weights, device, precision)
    accelerator, model = session.accelerator, session.model
    guided = Guidance(
        scale=guidance,
        rescale=guidance_rescale,
        interval=guidance_interval,
        guide=guide,
        guide_scale=guide_scale,
    )
    numbers, step = model.class_numbers(classes, guided), session.checkpoint.step
    pipeline = model.pipeline(sampler, guidance=guided)
    files = SampleFiles(model.spec, num_samples, numbers, format, has_film=trajectory)
    data, calls, first_samples = session.condition(condition), pipeline.num_calls(), []
    name = f"step-{step:08d}-{sampler_name(sampler)}-{calls}-seed-{seed}"
    samples = files.codec.output_names(files.formats)
    with session.writing("sample", files.names(), out=out, default=name, samples=samples) as folder:
        info_once(accelerator, f"drawing {num_samples} samples of step {step} into {folder.path}")
        film = Trajectory(files.codec, calls) if trajectory else None
        shard = Shard(accelerator, num_samples, batch_size, calls=calls, single_items=True)
        size, first = min(batch_size, len(shard.indices)), shard.indices.start
        session.use_threads(threads, lambda: trial(pipeline, shard.calls, size, numbers))
        with session.progress(shard.calls, "sampling") as bar:
            options = {"classes": numbers, "condition": data, "on_step": on_step(bar, film)}
            batches = generate(pipeline, shard.indices, seed=seed, batch_size=batch_size, **options)
            for raw, drawn in batches:
                files.write_batch(raw, first, folder.aside)
                folder.publish()
                if files.joint_formats or first < GRID:
                    first_samples.append((raw, model.spec.values(drawn)))
                first += len(raw)
        raw, labels = gather_samples(first_samples)
        if accelerator.is_main_process:
            files.write_all(raw, labels, folder.aside)
            files.write_pictures(raw[:GRID], film, folder.aside)
    info_once(accelerator, f"done: {folder.path} (look at {files.preview})")
    accelerator.end_training()


if __name__ == "__main__":
    main()
