"""Array files: reading them without running anything they hold."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ddpm.errors import ConfigError

SUFFIXES = (".npy", ".npz", ".pt")
_LABELS = ("labels", "arr_1")


def read_arrays(path: str, key: str | None, want_labels: bool) -> tuple[Any, Any]:
    """As :func:`load_arrays`, with the values as float32, none of them NaN or infinite."""
    values, labels = load_arrays(path, key, want_labels)
    return as_float(values, path), labels


def load_arrays(
    path: str, key: str | None, want_labels: bool, *, mapped: bool = False
) -> tuple[npt.NDArray[Any], Any]:
    """The array of values in an .npy, .npz or .pt file, and the labels beside it.

    In a file of named arrays the values are ``key``, or "arr_0", or the only one; the labels are
    "labels" or "arr_1", and None unless wanted. ``mapped``: an .npy file stays on the disk and is
    read where it is looked at. The values are real numbers; pickled objects are refused. Raises
    ConfigError.
    """
    if not os.path.isfile(path):
        raise ConfigError("path", path, "no such file")
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise ConfigError("path", path, f"unknown kind of file; save it as one of {known}")
    try:
        if suffix == ".pt":
            held = torch.load(path, map_location="cpu", weights_only=True)
        else:
            mode = "r" if mapped and suffix == ".npy" else None
            held = np.load(path, mmap_mode=mode, allow_pickle=False)
        values, labels = _pick(held, path, key, want_labels)
        return _as_numbers(values, path), None if labels is None else np.asarray(labels)
    except ConfigError:
        raise
    except PermissionError as error:
        problem = f"cannot be opened ({error.strerror}); make it readable"
        raise ConfigError("path", path, problem) from error
    except pickle.UnpicklingError as error:
        problem = "holds more than tensors, or is damaged; save a tensor, or a dict of tensors"
        raise ConfigError("path", path, problem) from error
    except Exception as error:  # damaged zip, header or pickle: each has errors of its own
        reason = str(error).split("\n")[0]
        raise ConfigError("path", path, f"cannot be read ({reason}); save it anew") from error


def _pick(held: Any, path: str, key: str | None, want_labels: bool) -> tuple[Any, Any]:
    """The values, and the labels if wanted, in what a file holds: one array, or named ones."""
    if isinstance(held, (np.ndarray, torch.Tensor)):
        if key is not None:
            raise ConfigError("key", key, f"{path} holds one array without a name; omit data.key")
        if want_labels:
            remedy = "save an .npz with the arrays arr_0 and labels"
            raise ConfigError("class_cond", True, f"{path} holds no labels; {remedy}")
        return held, None
    if not isinstance(held, Mapping):
        raise ConfigError("path", path, f"holds a {type(held).__name__}; save a tensor")
    names = [str(name) for name in held]
    labels_name = next((name for name in _LABELS if name in names), None)
    if want_labels and labels_name is None:
        remedy = f"name them labels (there are: {', '.join(names)})"
        raise ConfigError("class_cond", True, f"{path} holds no labels; {remedy}")
    values_name = _values_name(names, path, key)
    return held[values_name], held[labels_name] if want_labels else None


def _values_name(names: list[str], path: str, key: str | None) -> str:
    if key is None:
        others = [name for name in names if name not in _LABELS]
        if "arr_0" in others or len(others) == 1:
            return "arr_0" if "arr_0" in others else others[0]
        problem = f"which array of {path}? set data.key to one of: {', '.join(names) or '(none)'}"
        raise ConfigError("key", None, problem)
    if key not in names:
        raise ConfigError("key", key, f"not in {path} (there are: {', '.join(names) or 'none'})")
    return key


def _as_numbers(values: Any, path: str) -> npt.NDArray[Any]:
    if isinstance(values, torch.Tensor):
        values = values.detach()  # float(): not all float types have a counterpart in numpy
        values = values.float().numpy() if values.is_floating_point() else values.numpy()
    values = np.asanyarray(values)
    if values.dtype.kind not in "fiub":
        raise ConfigError("path", path, f"holds values of type {values.dtype}; save real numbers")
    return values


def as_float(values: npt.NDArray[Any], path: str) -> npt.NDArray[np.float32]:
    """Values as float32; raises ConfigError, naming the file, where some are not finite there."""
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    _refuse(single.size - int(np.isfinite(single).sum()), single.size, path)
    return single


def measured_range(values: npt.NDArray[Any], path: str) -> tuple[float, float]:
    """The least and the greatest of ``values``, as float32, looking at one item at a time.

    Raises ConfigError, naming the file, where some are not finite.
    """
    least, most, bad = np.inf, -np.inf, 0
    for item in values:
        with np.errstate(over="ignore"):
            single = np.asarray(item, np.float32)
        low, high = float(single.min()), float(single.max())
        if not np.isfinite([low, high]).all():
            bad += single.size - int(np.isfinite(single).sum())
        least, most = min(least, low), max(most, high)
    _refuse(bad, values.size, path)
    return least, most


def _refuse(bad: int, of: int, path: str) -> None:
    if bad:
        problem = f"{bad} of its {of} values are NaN or infinite; remove or replace them"
        raise ConfigError("path", path, problem)


def declared_range(
    measured: tuple[float, float], path: str, low: float | None, high: float | None
) -> tuple[float, float]:
    """The declared range where there is one, checked against the measured one; else that.

    Raises ConfigError (key ``low`` or ``high``).
    """
    least, most = measured
    low_end, high_end = least if low is None else low, most if high is None else high
    if low is not None and np.float32(least) < np.float32(low):
        raise ConfigError("low", low, f"{path} holds values down to {least:g}; lower data.low")
    if high is not None and np.float32(most) > np.float32(high):
        raise ConfigError("high", high, f"{path} holds values up to {most:g}; raise data.high")
    if low_end >= high_end:
        problem = f"there is no range from {low_end:g} to {high_end:g}"
        remedy = "set data.low below data.high, around all values"
        raise ConfigError("low", low, f"{problem} for the values of {path}; {remedy}")
    return low_end, high_end


def array_classes(
    labels: Any, path: str, count: int, what: str
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return labels as class numbers, and the names of the classes.

    The classes are the labels that occur, in their order: names, or whole numbers from 0, which
    are then the names. ``what`` is what one of the ``count`` items is called. Raises ConfigError
    (key ``class_cond``).
    """
    if labels.shape != (count,):
        problem = f"{path} holds labels of shape {labels.shape}; they must be ({count},)"
        raise ConfigError("class_cond", True, f"{problem}, one for each {what}")
    if labels.dtype.kind == "U":
        names, numbers = np.unique(labels, return_inverse=True)
        return numbers.astype(np.int64), [str(name) for name in names]
    whole = _whole_numbers(labels)
    if whole is None:
        problem = f"{path} holds labels that are not whole numbers from 0, nor names"
        raise ConfigError("class_cond", True, f"{problem}; save them as integers")
    values, numbers = np.unique(whole, return_inverse=True)
    return numbers.astype(np.int64), [str(value) for value in values.tolist()]


def _whole_numbers(labels: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """Return labels as whole numbers from 0, or None where some are not; 2.0 and True are."""
    if labels.dtype.kind == "b":
        return labels.astype(np.int64)
    if labels.dtype.kind == "f":
        whole = np.isfinite(labels) & (np.abs(labels) < 2**53) & (np.rint(labels) == labels)
        labels = labels.astype(np.int64) if bool(whole.all()) else labels
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        return None
    return labels
