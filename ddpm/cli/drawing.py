"""What drawing from a model takes: the model, made ready, and where results go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from tqdm import tqdm

from ddpm import generation, instantiate
from ddpm.cli import app, cores
from ddpm.cli.output import writing
from ddpm.data import Codec
from ddpm.data.classes import class_number, listed
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import ConfigError, Stopped, require
from ddpm.outputs import OutputFolder
from ddpm.progress import progress, warn
from ddpm.samplers.base import OnStep, Steps
from ddpm.signals import raise_pending
from ddpm.training import checkpoint, launch
from ddpm.training.trial import median_seconds

GRID = 64  # samples in grid.png
FRAMES = 50  # pictures in a trajectory, at most


@dataclass(frozen=True)
class Model:
    """A network with what drawing from it takes, on every process."""

    accelerator: Accelerator
    network: nn.Module
    diffusion: GaussianDiffusion
    facts: instantiate.Facts

    def source(
        self,
        sampler: Mapping[str, Any],
        steps: Steps | list[int],
        guidance: float,
        guidance_rescale: float,
    ) -> generation.Source:
        """What to draw from, with the sampler of a config node."""
        return generation.source(
            self.network,
            self.diffusion,
            instantiate.sampler(sampler, steps),
            self.facts.codec,
            device=self.accelerator.device,
            guidance=guidance,
            guidance_rescale=guidance_rescale,
            num_classes=self.facts.num_classes,
            autocast=lambda: self.accelerator.autocast(),
        )

    def classes(self, asked: list[int | str] | int | str | None) -> list[int] | None:
        """Return the numbers of the classes that a user typed; by default all, in turn.

        Raises:
            ConfigError: an unconditional model, or a class that it does not know.
        """
        names = self.facts.names
        if names is None:
            problem = "the model knows no classes; leave it out, or train with data.class_cond=true"
            require(asked is None, "classes", asked, problem)
            return None
        if asked is None:
            return list(range(len(names)))
        wanted = asked if isinstance(asked, list) else [asked]
        numbers = [class_number(each, names) for each in wanted]
        known = [number for number in numbers if number is not None]
        problem = f"the model knows the classes {listed(names)}; use some of those"
        require(len(known) == len(wanted), "classes", asked, problem)
        require(bool(known), "classes", asked, "name at least one, or leave it out")
        return known

    def given(self, path: str | None) -> Tensor | None:
        """What a model is given, raw data (N, C, *spatial) of the user's file.

        Raises:
            ConfigError: a model that is given nothing, one that needs it, or a file that does not
                fit.
        """
        codec = self.facts.codec
        if codec.given is None:
            problem = "the model is given nothing; leave it out, or train with data.condition"
            require(path is None, "condition", path, problem)
            return None
        if path is None:
            problem = "is missing: the model is given part of the data; name a file that holds it"
            raise ConfigError("condition", None, problem)
        try:
            known = codec.read_given(path)
            app.warn_once(self.accelerator, codec.warnings_of(path))
            return known
        except ConfigError as error:
            raise error.renamed("condition", path) from error

    def formats(self, asked: str | None) -> tuple[list[str], list[str]]:
        """The formats to write: those of one file a sample, and those of one file for all.

        By default what suits the data, and what keeps their exact values beside it.
        """
        codec = self.facts.codec
        problem = f"these samples can be written as {', '.join(codec.formats)}"
        require(asked is None or asked in codec.formats, "format", asked, problem)
        wanted = [codec.default_format, *codec.also] if asked is None else [asked]
        singly = [each for each in wanted if each in codec.folders]
        return singly, [each for each in wanted if each not in codec.folders]

    def trial(
        self, source: generation.Source, calls: int, size: int, classes: Sequence[int] | None
    ) -> cores.Trial:
        """Return network calls that can be tried, of ``size`` samples at once."""
        device, size = self.accelerator.device, max(size, 1)  # some process may have no sample
        noise = generation.SampleNoise(range(size)).draw(source.codec.shape).to(device)
        y = None if classes is None else torch.full((size,), classes[0], device=device)

        def call() -> None:
            with torch.inference_mode(), source.autocast():
                source.denoiser(noise, source.diffusion.num_steps - 1, y=y)

        def measure(seconds: float) -> float:
            return median_seconds(call, device, seconds=seconds)

        return cores.Trial(measure, calls, "network call")

    def progress(self, calls: int, what: str) -> tqdm:
        """A bar over the calls of the network, with the time that is left."""
        return progress(calls, what, "call", shown=self.accelerator.is_main_process)


@dataclass(frozen=True)
class Trained(Model):
    """The model of a checkpoint."""

    checkpoint: checkpoint.Checkpoint

    @classmethod
    def load(
        cls,
        ckpt: str,
        weights: Literal["ema", "raw"],
        device: launch.Device,
        precision: launch.Precision,
    ) -> Trained:
        """Read the checkpoint that ``ckpt`` names; see :func:`ddpm.training.checkpoint.find`."""
        accelerator = launch.accelerator(device, precision, key="precision")
        found = _found(ckpt, accelerator)
        network, diffusion, facts = instantiate.trained(found, weights)
        network = network.to(accelerator.device)
        if accelerator.device.type == "cpu" and len(facts.shape) == 3:  # scripts/sampling_speed.py
            network = network.to(memory_format=torch.channels_last)  # pyright: ignore
        return cls(accelerator, network, diffusion, facts, found)

    def use_threads(self, threads: cores.Threads, trial: Callable[[], cores.Trial]) -> None:
        """Set the number of threads: that of the training, so that bits are as they were."""
        cores.use(threads, self.accelerator, trial=trial, header=self.checkpoint.header)

    @contextmanager
    def writing(
        self,
        command: str,
        names: Sequence[str],
        *,
        out: str | None,
        default: str,
        samples: Sequence[str],
    ) -> Iterator[OutputFolder]:
        """Give the folder to write to: ``out``, or a new one in the run; see :func:`writing`.

        Raises:
            Stopped: a signal arrived inside; says what is in the folder.
        """
        raise_pending()
        place, folder = self.checkpoint.run / "generated" / default, None
        output = writing(self.accelerator, command, names, out=out, default=place, samples=samples)
        try:
            with output as folder:
                yield folder
        except Stopped as stopped:
            if folder is None or not str(stopped):
                raise
            if folder.has_files():
                where = "" if out is not None else f" with out={folder.path}"
                said = f"{folder.path} is incomplete, the same command{where} draws all of it again"
            else:
                said = "no file was written, the same command starts afresh"
            raise Stopped(f"{stopped}; {said}") from stopped


def _found(ckpt: str, accelerator: Accelerator) -> checkpoint.Checkpoint:
    """The checkpoint that is named, the same for all processes also while its run goes on."""
    if accelerator.num_processes == 1:
        return checkpoint.find(ckpt, warn)
    told: Path | ConfigError | None = None
    if accelerator.is_main_process:
        try:
            told = checkpoint.find(ckpt, warn).folder
        except ConfigError as error:
            told = error
    (told,) = broadcast_object_list([told])
    if isinstance(told, ConfigError):
        raise told
    assert isinstance(told, Path)
    return checkpoint.load(told, whole=False)


class Trajectory:
    """Keeps pictures of the first batch on its way from noise to data.

    Args:
        codec: of the data.
        calls: steps of the way.
    """

    def __init__(self, codec: Codec, calls: int) -> None:
        self.codec = codec
        self.kept = {round(i * calls / min(calls, FRAMES)) for i in range(1, FRAMES + 1)}
        self.frames: list[Tensor] = []
        self.finished = False

    def look(self, done: int, total: int, x: Tensor) -> None:
        """Take the batch after step ``done`` of ``total``, if it is one to keep."""
        if done in self.kept and not self.finished:
            self.frames.append(self.codec.decode(x[:GRID]).cpu())
        self.finished |= done == total


def on_step(bar: tqdm, film: Trajectory | None = None) -> OnStep:
    """Moves the bar, and shows the film's keeper what was reached."""

    def after(done: int, total: int, x: Tensor) -> None:
        bar.update()
        if film is not None:
            film.look(done, total, x)

    return after


def label(node: Mapping[str, Any]) -> str:
    """``ddim`` of ``ddpm.samplers.DDIM``, for names of folders."""
    return str(node.get("_target_")).rpartition(".")[2].lower()
