"""Repositories on the Hugging Face hub: download and upload of folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ddpm.errors import ConfigError, require

PREFIX = "hf://"
_RECORD = Path(".cache", "huggingface")  # of huggingface_hub, in a folder that it downloaded to


def repository_of(key: str, value: str) -> str:
    """Return ``owner/name`` of ``hf://owner/name``; ConfigError (key ``key``) for other values."""
    repository = value.removeprefix(PREFIX)
    good = value.startswith(PREFIX) and re.fullmatch(r"[\w.-]+/[\w.-]+", repository) is not None
    require(good, key, value, "is not the name of a repository; use hf://owner/name")
    return repository


def download(
    repository: str, patterns: Sequence[str], *, key: str, value: str, place: Path | None = None
) -> Path:
    """Return the folder of the files of a repository; those that are there are not read again.

    Args:
        repository: ``owner/name``.
        patterns: of the files, as for ``huggingface_hub.snapshot_download``.
        key, value: option that names the repository, for errors.
        place: folder to download to; None = the cache of huggingface_hub.

    Raises:
        ConfigError: the download failed; names a remedy.
    """
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repository, allow_patterns=list(patterns), local_dir=place))
    except Exception as error:  # the libraries below raise many kinds of errors
        folder = place or repository.partition("/")[2]
        problem = f"cannot be downloaded from the Hugging Face hub ({_reason(error)})"
        remedy = (
            "check the name and the network, or copy it here and use the folder: hf download "
            f"{repository} --local-dir {folder}"
        )
        raise ConfigError(key, value, problem, remedy) from error


def run_folder(name: str, checkpoints: str) -> Path:
    """Return the folder ``outputs/owner--name`` of a run that was downloaded.

    Args:
        name: ``hf://owner/name``.
        checkpoints: name of the folder of checkpoints in a run.

    Raises:
        ConfigError: (key ``ckpt``) the download failed, the repository is not that of a run, or
            the folder has other files.
    """
    repository, index = repository_of("ckpt", name), "model_index.json"
    place = Path("outputs", repository.replace("/", "--"))
    is_ours = not place.exists() or (place / _RECORD).is_dir()
    problem = f"{place} has files that were not downloaded; rename it, or use ckpt={place}"
    require(is_ours, "ckpt", name, problem)
    patterns = (f"{checkpoints}/*", "config.yaml", index)
    download(repository, patterns, key="ckpt", value=name, place=place)
    remedy = "use ddpm-import source=diffusers file=" + repository
    pipeline = (place / index).exists() and not (place / checkpoints).is_dir()
    require(not pipeline, "ckpt", name, f"is a pipeline of diffusers; {remedy}")
    return place


def upload(folder: Path, repository: str, message: str, *, key: str) -> str:
    """Upload all files of a folder to a repository, which is made if necessary; return its address.

    Args:
        folder: with the files.
        repository: ``owner/name``.
        message: of the commit.
        key: option that names the repository, for errors.

    Raises:
        ConfigError: the upload failed; names a remedy.
    """
    try:
        from huggingface_hub import HfApi

        api = HfApi()
        address = str(api.create_repo(repository, exist_ok=True))
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
        return address
    except Exception as error:
        problem = f"cannot be uploaded to the Hugging Face hub ({_reason(error)})"
        remedy = "check the name, the network, and the login: hf auth login"
        raise ConfigError(key, f"{PREFIX}{repository}", problem, remedy) from error


def _reason(error: Exception) -> str:
    """Return the first line of an error and its class."""
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line[:120]}".removesuffix(": ")
