"""Sample grids while training."""

from __future__ import annotations

from accelerate import Accelerator

from ddpm import generation
from ddpm.cli.shares import gather, share
from ddpm.diffusion import GaussianDiffusion
from ddpm.instantiate import Facts
from ddpm.samplers import Sampler
from ddpm.training import Trainer
from ddpm.training.run import Run


class Previews:
    """Draws the same samples, of the same noise, with the averaged weights of the moment.

    Every process draws its share; the main one writes ``samples/step-00001000.png``.

    Args:
        sampler: how to draw.
        diffusion: the process that is trained.
        facts: of the data.
        accelerator: of the training.
        seed: of the samples.
        run: where the grids go.
    """

    def __init__(
        self,
        sampler: Sampler,
        diffusion: GaussianDiffusion,
        facts: Facts,
        accelerator: Accelerator,
        *,
        seed: int,
        run: Run,
    ) -> None:
        self.sampler, self.diffusion, self.facts = sampler, diffusion, facts
        self.accelerator, self.seed, self.run = accelerator, seed, run

    def __call__(self, trainer: Trainer) -> None:
        """Draw and write the grid of the trainer's step."""
        accelerator = self.accelerator
        source = generation.source(
            trainer.ema.model,
            self.diffusion,
            self.sampler,
            self.facts.codec,
            device=accelerator.device,
            autocast=lambda: accelerator.autocast(),
        )
        count = trainer.preview_samples
        known = None
        classes = None if self.facts.num_classes is None else list(range(self.facts.num_classes))
        if self.facts.codec.given is not None:  # of the first samples, and of their classes
            indices = [i % len(trainer.data) for i in range(count)]
            known, labels = trainer.data.fetch(indices, [0] * count)
            classes = None if labels is None else labels.tolist()
        drawn = generation.generate(
            source,
            share(accelerator, count),
            seed=self.seed,
            batch_size=trainer.batch_size,
            classes=classes,
            known=known,
        )
        grid, _ = gather(list(drawn))
        if accelerator.is_main_process:
            with self.run.forgiving("the sample grid"):
                path = self.run.show("samples", self.facts.codec.picture(grid), trainer.step)
                self.facts.codec.film(grid, path.with_suffix(".gif"))
