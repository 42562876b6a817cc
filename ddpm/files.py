"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ddpm.errors import ConfigError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes ``path`` once all went well: never half a file.

    Makes the folder. Raises ConfigError naming ``path`` if the file system refuses.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error}); free space or write elsewhere"
        raise ConfigError("path", str(path), problem) from error
