"""``ddpm-sample``: draw samples of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ddpm.cli import app
from ddpm.console import info_once
from ddpm.errors import require
from ddpm.guidance import GuidanceArguments
from ddpm.model_arguments import ModelArguments


def main() -> None:
    """Run the console script."""
    app.main("sample", lambda: Sample)


@dataclass(frozen=True, kw_only=True)
class Sample(GuidanceArguments, ModelArguments):
    """Options of the command; a call draws samples and writes them."""

    ckpt: str
    sampler: dict[str, Any]
    num_samples: int
    batch_size: int
    seed: int
    classes: list[int | str] | int | str | None
    condition: str | None
    trajectory: bool
    format: Literal["png", "gif", "npz", "npy"] | None
    out: str | None

    def __call__(self) -> None:
        """Draw samples and write them, each process its share."""
        from ddpm.distributed.sharding import Shard, gather_samples
        from ddpm.generation import generate
        from ddpm.runs.session import Session, sampler_name
        from ddpm.runs.tuning import Work, tune
        from ddpm.sample_files import SampleFiles
        from ddpm.trajectory import GRID, Trajectory, on_step

        count, batch_size = self.num_samples, self.batch_size
        require(count >= 1, "num_samples", count, "must be at least 1")
        require(batch_size >= 1, "batch_size", batch_size, "must be at least 1")
        session = Session.load(self.ckpt, self.weights, self.device, self.precision)
        accelerator, model = session.accelerator, session.model
        numbers = model.class_numbers(self.classes, self.guidance_options)
        pipeline = model.pipeline(self.sampler, guidance=self.guidance_options)
        rows = None if model.spec.names is None else numbers
        files = SampleFiles(model.spec, count, rows, self.format, has_film=self.trajectory)
        data, calls, first_samples = session.condition(self.condition), pipeline.num_calls(), []
        step, name = session.checkpoint.step, sampler_name(self.sampler)
        name = f"step-{step:08d}-{name}-{calls}-seed-{self.seed}"
        samples = files.codec.output_names(files.formats)
        output = session.writing(
            "sample", files.names(), out=self.out, default=name, samples=samples
        )
        with output as folder:
            info_once(accelerator, f"drawing {count} samples of step {step} into {folder.path}")
            film = Trajectory(files.codec, calls) if self.trajectory else None
            shard = Shard(accelerator, count, batch_size, calls=calls, single_items=True)
            size, first = min(batch_size, len(shard.indices)), shard.indices.start
            work = Work(pipeline, shard.calls, size, numbers)
            tune(session, work, threads=self.threads, compile=self.compile)
            with session.progress(shard.calls, "sampling") as bar:
                options = {"classes": numbers, "condition": data, "on_step": on_step(bar, film)}
                batches = generate(
                    pipeline, shard.indices, seed=self.seed, batch_size=batch_size, **options
                )
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
