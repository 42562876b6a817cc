"""Train, sample and interpolate denoising diffusion models.

Example::

    import ddpm

    model = ddpm.load("outputs/latest")
    images, labels = model.sample(64, steps=50, seed=0)  # uint8 (64, C, H, W)
    model.save_images(images, "samples")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ddpm.version import __version__

if TYPE_CHECKING:
    from ddpm.guidance import Guidance
    from ddpm.trained import Samples, TrainedModel

__all__ = ["Guidance", "Samples", "TrainedModel", "__version__", "average", "load", "train"]


def load(
    path: str | Path,
    weights: Literal["ema", "raw"] = "ema",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["auto", "no", "fp16", "bf16"] = "auto",
    *,
    plugins: Sequence[str] | str = (),
) -> TrainedModel:
    """Return the model of a run folder or a checkpoint.

    Args:
        path: what ``ckpt=`` takes: a run folder, its newest intact checkpoint is read; a
            checkpoint; or ``outputs/latest``.
        weights: ``ema`` for the average, ``raw`` for the weights of the last step.
        device: ``auto`` takes a GPU where there is one.
        precision: of the network's arithmetic: ``no`` (float32), ``bf16``, or on a GPU ``fp16``;
            ``auto`` is bf16 on a GPU that supports it, if predictions are close to float32.
        plugins: modules of your own whose classes the run uses.

    Raises:
        ddpm.errors.ConfigError: no checkpoint, one that is damaged, or a device that is missing.
    """
    from ddpm import trained

    return trained.load(path, weights, device, precision, plugins)


def train(
    config: Mapping[str, Any] | Sequence[str] = (), *, init: str | Path | None = None
) -> TrainedModel:
    """Train a model as ``ddpm-train`` does, and return it with its averaged weights.

    The run folder is the same as that of the command; the same ``name`` resumes it.

    Args:
        config: options of ``ddpm-train``, as typed there: ``["data=cifar", "trainer.lr=1e-4"]``; or
            as a mapping: ``{"data": "cifar", "trainer": {"lr": 1e-4}}``, in which a group with a
            ``_target_``, as in the ``config.yaml`` of a run, names its class itself.
        init: a run or a checkpoint whose averaged weights a new run starts from, as far as they
            fit; the same as the option ``init``.

    Raises:
        ddpm.errors.ConfigError: options, data or files that are invalid.
        KeyboardInterrupt: training was interrupted; the checkpoint of the last step is written, and
            the message says how to resume.
    """
    import torch

    from ddpm.cli.train import train_model
    from ddpm.config.values import quoted
    from ddpm.errors import Stopped

    if init is not None and isinstance(config, Mapping):
        config = {**config, "init": str(init)}
    elif init is not None:
        config = [*config, f"init={quoted(str(init))}"]
    threads = torch.get_num_threads()
    try:
        return train_model(config)
    except Stopped as stopped:
        raise KeyboardInterrupt(str(stopped)) from None
    finally:
        torch.set_num_threads(threads)


def average(
    path: str | Path,
    sigma_rel: float,
    *,
    step: int | None = None,
    max_error: float = 0.1,
    out: str | Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["auto", "no", "fp16", "bf16"] = "auto",
    plugins: Sequence[str] | str = (),
) -> TrainedModel:
    """Return a model with another average of the weights of a training, as ``ddpm-average`` does.

    The average is written as a run; it is read again if it exists.

    Args:
        path: a run that was trained with ``trainer.posthoc_ema``, or a checkpoint of it.
        sigma_rel: length of the average: the standard deviation of its profile, relative to the
            steps so far, below 0.289.
        step: step of a snapshot, at which the average ends; None = the last one.
        max_error: largest difference between the profile and its closest combination of the
            snapshots, relative to the profile.
        out: parent folder of the new run; None = ``averages`` of the run.
        device: see :func:`load`.
        precision: see :func:`load`.
        plugins: see :func:`load`.

    Raises:
        ddpm.errors.ConfigError: no snapshots, or a profile that they do not approximate.
    """
    from ddpm import trained
    from ddpm.runs.averaging import average_runs

    (folder,) = average_runs(path, [sigma_rel], step=step, max_error=max_error, out=out)
    return trained.load(folder, "ema", device, precision, plugins)


def __getattr__(name: str) -> Any:
    """Import the public classes when they are used: the commands start without torch."""
    if name in ("Samples", "TrainedModel"):
        from ddpm import trained

        return getattr(trained, name)
    if name == "Guidance":
        from ddpm.guidance import Guidance

        return Guidance
    raise AttributeError(f"module 'ddpm' has no attribute {name!r}")
