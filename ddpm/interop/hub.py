"""Download of repositories from the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ddpm.errors import ConfigError, require

PREFIX = "hf://"


def download(name: str, patterns: Sequence[str]) -> Path:
    """Return the local folder of a repository, after a download unless it is in the cache.

    Args:
        name: ``owner/name``, which may begin with ``hf://``.
        patterns: of the files, as for ``huggingface_hub.snapshot_download``.

    Raises:
        ConfigError: (key ``file``) not such a name, or the download failed; names a remedy.
    """
    repository = name.removeprefix(PREFIX)
    owner = repository.partition("/")[0]
    named = re.fullmatch(r"[\w.-]+/[\w.-]+", repository) is not None
    local = not name.startswith(PREFIX) and Path(owner).exists()  # a wrong path, not a name
    require(named and not local, "file", name, "folder not found")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except Exception as error:  # the libraries below raise many kinds of errors
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        problem = (
            "is not a folder, and cannot be downloaded from the Hugging Face hub "
            f"({type(error).__name__}: {reason[:120]})"
        )
        remedy = (
            f"check the name and the network, or copy it here: hf download {repository} "
            f"--local-dir {repository.partition('/')[2]}"
        )
        raise ConfigError("file", name, problem, remedy) from error
