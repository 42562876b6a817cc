"""``ddpm-export``: the network of a checkpoint as files that other systems load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ddpm.cli import app
from ddpm.errors import require

if TYPE_CHECKING:
    from ddpm.outputs import OutputFolder


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
    from ddpm.console import info, warn
    from ddpm.model_export import default_name, export_files, file_names, is_folder, is_program
    from ddpm.publication import check_push, upload
    from ddpm.training import checkpoint

    repository = check_push(push, format)
    source, folder = checkpoint.find(ckpt, warn), is_folder(format)
    default = source.run / "exported" / default_name(source.step, format, weights, version)
    target = Path(default if out is None else out)
    if not folder:
        _output(target, folder).check(file_names(format, target.name))
    if is_program(format):
        info("tracing and checking the network, which may take a minute")
    exported = export_files(source, format, weights, version, target.name)
    _write(target, exported.contents, folder)
    info(f"done: {target} ({exported.note})")
    if repository is not None:
        info(f"uploaded: {upload(source, repository, exported.contents if folder else None)}")


def _write(target: Path, contents: Mapping[str, bytes | Mapping[str, Any]], folder: bool) -> None:
    """Write files to the folder of ``target``, or to ``target`` itself if it is a folder.

    The last file, without which the others are not used, is moved into place after the others.

    Raises:
        ConfigError: the folder cannot be written, or has such a file that is not an export.
    """
    from ddpm.interop.files import write

    with _output_folder(target, list(contents), folder) as output:
        last = list(contents)[-1]
        for name, content in contents.items():
            if folder and name == last:
                (output.path / last).unlink(missing_ok=True)  # of an earlier export
                output.publish()
            (output.aside / name).parent.mkdir(parents=True, exist_ok=True)
            write(output.aside / name, content)


def _output(target: Path, folder: bool) -> OutputFolder:
    """Return the folder to write to; raise ConfigError if the target is of the other kind."""
    from ddpm.outputs import OutputFolder

    if folder:
        problem = "is a file; set out= to the name of a folder"
        require(not target.exists() or target.is_dir(), "out", str(target), problem)
    else:
        problem = "is a folder; set out= to the name of a file"
        require(not target.is_dir(), "out", str(target), problem)
    return OutputFolder(target if folder else target.parent, "export", shown=str(target))


@contextmanager
def _output_folder(target: Path, names: list[str], folder: bool) -> Iterator[OutputFolder]:
    """Yield an output folder, whose files are moved into place at the end.

    Raises:
        ConfigError: the folder cannot be written, or has such a file that is not an export.
    """
    from ddpm.outputs import unwritable

    output = _output(target, folder)
    try:
        with output.naming():
            output.check(names)
            output.prepare()
            output.open()
            yield output
            output.publish()
            output.finish(keep=True)
    except OSError as error:
        raise unwritable(target, error) from error
    finally:
        output.close()


if __name__ == "__main__":
    main()
