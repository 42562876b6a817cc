"""Folders that ddpm-sample and ddpm-interpolate wrote, read as data.

Their record (:mod:`ddpm.outputs`) tells the samples from the pictures that show several at once.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from ddpm.console import warn
from ddpm.errors import ConfigError
from ddpm.outputs import RECORD, Written, read_record

_FORMATS = {"images": "png", "videos": "gif", "samples.npz": "npz", "samples.npy": "npy"}


def samples_at(path: str, wanted: Collection[str], suffixes: tuple[str, ...] = ()) -> str:
    """Return the place of the samples in a folder of samples; any other path as it is.

    Args:
        path: a folder, or a file.
        wanted: names of places that the caller reads, best first, such as ``images``.
        suffixes: of the files that the caller reads in any other folder.

    Raises:
        ConfigError: (key ``path``) the folder holds samples in other places alone.
    """
    record = read_record(Path(path)) if os.path.isfile(os.path.join(path, RECORD)) else {}
    found = [
        (each, name)
        for command in ("sample", "interpolate")
        if (each := record.get(command)) is not None
        for name in [*(name for name in wanted if name in each.samples), *each.samples]
        if os.path.exists(os.path.join(path, name))
    ]
    if not found:
        return path
    written, name = found[0]
    others = list(_others(path, record, suffixes))
    if name not in wanted:
        if others:  # the user's own data, beside samples that the caller does not read
            return path
        formats = " or ".join(f"format={_FORMATS[each]}" for each in wanted)
        problem = f"its samples are in {name}, which cannot be read here"
        raise ConfigError("path", path, problem, f"use samples of {formats}")
    others = [other for other in others if not other.startswith(f"{name}/")]
    if others:
        left = others[0] if len(others) == 1 else f"{others[0]} and {len(others) - 1} more"
        warn(f"{path}: only the samples in {name} are read, not {left}")
    if not written.complete:
        warn(f"{path}: drawing was interrupted; there may be samples of two calls, or too few")
    return os.path.join(path, name)


def _others(path: str, record: dict[str, Written], suffixes: tuple[str, ...]) -> Iterator[str]:
    """Names of visible files with these suffixes that no command wrote."""
    ours = {name for written in record.values() for name in written.files}
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in files:
            name = os.path.relpath(os.path.join(folder, file), path).replace(os.sep, "/")
            if file.lower().endswith(suffixes) and not file.startswith(".") and name not in ours:
                yield name


def pictures_of_several(folder: str, suffixes: tuple[str, ...]) -> frozenset[str]:
    """Return the names in a folder of samples, or an evaluation, that are no samples: grid.png."""
    place = Path(folder)
    return frozenset(
        name
        for written in read_record(place).values()
        for name in written.files
        if "/" not in name
        and name.lower().endswith(suffixes)
        and name not in written.samples
        and written.owns(place, name)
    )
