"""Samples in folders that ddpm-sample and ddpm-interpolate wrote.

The record of such a folder (:mod:`ddpm.outputs`) distinguishes samples from overview pictures.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from ddpm.console import warn
from ddpm.errors import ConfigError
from ddpm.outputs import RECORD, Written, read_record

_FORMATS = {"images": "png", "videos": "gif", "samples.npz": "npz", "samples.npy": "npy"}


def find_samples(path: str, readable: Collection[str], suffixes: tuple[str, ...] = ()) -> str:
    """Return the path of the samples in a folder of samples, and any other path unchanged.

    Args:
        path: path of a folder or a file.
        readable: names of outputs that the caller can read, preferred ones first, such as
            ``images``.
        suffixes: suffixes of the files that the caller reads in other folders.

    Raises:
        ConfigError: (key ``path``) the folder contains samples only in other formats.
    """
    record = read_record(Path(path)) if os.path.isfile(os.path.join(path, RECORD)) else {}
    outputs = [
        (each, name)
        for command in ("sample", "interpolate")
        if (each := record.get(command)) is not None
        for name in [*(name for name in readable if name in each.samples), *each.samples]
        if os.path.exists(os.path.join(path, name))
    ]
    if not outputs:
        return path
    written, name = outputs[0]
    others = list(_others(path, record, suffixes))
    if name not in readable:
        if others:  # data of the user beside samples that the caller cannot read
            return path
        formats = " or ".join(f"format={_FORMATS[each]}" for each in readable)
        problem = f"its samples are in {name}, which cannot be read here"
        raise ConfigError("path", path, problem, f"use samples of {formats}")
    others = [other for other in others if not other.startswith(f"{name}/")]
    if others:
        left = others[0] if len(others) == 1 else f"{others[0]} and {len(others) - 1} more"
        warn(f"{path}: only the samples in {name} are read, not {left}")
    if not written.complete:
        warn(f"{path}: sampling was interrupted; the samples may be incomplete, or of two calls")
    return os.path.join(path, name)


def _others(path: str, record: dict[str, Written], suffixes: tuple[str, ...]) -> Iterator[str]:
    """Yield the names of visible files with these suffixes that no command wrote."""
    ours = {name for written in record.values() for name in written.files}
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in files:
            name = os.path.relpath(os.path.join(folder, file), path).replace(os.sep, "/")
            if file.lower().endswith(suffixes) and not file.startswith(".") and name not in ours:
                yield name


def overview_pictures(folder: str, suffixes: tuple[str, ...]) -> frozenset[str]:
    """Return the pictures in a folder of outputs that show several samples, such as grid.png."""
    root = Path(folder)
    return frozenset(
        name
        for written in read_record(root).values()
        for name in written.files
        if "/" not in name
        and name.lower().endswith(suffixes)
        and name not in written.samples
        and written.owns(root, name)
    )
