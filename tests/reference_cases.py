"""Reference cases: outputs of the original implementations on fixed inputs."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_FOLDER = Path(__file__).parent / "reference"


def load_case(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the metadata and the arrays of a case."""
    with np.load(_FOLDER / f"{name}.npz") as case:
        arrays = {key: torch.from_numpy(case[key]) for key in case.files if key != "meta"}
        return json.loads(str(case["meta"])), arrays


def filled(names_and_shapes: Iterable[Sequence[Any]]) -> dict[str, Tensor]:
    """Return the weights of a network case, each a function of its original name and shape.

    Parameters whose name ends with ``freqs`` are fixed, and left out.
    """
    return {
        name: _fill(name, shape) for name, shape in names_and_shapes if not name.endswith("freqs")
    }


def _fill(name: str, shape: Sequence[int]) -> Tensor:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    normal = rng.standard_normal(shape).astype(np.float32)
    if len(shape) >= 2 and shape[0] > 1:
        normal = normal / np.float32(math.sqrt(math.prod(shape[1:])))
    elif name.endswith("bias"):
        normal = np.float32(0.1) * normal
    else:
        normal = 1 + np.float32(0.1) * normal
    return torch.from_numpy(np.asarray(normal, dtype=np.float32))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest absolute error relative to the largest absolute expected value."""
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())
