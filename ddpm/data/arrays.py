"""Reading of array files, without executing code that they contain."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ddpm.errors import ConfigError
from ddpm.files import check_is_file

SUFFIXES = (".npy", ".npz", ".pt")
_LABELS = ("labels", "arr_1")


def read_arrays(path: str, key: str | None, read_labels: bool) -> tuple[Any, Any]:
    """Return values in float32, all finite, and labels; see :func:`load_arrays`."""
    values, labels = load_arrays(path, key, read_labels)
    return as_float(values, path), labels


def load_arrays(
    path: str, key: str | None, read_labels: bool, *, memory_map: bool = False
) -> tuple[npt.NDArray[Any], Any]:
    """Return the values in an .npy, .npz or .pt file, and their labels.

    Args:
        path: path of the file.
        key: name of the array of values; None = "arr_0", or the only array.
        read_labels: also return the array "labels" or "arr_1".
        memory_map: access an .npy file on disk instead of loading it.

    Returns:
        Values, which are real numbers, and labels or None.

    Raises:
        ConfigError: the file cannot be read, contains pickled objects, or lacks an array.
    """
    check_is_file(path)
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        suffixes = ", ".join(SUFFIXES)
        raise ConfigError("path", path, f"unknown kind of file; save it as one of {suffixes}")
    try:
        if suffix == ".pt":
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            mode = "r" if memory_map and suffix == ".npy" else None
            content = np.load(path, mmap_mode=mode, allow_pickle=False)
        values, labels = _pick(content, path, key, read_labels)
        return _as_numbers(values, path), None if labels is None else np.asarray(labels)
    except ConfigError:
        raise
    except PermissionError as error:
        problem = f"cannot be opened ({error.strerror}); make it readable"
        raise ConfigError("path", path, problem) from error
    except pickle.UnpicklingError as error:
        problem = "contains objects other than tensors, or is damaged"
        remedy = "save a tensor, or a dict of tensors"
        raise ConfigError("path", path, f"{problem}; {remedy}") from error
    except Exception as error:  # each damaged zip, header or pickle raises other types
        reason = str(error).split("\n")[0]
        raise ConfigError("path", path, f"cannot be read ({reason}); save it again") from error


def _pick(content: Any, path: str, key: str | None, read_labels: bool) -> tuple[Any, Any]:
    """Return the values and, if requested, the labels in the content of a file."""
    if isinstance(content, (np.ndarray, torch.Tensor)):
        if key is not None:
            problem = f"{path} contains one array without a name; omit data.key"
            raise ConfigError("key", key, problem)
        if read_labels:
            remedy = "save an .npz with the arrays arr_0 and labels"
            raise ConfigError("class_cond", True, f"{path} contains no labels; {remedy}")
        return content, None
    if not isinstance(content, Mapping):
        raise ConfigError("path", path, f"contains a {type(content).__name__}; save a tensor")
    names = [str(name) for name in content]
    labels_name = next((name for name in _LABELS if name in names), None)
    if read_labels and labels_name is None:
        remedy = f"add an array named labels to the arrays {', '.join(names)}"
        raise ConfigError("class_cond", True, f"{path} contains no labels; {remedy}")
    values_name = _values_name(names, path, key)
    return content[values_name], content[labels_name] if read_labels else None


def _values_name(names: list[str], path: str, key: str | None) -> str:
    if key is None:
        others = [name for name in names if name not in _LABELS]
        if "arr_0" in others or len(others) == 1:
            return "arr_0" if "arr_0" in others else others[0]
        problem = f"{path} has neither arr_0 nor a single array"
        remedy = f"set data.key to one of: {', '.join(names) or '(none)'}"
        raise ConfigError("key", None, f"{problem}; {remedy}")
    if key not in names:
        remedy = f"use one of: {', '.join(names) or '(none)'}"
        raise ConfigError("key", key, f"not found in {path}; {remedy}")
    return key


def _as_numbers(values: Any, path: str) -> npt.NDArray[Any]:
    if isinstance(values, torch.Tensor):
        values = values.detach()  # float(): numpy lacks some floating-point types
        values = values.float().numpy() if values.is_floating_point() else values.numpy()
    values = np.asanyarray(values)
    if values.dtype.kind not in "fiub":
        problem = f"contains values of type {values.dtype}; save real numbers"
        raise ConfigError("path", path, problem)
    return values


def as_float(values: npt.NDArray[Any], path: str) -> npt.NDArray[np.float32]:
    """Return values in float32; raise ConfigError (key ``path``) if some are not finite."""
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    _check_finite(single.size - int(np.isfinite(single).sum()), single.size, path)
    return single


def measure_range(values: npt.NDArray[Any], path: str) -> tuple[float, float]:
    """Return the minimum and maximum of ``values`` in float32, with one item in memory at a time.

    Raises:
        ConfigError: (key ``path``) some values are not finite.
    """
    least, most, bad = np.inf, -np.inf, 0
    for item in values:
        with np.errstate(over="ignore"):
            single = np.asarray(item, np.float32)
        low, high = float(single.min()), float(single.max())
        if not np.isfinite([low, high]).all():
            bad += single.size - int(np.isfinite(single).sum())
        least, most = min(least, low), max(most, high)
    _check_finite(bad, values.size, path)
    return least, most


def _check_finite(bad: int, total: int, path: str) -> None:
    if bad:
        problem = f"{bad} of its {total} values are NaN or infinite; remove or replace them"
        raise ConfigError("path", path, problem)


def resolve_range(
    measured: tuple[float, float], path: str, low: float | None, high: float | None
) -> tuple[float, float]:
    """Return the range of the data, with measured ends where none are declared.

    Args:
        measured: minimum and maximum of the values.
        path: path of the file, for messages.
        low: declared lower end, or None.
        high: declared upper end, or None.

    Raises:
        ConfigError: (key ``low`` or ``high``) values outside the range, or an empty range.
    """
    least, most = measured
    low_end, high_end = least if low is None else low, most if high is None else high
    if low is not None and np.float32(least) < np.float32(low):
        raise ConfigError("low", low, f"{path} contains values down to {least:g}; lower data.low")
    if high is not None and np.float32(most) > np.float32(high):
        raise ConfigError("high", high, f"{path} contains values up to {most:g}; raise data.high")
    if low_end >= high_end:
        problem = f"the range from {low_end:g} to {high_end:g} for the values of {path} is empty"
        remedy = "set data.low below and data.high above all values"
        raise ConfigError("low", low, f"{problem}; {remedy}")
    return low_end, high_end


def array_classes(
    labels: Any, path: str, count: int, what: str
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return labels as class numbers, and the names of the classes.

    The classes are the labels that occur, sorted. Labels are names or nonnegative whole numbers,
    whose decimal digits become the names.

    Args:
        labels: ``(count,)``.
        path: path of the file, for messages.
        count: number of items.
        what: term for an item, for messages.

    Raises:
        ConfigError: (key ``class_cond``) labels of another shape or type.
    """
    if labels.shape != (count,):
        problem = f"{path} contains labels of shape {labels.shape}; they must be ({count},)"
        raise ConfigError("class_cond", True, f"{problem}, one per {what}")
    if labels.dtype.kind == "U":
        names, numbers = np.unique(labels, return_inverse=True)
        return numbers.astype(np.int64), [str(name) for name in names]
    whole = _whole_numbers(labels)
    if whole is None:
        problem = f"{path} contains labels that are neither whole numbers from 0 nor names"
        raise ConfigError("class_cond", True, f"{problem}; save them as integers")
    values, numbers = np.unique(whole, return_inverse=True)
    return numbers.astype(np.int64), [str(value) for value in values.tolist()]


def _whole_numbers(labels: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """Return labels as nonnegative whole numbers, including 2.0 and True; None for others."""
    if labels.dtype.kind == "b":
        return labels.astype(np.int64)
    if labels.dtype.kind == "f":
        whole = np.isfinite(labels) & (np.abs(labels) < 2**53) & (np.rint(labels) == labels)
        labels = labels.astype(np.int64) if bool(whole.all()) else labels
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        return None
    return labels
