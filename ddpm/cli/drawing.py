"""What ``ddpm-sample`` and ``ddpm-interpolate`` share: a trained model and where results go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from tqdm import tqdm

from ddpm import generation, instantiate
from ddpm.cli import app
from ddpm.data import Codec
from ddpm.diffusion import GaussianDiffusion
from ddpm.errors import ConfigError, require
from ddpm.progress import progress
from ddpm.samplers.base import OnStep
from ddpm.training import checkpoint, launch
from ddpm.training.run import new_folder, unwritable

GRID = 64  # samples in grid.png
FRAMES = 50  # pictures in a trajectory, at most


@dataclass(frozen=True)
class Trained:
    """A checkpoint made ready to draw from, on every process."""

    accelerator: Accelerator
    checkpoint: checkpoint.Checkpoint
    network: nn.Module
    diffusion: GaussianDiffusion
    facts: instantiate.Facts

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
        found = checkpoint.find(ckpt, app.warn)
        network, diffusion, facts = instantiate.trained(found, weights)
        return cls(accelerator, found, network.to(accelerator.device), diffusion, facts)

    def source(
        self, sampler: Mapping[str, Any], steps: int | None, guidance: float
    ) -> generation.Source:
        """What to draw from, with the sampler of a config node."""
        return generation.source(
            self.network,
            self.diffusion,
            instantiate.sampler(sampler, steps),
            self.facts.codec,
            device=self.accelerator.device,
            guidance=guidance,
            num_classes=self.facts.num_classes,
            autocast=lambda: self.accelerator.autocast(),
        )

    def classes(self, asked: list[int | str] | int | str | None) -> list[int] | None:
        """Class numbers of what a user typed, numbers or names; default all, in turn.

        Raises:
            ConfigError: an unconditional model, or a class that it does not know.
        """
        count, names = self.facts.num_classes, self.facts.class_names or []
        if count is None:
            problem = "the model knows no classes; leave it out, or train with data.class_cond=true"
            require(asked is None, "classes", asked, problem)
            return None
        if asked is None:
            return list(range(count))
        wanted = asked if isinstance(asked, list) else [asked]
        numbers = [names.index(c) if isinstance(c, str) and c in names else c for c in wanted]
        for number in numbers:
            if not isinstance(number, int) or not 0 <= number < count:
                known = f" or {', '.join(names)}" if names else ""
                problem = f"the model knows the classes 0 to {count - 1}{known}"
                raise ConfigError("classes", asked, problem)
        require(bool(numbers), "classes", asked, "name at least one, or leave it out")
        return [int(number) for number in numbers]

    def format(self, asked: str | None) -> str:
        """The format to write in, one of those that the data can be written in."""
        codec = self.facts.codec
        problem = f"these samples can be written as {', '.join(codec.formats)}"
        require(asked is None or asked in codec.formats, "format", asked, problem)
        return asked or codec.default_format

    def folder(self, out: str | None, default: str) -> Path:
        """The folder to write to, made by the main process: ``out``, or a new one in the run.

        Raises:
            ConfigError: it cannot be written.
        """
        folder = None if out is None else Path(out)
        if folder is None and self.accelerator.is_main_process:
            folder = new_folder(self.checkpoint.run / "generated", default)
        (folder,) = broadcast_object_list([folder])
        assert isinstance(folder, Path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".probe-{self.accelerator.process_index}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise unwritable(folder, error) from error
        return folder

    def progress(self, calls: int, what: str) -> tqdm:
        """A bar over the calls of the network, with the time that is left."""
        return progress(calls, what, "call", shown=self.accelerator.is_main_process)


def drop_stale(folder: Path, count: int) -> None:
    """Delete the images that an earlier, larger call left in ``folder``: evaluators read all."""
    for path in (folder / "images").glob("*.png"):
        if path.stem.isdecimal() and int(path.stem) >= count:
            path.unlink()


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
