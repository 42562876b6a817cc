"""Reading and taking apart the files that the originals' training wrote."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm.errors import ConfigError, require
from ddpm.files import load_tensors, replacing


@dataclass(frozen=True)
class Parts:
    """What a file of an original holds.

    Attributes:
        raw: the weights of the network, by the original's names.
        ema: their average, where it was kept in the same file.
        buffers: the tables of the process, ``betas`` among them; empty for a bare network.
        step: how many optimizer steps were taken, where it is told.
        version: of the original, where it is stated.
    """

    raw: dict[str, Tensor]
    ema: dict[str, Tensor] | None = None
    buffers: Mapping[str, Tensor] | None = None
    step: int | None = None
    version: str | None = None


def read(path: str, key: str = "file") -> dict[str, Any]:
    """The content of a ``.safetensors`` file or of one that ``torch.save`` wrote, on the CPU.

    Only tensors and plain data are read; nothing in the file is run.

    Raises:
        ConfigError: (key ``key``) it is not there, is neither, or holds anything else.
    """
    place = Path(path).expanduser()
    require(not place.is_dir(), key, path, "is a folder; give the file in it")
    require(place.is_file(), key, path, "there is no such file")
    try:
        if place.suffix == ".safetensors":
            return load_tensors(place)
        with warnings.catch_warnings(action="ignore"):
            found = torch.load(place, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no checkpoint fails in many ways
        what = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and what:
            problem = (
                f"holds more than tensors and plain data ({what[1]}), which is not safe to load; "
                "save the state dict alone, with torch.save(model.state_dict(), ...)"
            )
            raise ConfigError(key, path, problem) from error
        problem = "cannot be read as a checkpoint; it may be cut short, or of another kind"
        raise ConfigError(key, path, problem) from error
    good = isinstance(found, Mapping) and all(isinstance(name, str) for name in found)
    require(good, key, path, "holds no state dict")
    return dict(found)


def bare(checkpoint: Mapping[str, Any]) -> Parts:
    """A state dict alone, as improved-diffusion and guided-diffusion save it."""
    state = unwrapped(checkpoint)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    problem = "holds no weights; give the file of a network's state dict"
    require(bool(tensors) and len(tensors) == len(state), "file", None, problem)
    return Parts(tensors)


def nested(checkpoint: Mapping[str, Any], *, of: str, prefixes: Sequence[str]) -> Parts:
    """Take apart a file of a ``Trainer``, the state of a ``GaussianDiffusion``, or bare weights.

    As all trainers that grew out of denoising-diffusion-pytorch write them; the average is a
    process of its own, or ema-pytorch's.

    Args:
        checkpoint: the content of the file.
        of: the system, for the mistake.
        prefixes: what a process may call its network.

    Raises:
        ConfigError: (key ``file``) there is no network in it.
    """
    model = checkpoint.get("model", checkpoint)
    raw, buffers = _inside(model, prefixes) if isinstance(model, Mapping) else ({}, {})
    require("init_conv.weight" in raw, "file", None, f"holds no network of {of}")
    ema = None
    if isinstance(checkpoint.get("ema"), Mapping):
        average = under("ema_model.", checkpoint["ema"]) or checkpoint["ema"]
        ema = _inside(average, prefixes)[0] or None
    step, version = checkpoint.get("step"), checkpoint.get("version")
    told = version if isinstance(version, str) else None
    return Parts(raw, ema, buffers, None if step is None else int(step), told)


def _inside(
    state: Mapping[str, Any], prefixes: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of the network inside a process, and the process's tables."""
    state = unwrapped(state)
    for prefix in prefixes:
        if weights := under(prefix, state):
            others = {name: each for name, each in state.items() if not name.startswith(prefix)}
            return weights, others
    return dict(state), {}


def unwrapped(state: Mapping[str, Any]) -> dict[str, Any]:
    """Without the ``module.`` that a distributed wrapper puts before every name."""
    inside = under("module.", state)
    return inside if len(inside) == len(state) else dict(state)


def under(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """The entries with that prefix, without it."""
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


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
        raise ConfigError("out", str(path), error.problem) from error
