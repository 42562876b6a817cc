"""Checks of the arguments of the Python interface."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast, get_type_hints

import numpy as np
import torch

from ddpm.config.schema import typed
from ddpm.errors import ConfigError

Function = TypeVar("Function", bound=Callable[..., Any])


def checked(function: Function) -> Function:
    """Return a function that checks its arguments against its annotations.

    The function raises ConfigError for an argument of another type or an invalid choice. Numbers
    and arrays of NumPy are converted.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        bound, hints = signature.bind(*args, **named), get_type_hints(function)
        for name in bound.arguments.keys() - {"self"}:
            value = _plain(bound.arguments[name])
            try:
                bound.arguments[name] = typed(value, hints[name], name)
            except ConfigError as error:
                if _is_printable(value):
                    raise
                raise error.renamed(name, type(value).__name__) from error
        return function(*bound.args, **bound.kwargs)

    return cast(Function, call)


def _plain(value: Any) -> Any:
    """Return numbers and arrays of NumPy as Python's numbers and tensors."""
    if isinstance(value, np.generic):
        return value.item()
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _is_printable(value: Any) -> bool:
    """Return True for values that an error message can show; others are named by their type."""
    if isinstance(value, list | tuple):
        return all(map(_is_printable, value))
    return isinstance(value, str | int | float | None)
