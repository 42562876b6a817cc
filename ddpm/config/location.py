"""The folder of the config files."""

from __future__ import annotations

from pathlib import Path


def config_dir() -> Path:
    """Return the folder of the configs: in an installed wheel, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    for place in (package / "configs", package.parent / "configs"):
        if (place / "train.yaml").is_file():
            return place
    raise FileNotFoundError(f"no configs beside {package}; reinstall ddpm")
