"""What drawing from a model takes: the model, made ready, and where results go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from tqdm import tqdm

from ddpm import generation, instantiate
from ddpm.console import progress, warn, warn_once
from ddpm.distributed import cpu_threads, devices
from ddpm.distributed.output import writing
from ddpm.errors import ConfigError, Stopped, require
from ddpm.outputs import OutputFolder
from ddpm.signals import raise_pending
from ddpm.trained import TrainedModel, placed
from ddpm.training import checkpoint
from ddpm.training.trial import median_seconds


@dataclass(frozen=True, kw_only=True, eq=False)
class Model(TrainedModel):
    """A trained model on the processes of a command."""

    accelerator: Accelerator

    def given(self, path: str | None) -> Tensor | None:
        """Return the given entries of a file, and print what is to be said of it.

        Raises:
            ConfigError: see :meth:`condition`.
        """
        known = self.condition(path)
        if path is not None:
            warn_once(self.accelerator, self.codec.file_warnings(path))
        return known

    def formats(self, asked: str | None) -> tuple[list[str], list[str]]:
        """The formats to write: those of one file a sample, and those of one file for all.

        By default what suits the data, and what keeps their exact values beside it.
        """
        codec = self.codec
        problem = f"these samples can be written as {', '.join(codec.formats)}"
        require(asked is None or asked in codec.formats, "format", asked, problem)
        wanted = [codec.default_format, *codec.extra_formats] if asked is None else [asked]
        singly = [each for each in wanted if each in codec.folders]
        return singly, [each for each in wanted if each not in codec.folders]

    def trial(
        self,
        pipeline: generation.SamplingPipeline,
        calls: int,
        size: int,
        classes: Sequence[int] | None,
    ) -> cpu_threads.Trial:
        """Return network calls that can be tried, of ``size`` samples at once."""
        call = pipeline.benchmark_call(max(size, 1), classes)  # some process may have no sample

        def measure(seconds: float) -> float:
            return median_seconds(call, pipeline.device, seconds=seconds)

        return cpu_threads.Trial(measure, calls, "network call")

    def progress(self, calls: int, what: str) -> tqdm:
        """A bar over the calls of the network, with the time that is left."""
        return progress(calls, what, "call", shown=self.accelerator.is_main_process)


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained(Model):
    """The model of a checkpoint."""

    checkpoint: checkpoint.Checkpoint

    @classmethod
    def load(
        cls,
        ckpt: str,
        weights: Literal["ema", "raw"],
        device: devices.Device,
        precision: devices.Precision,
    ) -> Trained:
        """Read the checkpoint that ``ckpt`` names; see :func:`ddpm.training.checkpoint.find`."""
        accelerator = devices.accelerator(device, precision, key="precision")
        found = _found(ckpt, accelerator)
        network, diffusion, facts = instantiate.trained(found, weights)
        return cls(
            network=placed(network, accelerator.device, facts),
            diffusion=diffusion,
            facts=facts,
            device=accelerator.device,
            autocast=lambda: accelerator.autocast(),
            checkpoint=found,
            weights=weights,
            accelerator=accelerator,
        )

    def use_threads(
        self, threads: cpu_threads.Threads, trial: Callable[[], cpu_threads.Trial]
    ) -> None:
        """Set the number of threads: that of the training, so that bits are as they were."""
        cpu_threads.use(threads, self.accelerator, trial=trial, stored=self.checkpoint.metadata)

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


def label(node: Mapping[str, Any]) -> str:
    """``ddim`` of ``ddpm.samplers.DDIM``, for names of folders."""
    return str(node.get("_target_")).rpartition(".")[2].lower()
