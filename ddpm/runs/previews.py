"""Previews: sample grids during training."""

from __future__ import annotations

from accelerate import Accelerator
from torch import Tensor

from ddpm.console import progress
from ddpm.data.class_rows import cyclic_class_rows
from ddpm.data.spec import DataSpec
from ddpm.diffusion import GaussianDiffusion
from ddpm.distributed.sharding import Shard, gather_samples
from ddpm.distributed.stopping import Stopping
from ddpm.generation import generate
from ddpm.pipeline import SamplingPipeline, build_pipeline
from ddpm.samplers import Sampler
from ddpm.training import Trainer
from ddpm.training.run import Run


class Previews:
    """Draws the same samples, from the same noise, with the current averaged weights.

    Every process draws its share, and the main process writes ``samples/step-00001000.png``.

    Args:
        sampler: the sampler.
        diffusion: the diffusion process of the training.
        spec: shape, classes and codec of the data.
        accelerator: of the training.
        seed: seed of the samples.
        run: run folder of the grids.
    """

    def __init__(
        self,
        sampler: Sampler,
        diffusion: GaussianDiffusion,
        spec: DataSpec,
        accelerator: Accelerator,
        *,
        seed: int,
        run: Run,
    ) -> None:
        self.sampler, self.diffusion, self.spec = sampler, diffusion, spec
        self.accelerator, self.seed, self.run = accelerator, seed, run

    def __call__(self, trainer: Trainer, stopping: Stopping) -> None:
        """Draw and write the grid of the current step.

        Raises:
            GivenUpError: a signal asked to stop; nothing was written.
        """
        accelerator = self.accelerator
        pipeline = build_pipeline(
            trainer.ema.model,
            self.diffusion,
            self.sampler,
            self.spec.codec,
            device=accelerator.device,
            autocast=lambda: accelerator.autocast(),
        )
        count = trainer.options.preview_samples
        condition = None
        classes = None if self.spec.num_classes is None else list(range(self.spec.num_classes))
        if self.spec.codec.condition_mask is not None:  # from the first samples
            indices = [i % len(trainer.data) for i in range(count)]
            condition, labels = trainer.data.fetch(indices, [0] * count)
            classes = None if labels is None else labels.tolist()
        grid = self._draw(pipeline, trainer, classes, condition, stopping)
        if accelerator.is_main_process:
            with self.run.warn_on_io_error("the sample grid"):
                # The picture is written last: on resuming, a step without one is drawn again.
                film = self.run.picture("samples", trainer.step).with_suffix(".gif")
                rows = cyclic_class_rows(len(grid), classes, self.spec.names)
                self.spec.codec.write_motion_gif(grid, film, rows=rows)
                picture = self.spec.codec.picture(grid, rows=rows)
                self.run.show("samples", picture, trainer.step)

    def _draw(
        self,
        pipeline: SamplingPipeline,
        trainer: Trainer,
        classes: list[int] | None,
        condition: Tensor | None,
        stopping: Stopping,
    ) -> Tensor:
        """Return the raw samples of all processes."""
        # Of the size of a micro-batch, whose activations for the gradient need more memory.
        accelerator, size = self.accelerator, trainer.loader.micro_batch_size
        shard = Shard(
            accelerator,
            trainer.options.preview_samples,
            size,
            calls=pipeline.num_calls(),
            stopping=stopping,
            single_items=True,
            check_at_end=True,
        )
        main = accelerator.is_main_process
        what = f"preview of step {trainer.step}"
        with progress(shard.calls, what, "call", shown=main, leave=False) as bar:

            def after(*_: object) -> None:
                bar.update()
                shard.tick()

            with shard.interruptible():
                batches = generate(
                    pipeline,
                    shard.indices,
                    seed=self.seed,
                    batch_size=size,
                    classes=classes,
                    condition=condition,
                    on_step=after,
                )
                drawn = list(batches)
            shard.finish()
        return gather_samples(drawn)[0]
