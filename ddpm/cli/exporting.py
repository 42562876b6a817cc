"""``ddpm-export``: the network of a checkpoint as a file that other systems load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ddpm.cli import app
from ddpm.config.registry import with_defaults
from ddpm.config.schema import check
from ddpm.errors import require

if TYPE_CHECKING:
    from torch import nn

    from ddpm.interop.foreign_format import NetworkSpec
    from ddpm.training.checkpoint import Checkpoint


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
    plugins: list[str],
) -> None:
    """Write the file, and a JSON file with the arguments that loading it requires."""
    import safetensors.torch

    from ddpm.console import info, warn
    from ddpm.interop.files import write
    from ddpm.training import checkpoint

    source = checkpoint.find(ckpt, warn)
    suffix = ".safetensors" if format == "safetensors" else ".pt"
    parts = ["" if format == "safetensors" else format, version or "", "raw" * (weights == "raw")]
    label = "".join(f"-{part}" for part in parts if part)
    default = source.run / "exported" / f"step-{source.step:08d}{label}{suffix}"
    target = Path(default if out is None else out)
    arguments_file = f"{target.stem if target.suffix == '.pt' else target.name}.json"
    own_format = format == "safetensors"
    problem = "is for other systems; leave it out"
    require(not own_format or version is None, "version", version, problem)
    names = [target.name] if own_format else [target.name, arguments_file]
    with _output_folder(target, names) as folder:
        if own_format:
            config = json.dumps(source.config)
            metadata = {"config": config, "step": str(source.step), "weights": weights}
            content = safetensors.torch.save(source.weights(weights), metadata)
            write(folder / target.name, content)
        else:
            content, arguments = _content(source, format, weights, version)
            write(folder / target.name, content)
            write(folder / arguments_file, (json.dumps(arguments, indent=1) + "\n").encode())
    note = "with the parameter names of ddpm; its metadata contain the config"
    note = note if own_format else f"{arguments_file} has the arguments of its network"
    info(f"done: {target} ({note})")


@contextmanager
def _output_folder(target: Path, names: list[str]) -> Iterator[Path]:
    """Yield a folder for files ``names``, which are then moved to the folder of ``target``.

    Raises:
        ConfigError: the folder cannot be written, or has such a file that is not an export.
    """
    from ddpm.outputs import OutputFolder, unwritable

    problem = "is a folder; set out= to the name of a file"
    require(not target.is_dir(), "out", str(target), problem)
    folder = OutputFolder(target.parent, "export", shown=str(target))
    try:
        with folder.naming():
            folder.check(names)
            folder.prepare()
            folder.open()
            yield folder.aside
            folder.publish()
            folder.finish(keep=True)
    except OSError as error:
        raise unwritable(target, error) from error
    finally:
        folder.close()


def _content(
    source: Checkpoint, format: str, weights: Literal["ema", "raw"], version: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the content of the exported file, and the arguments that loading it requires."""
    from ddpm import instantiate
    from ddpm.interop.export import export_model

    network, process, spec = instantiate.trained(source, weights)
    exported = export_model(
        format,
        _network_spec(source, network, spec.shape[1:]),
        {which: source.weights(which) for which in ("raw", "ema")},
        weights,
        diffusion=process,
        step=source.step,
        version=version,
    )
    config = {key: source.config[key] for key in ("schedule", "objective", "diffusion")}
    return exported.content, {"format": format, "network": exported.kwargs, "process": config}


def _network_spec(source: Checkpoint, network: nn.Module, size: tuple[int, ...]) -> NetworkSpec:
    """Return the description of the network of a checkpoint, with all of its options."""
    from ddpm.interop.foreign_format import NetworkSpec
    from ddpm.models.layers import Network

    problem = "is a network of a plugin, which other systems do not have"
    require(isinstance(network, Network), "format", None, problem)
    assert isinstance(network, Network)
    node = with_defaults(source.config["model"], "model")
    options = check({k: v for k, v in node.items() if k != "_target_"}, type(network))
    return NetworkSpec(
        type(network),
        network.channels,
        network.out_channels,
        size,
        network.num_classes,
        network.self_condition,
        options,
    )


if __name__ == "__main__":
    main()
