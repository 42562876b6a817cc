"""Reading and writing of checkpoint files of other systems."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm.errors import ConfigError, require
from ddpm.files import load_tensors, replacing

# Harmless types that training scripts store beside the weights: NumPy scalars, options, paths.
_scalar = np.float64(0).__reduce__()[0]
_PLAIN = [
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "f2", "i8", "i4", "?")),
    argparse.Namespace,
    PosixPath,
]


@dataclass(frozen=True)
class Parts:
    """Contents of a checkpoint file.

    Attributes:
        raw: weights of the network, with the original's names.
        ema: averaged weights, if they are in the same file.
        buffers: tables of the process, such as ``betas``; empty for a bare network.
        step: number of optimizer steps; None if unknown.
        version: of the system; None if unknown.
        only_average: True if the file has averaged weights only, which are then ``raw`` too.
        ignored: names of the entries that are not used.
        types: dtypes of the weights in the file other than float32.
    """

    raw: dict[str, Tensor]
    ema: dict[str, Tensor] | None = None
    buffers: Mapping[str, Tensor] | None = None
    step: int | None = None
    version: str | None = None
    only_average: bool = False
    ignored: Sequence[str] = ()
    types: Sequence[str] = ()


def read(path: str, key: str = "file") -> Any:
    """Return the content of a safetensors file or of a ``torch.save`` file, on the CPU.

    Only tensors and plain data are read; no code in the file is run. The format is detected from
    the first bytes, not from the name.

    Raises:
        ConfigError: (key ``key``) the file is missing, has another format or other contents.
    """
    place = Path(path)
    require(not place.is_dir(), key, path, "is a folder; use a file in it")
    require(place.exists(), key, path, "file not found")
    require(place.is_file(), key, path, "is not a regular file; use a checkpoint")
    try:
        content = _load(place)
    except Exception as error:  # other files raise many kinds of errors
        raise ConfigError(key, path, _reason(place, error)) from error
    good = isinstance(content, Mapping | list | tuple)
    require(good, key, path, "contains no state dict; save one with torch.save(model.state_dict())")
    return content


def _load(place: Path) -> Any:
    with place.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{" and start[:1] not in (b"{", b"P"):
        return load_tensors(place)
    plain = torch.serialization.safe_globals(_PLAIN)
    with warnings.catch_warnings(action="ignore"), plain, place.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def _reason(place: Path, error: Exception) -> str:
    """Return why a file cannot be read, and a remedy."""
    name = re.search(r"GLOBAL (\S+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and name:
        return (
            f"contains more than tensors and plain data ({name[1]}), which is unsafe to load; save "
            "the state dict alone if you trust the file: torch.save(model.state_dict(), "
            "'weights.pt'), or of a Lightning file torch.save(torch.load(file, "
            "weights_only=False)['state_dict'], 'weights.pt')"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror}); use a checkpoint"
    if "TorchScript" in str(error):
        return "is a TorchScript program; save its weights: torch.save(model.state_dict(), ...)"
    if place.stat().st_size == 0:
        return "is empty; copy or save it again"
    return (
        "is not a checkpoint, or is truncated; copy it again, or "
        "save a state dict with torch.save(model.state_dict(), ...)"
    )


def step_in(path: str) -> int | None:
    """Return the step in a file name such as ``ema_0.9999_500000.pt``; None if absent."""
    match = re.search(r"(?:^model|^ema_[0-9.]+_)(\d{5,})\.pt$", Path(path).name)
    return int(match[1]) if match else None


def write(path: Path, content: bytes | Mapping[str, Any]) -> None:
    """Write bytes, or a dictionary with ``torch.save``; the file is complete or absent.

    Raises:
        ConfigError: (key ``out``) the file cannot be written.
    """
    try:
        with replacing(path) as aside:
            if isinstance(content, bytes):
                aside.write_bytes(content)
            else:
                torch.save(dict(content), aside)
    except ConfigError as error:
        raise error.renamed("out", str(path)) from error
