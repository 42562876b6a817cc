"""A trained model on the processes of a command, and the folder that it writes to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ddpm.arithmetic import Arithmetic, PrecisionOption
from ddpm.console import progress, warn, warn_once
from ddpm.distributed import devices
from ddpm.distributed.output import agreed, writing
from ddpm.errors import Stopped
from ddpm.outputs import OutputFolder
from ddpm.signals import raise_pending
from ddpm.trained import TrainedModel, Weights
from ddpm.training import checkpoint as checkpoints
from ddpm.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class Session:
    """A trained model on the processes of a command.

    Attributes:
        model: the model, on the device of this process.
        checkpoint: of the model.
        accelerator: of the command.
    """

    model: TrainedModel
    checkpoint: Checkpoint
    accelerator: Accelerator

    @classmethod
    def load(
        cls, ckpt: str, weights: Weights, device: devices.Device, precision: PrecisionOption
    ) -> Session:
        """Read the checkpoint that ``ckpt`` names, the same on every process.

        Raises:
            ConfigError: see :func:`ddpm.load`.
        """
        accelerator = devices.accelerator(device, precision, key="precision")
        checkpoint = _find(ckpt, accelerator)
        default: Any = accelerator.mixed_precision
        arithmetic = Arithmetic(accelerator.device, precision, default)
        model = TrainedModel.from_checkpoint(checkpoint, weights, accelerator.device, arithmetic)
        devices.use_fast_kernels(accelerator.device, arithmetic.precision, deterministic=False)
        return cls(model, checkpoint, accelerator)

    def condition(self, path: str | None) -> Tensor | None:
        """Return the conditioning data of a file, and print the warnings about the file.

        Raises:
            ConfigError: see :meth:`ddpm.inputs.ModelInputs.condition`.
        """
        data = self.model.inputs.condition(path)
        if path is not None:
            warn_once(self.accelerator, self.model.codec.file_warnings(path))
        return data

    def progress(self, calls: int, description: str) -> tqdm:
        """Return a progress bar of network calls, shown by the main process."""
        return progress(calls, description, "call", shown=self.accelerator.is_main_process)

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
            Stopped: a signal arrived inside; the message says what the folder contains.
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
                note = f"{folder.path} is incomplete, the same command{where} draws all of it again"
            else:
                note = "no file was written; run the same command again"
            raise Stopped(f"{stopped}; {note}") from stopped


def sampler_name(node: Mapping[str, Any]) -> str:
    """Return ``ddim`` for ``ddpm.samplers.DDIM``, for names of folders."""
    return str(node.get("_target_")).rpartition(".")[2].lower()


def _find(ckpt: str, accelerator: Accelerator) -> Checkpoint:
    """Return the named checkpoint, the same on all processes even while its run continues."""
    if accelerator.num_processes == 1:
        return checkpoints.find(ckpt, warn)
    folder = agreed(accelerator, lambda: checkpoints.find(ckpt, warn).folder)
    return checkpoints.load(folder, whole=False)
