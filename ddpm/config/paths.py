"""Paths in the configs of runs: stored as absolute paths, and resolved from any folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from ddpm.console import note
from ddpm.files import expand

KEYS = (
    "data.path",
    "evaluation.reference",
    "evaluation.extractor.path",
    "evaluation.extractor.weights",
    "init.ckpt",
)
"""Options of a run that name files or folders to read."""
TYPED = "as_typed"
"""Key of a stored config for relative paths as they were typed."""
_NO_PATHS = ("train", "val")  # of evaluation.reference
_ABOVE = 4  # folders between a job of a sweep and the folder where the sweep was started
Node = dict[str, Any]


def stored(config: Mapping[str, Any]) -> Node:
    """Return a config as a run stores it: paths that exist are absolute."""
    result, typed = deepcopy(dict(config)), _typed(config)
    for key in KEYS:
        path = _get(result, key)
        if path is None or path in _NO_PATHS or os.path.isabs(path) or not os.path.exists(path):
            continue
        typed[key] = path
        _put(result, key, os.path.abspath(path))
    return {**result, TYPED: typed} if typed else result


def located(config: Mapping[str, Any], run: Path) -> Node:
    """Return a stored config with paths that exist now, where possible.

    A path that no longer exists is resolved as it was typed, from the current folder. Runs of
    earlier versions stored relative paths: their data are also searched in the folders above the
    run.

    Args:
        config: the stored config.
        run: folder of the run.
    """
    result, typed = deepcopy(dict(config)), _typed(config)
    for key in KEYS:
        path = _get(result, key)
        if path is None or path in _NO_PATHS:
            continue
        path = expand(key, path)
        if not os.path.exists(path):
            path = _elsewhere(key, path, typed.get(key), run) or path
        _put(result, key, path)
    return result


def _elsewhere(key: str, path: str, typed: str | None, run: Path) -> str | None:
    """Return another existing path of a file or folder that is missing, or None."""
    if typed is not None and os.path.exists(typed):
        return typed
    if key != "data.path" or os.path.isabs(path):
        return None
    for above in run.resolve().parents[1:_ABOVE]:
        if (above / path).exists():
            note(f"{key}={path}: not found here; reading {above / path}")
            return str(above / path)
    return None


def repeated(config: Mapping[str, Any], there: Mapping[str, Any]) -> Node:
    """Return a config in which paths that were typed as in a run are the paths of that run.

    Args:
        config: as typed.
        there: the :func:`located` config of the run.
    """
    result, typed = deepcopy(dict(config)), _typed(there)
    same = {key: path for key, path in typed.items() if _get(result, key) == path}
    for key in same:
        _put(result, key, _get(there, key))
    return {**result, TYPED: same} if same else result


def without(config: Mapping[str, Any], keys: set[str]) -> Node:
    """Return a config without the typed form of the paths of some options."""
    typed = {key: path for key, path in _typed(config).items() if key not in keys}
    rest = {key: value for key, value in config.items() if key != TYPED}
    return {**rest, TYPED: typed} if typed else rest


def is_same(key: str, old: object, new: object) -> bool:
    """Return True if two values of an option are paths of the same file or folder."""
    if key not in KEYS or not isinstance(old, str) or not isinstance(new, str):
        return False
    return os.path.abspath(expand(key, old)) == os.path.abspath(new)


def _typed(config: Mapping[str, Any]) -> dict[str, str]:
    there = config.get(TYPED)
    pairs = there.items() if isinstance(there, Mapping) else ()
    return {key: path for key, path in pairs if key in KEYS and isinstance(path, str)}


def _get(config: Mapping[str, Any], key: str) -> str | None:
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else None


def _put(config: Node, key: str, path: str | None) -> None:
    *parents, last = key.split(".")
    for name in parents:
        config = config[name]
    config[last] = path
