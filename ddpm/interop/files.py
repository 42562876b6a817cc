"""Reading and taking apart the files that the originals' training wrote."""

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

# Inert values that trainings put beside the weights: numbers of numpy, options, paths.
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
    """What a file of an original holds.

    Attributes:
        raw: the weights of the network, by the original's names.
        ema: their average, where it was kept in the same file.
        buffers: the tables of the process, ``betas`` among them; empty for a bare network.
        step: how many optimizer steps were taken, where it is told.
        version: of the original, where it is stated.
        only_average: the file holds averaged weights alone, which are ``raw`` too.
        ignored: names of what else the file holds and nothing here uses.
        types: of the weights in the file, where they were not float32.
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
    """Return the content of a safetensors file or of one that ``torch.save`` wrote, on the CPU.

    Only tensors and plain data are read; nothing in the file is run. The kind of the file shows in
    its first bytes, whatever it is called.

    Raises:
        ConfigError: (key ``key``) it is not there, is neither, or holds anything else.
    """
    place = Path(path)
    require(not place.is_dir(), key, path, "is a folder; give the file in it")
    require(place.exists(), key, path, "there is no such file")
    require(place.is_file(), key, path, "is not a regular file; give a checkpoint")
    try:
        found = _load(place)
    except Exception as error:  # what is no checkpoint fails in many ways
        raise ConfigError(key, path, _reason(place, error)) from error
    good = isinstance(found, Mapping | list | tuple)
    require(good, key, path, "holds no state dict; save one, with torch.save(model.state_dict())")
    return found


def _load(place: Path) -> Any:
    with place.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{" and start[:1] not in (b"{", b"P"):
        return load_tensors(place)
    plain = torch.serialization.safe_globals(_PLAIN)
    with warnings.catch_warnings(action="ignore"), plain, place.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def _reason(place: Path, error: Exception) -> str:
    """Why a file cannot be read, and what to do."""
    what = re.search(r"GLOBAL (\S+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and what:
        return (
            f"holds more than tensors and plain data ({what[1]}), which is not safe to load; save "
            "the state dict alone where you trust the file: torch.save(model.state_dict(), "
            "'weights.pt'), or of a Lightning file torch.save(torch.load(file, "
            "weights_only=False)['state_dict'], 'weights.pt')"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror}); give a checkpoint"
    if "TorchScript" in str(error):
        return "is a TorchScript program; save its weights: torch.save(model.state_dict(), ...)"
    if place.stat().st_size == 0:
        return "cannot be read as a checkpoint: it is empty; copy or save it again"
    return (
        "cannot be read as a checkpoint: it is cut short or of another kind; copy it again, or "
        "save a state dict with torch.save(model.state_dict(), ...)"
    )


def step_in(path: str) -> int | None:
    """The step in the name of a file: ``ema_0.9999_500000.pt``, ``model-10.pt`` tell theirs."""
    told = re.search(r"(?:^model|^ema_[0-9.]+_)(\d{5,})\.pt$", Path(path).name)
    return int(told[1]) if told else None


def write(path: Path, content: bytes | Mapping[str, Any]) -> None:
    """Write bytes, or with ``torch.save`` a dictionary; never half a file.

    Raises:
        ConfigError: (key ``out``) the file system refuses.
    """
    try:
        with replacing(path) as aside:
            if isinstance(content, bytes):
                aside.write_bytes(content)
            else:
                torch.save(dict(content), aside)
    except ConfigError as error:
        raise error.renamed("out", str(path)) from error
