"""``ddpm-export``: the network of a checkpoint as files that other systems load."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ddpm.cli import app


def main() -> None:
    """Run the console script."""
    app.main("export", lambda: export)


def export(
    *,
    ckpt: str,
    format: str,
    weights: Literal["ema", "raw"],
    version: str | None,
    out: str | None,
    push: str | None,
    plugins: list[str],
) -> None:
    """Write a file, a file with a JSON file of the arguments of its network, or a folder.

    With ``push`` also upload the model to the Hugging Face hub.
    """
    from ddpm import exported_files
    from ddpm.console import info, warn
    from ddpm.model_export import default_name, export_files, file_names, is_folder, is_program
    from ddpm.publication import check_push, upload
    from ddpm.training import checkpoint

    repository = check_push(push, format)
    source, folder = checkpoint.find(ckpt, warn), is_folder(format)
    default = source.run / "exported" / default_name(source.step, format, weights, version)
    target = Path(default if out is None else out)
    if not folder:
        exported_files.output_folder(target, folder).check(file_names(format, target.name))
    if is_program(format):
        info("tracing and checking the network, which may take a minute")
    exported = export_files(source, format, weights, version, target.name)
    exported_files.write(target, exported.contents, folder)
    info(f"done: {target} ({exported.note})")
    if repository is not None:
        info(f"uploaded: {upload(source, repository, exported.contents if folder else None)}")


if __name__ == "__main__":
    main()
