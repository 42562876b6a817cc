"""``ddpm-import``: a run made from a checkpoint of another system."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm.cli import app
from ddpm.config import paths, values
from ddpm.errors import ConfigError, render, require

if TYPE_CHECKING:
    from ddpm.data.spec import DataSpec
    from ddpm.interop.imported import ImportedCheckpoint

Node = dict[str, Any]
AXES = {1: "length", 2: "height and width", 3: "frames, height and width"}


def main() -> None:
    """Run the console script."""
    app.main("import", lambda: import_run)


def import_run(
    *,
    source: str,
    file: str,
    ema: str | None,
    recipe: str | None,
    version: str | None,
    network: dict[str, Any],
    size: int | list[int] | None,
    given_channels: list[int] | None,
    cond_frames: int,
    step: int | None,
    name: str | None,
    out: str,
    plugins: list[str],
    schedule: Node | None = None,
    objective: Node | None = None,
    diffusion: Node | None = None,
    timesteps: Node | None = None,
    data: Node | None = None,
) -> None:
    """Read a checkpoint of another system, print its properties, and write a run with it."""
    from ddpm.config.text import to_yaml
    from ddpm.console import info
    from ddpm.interop.checkpoint_import import read_checkpoint
    from ddpm.training import checkpoint
    from ddpm.training.checkpoint import CheckpointMetadata
    from ddpm.training.run import Run, appearing
    from ddpm.version import __version__

    require(step is None or step >= 0, "step", step, "must be 0 or above")
    _require_free(name, out)
    overrides = {
        "schedule": schedule,
        "objective": objective,
        "diffusion": diffusion,
        "timesteps": timesteps,
    }
    overrides = {key: value for key, value in overrides.items() if value is not None}
    imported = read_checkpoint(source, file, ema, recipe, version, network, overrides)
    config = _config(imported, data)
    data_spec = _data_spec(imported, config, size, given_channels, cond_frames, data)
    num_steps = _check(config, data_spec, imported)
    info("\n".join(_summary(imported, config, data_spec, source, num_steps)))
    step = imported.step if step is None else step
    metadata = CheckpointMetadata(
        ddpm=__version__,
        config=config,
        data=data_spec.state(),
        step=step,
        came={"source": source, "file": Path(file).name, "recipe": recipe},
    )
    run_name = f"{time.strftime('%Y%m%d-%H%M%S')}-{source}" if name is None else name
    with appearing(Path(out)) as temporary:
        Run(temporary).create(to_yaml(config))
        weights = {"raw": imported.raw, "ema": imported.ema}
        state = checkpoint.state_without_training(step)
        checkpoint.save(temporary / checkpoint.FOLDER, metadata, **weights, state=state)
        folder = _publish(temporary, Path(out, run_name), name is None)
    info(f"done: {folder}\nsample it with: ddpm-sample ckpt={folder}")


def _config(imported: ImportedCheckpoint, data: Node | None) -> Node:
    """Return the config of the run."""
    from ddpm.config.registry import config_with_defaults, node

    config: Node = {
        "model": node(imported.spec.target, imported.spec.options),
        **imported.process.nodes(),
    }
    if data is not None:
        config["data"] = data
    return {"seed": 0, **paths.stored(config_with_defaults(config))}


def _data_spec(
    imported: ImportedCheckpoint,
    config: Node,
    size: int | list[int] | None,
    given_channels: list[int] | None,
    cond_frames: int,
    data: Node | None,
) -> DataSpec:
    """Return shape, classes and codec of ``data``, or without it those that the network expects."""
    from ddpm import instantiate
    from ddpm.data import Codec, Condition, ImageCodec, SequenceCodec, VideoCodec
    from ddpm.data.classes import relabel
    from ddpm.data.spec import DataSpec

    spec = imported.spec
    if data is not None:
        dataset = instantiate.dataset({"data": data})
        return DataSpec.from_dataset(relabel(dataset, _classes(imported, config), None))
    axes = len(spec.size)
    spatial = [size] * min(axes, 2) if isinstance(size, int) else size or imported.size
    names = AXES[axes]
    if spatial is None:
        problem = f"is missing: the weights do not show it; add size=... ({names} of the data)"
        raise ConfigError("size", None, problem)
    valid = len(spatial) == axes and all(n >= 1 for n in spatial)
    require(valid, "size", size, f"must be {axes} numbers above 0: {names}")
    shape = (spec.channels, *spatial)
    low, high = imported.values or (None, None)
    if axes == 3:
        predicted = spec.out_channels // (2 if imported.learned else 1)
        channels = tuple(range(predicted, spec.channels))
        channels = channels if given_channels is None else tuple(given_channels)
        condition = Condition(cond_frames=cond_frames, channels=channels)
        codec: Codec = VideoCodec(shape, low, high, condition)
    elif axes == 2:
        codec = ImageCodec(shape)
    else:
        codec = SequenceCodec(shape, *(imported.values or (-1.0, 1.0)))
    return DataSpec(shape, _classes(imported, config), None, codec)


def _classes(imported: ImportedCheckpoint, config: Node) -> int | None:
    """Return the number of classes of the data: label dropout uses the network's last one."""
    num_classes = imported.spec.num_classes
    dropped = config["diffusion"]["label_dropout"] > 0
    problem = "is for a network with classes; leave it at 0"
    require(not dropped or num_classes is not None, "diffusion.label_dropout", None, problem)
    return num_classes if num_classes is None or not dropped else num_classes - 1


def _check(config: Node, data_spec: DataSpec, imported: ImportedCheckpoint) -> int:
    """Return T; raise ConfigError for a process or data that the network does not fit."""
    from ddpm import instantiate

    spec, process = imported.spec, instantiate.diffusion(config, data_spec)
    channels = data_spec.shape[0]
    for key, actual, expected in (
        ("data", channels, spec.channels),
        ("data's classes", data_spec.num_classes, _classes(imported, config)),
        ("diffusion.self_condition", process.self_condition, spec.self_condition),
    ):
        problem = f"the network has {render(expected)} there; set what it was trained with"
        require(actual == expected, key, actual, problem)
    outputs, required = spec.out_channels, process.output_channels(channels)
    problem = (
        f"needs a network with {required} output channels and this one has {outputs}; a learned "
        "variance (diffusion=iddpm) needs two per channel, and channels that are given as a "
        "whole (given_channels=[...]) need none"
    )
    require(outputs == required, "diffusion.variance", process.variance, problem)
    network = instantiate.network(config, data_spec, process)
    network.load_state_dict(imported.raw)
    return process.num_steps


def _require_free(name: str | None, out: str) -> None:
    """Raise ConfigError unless the name is valid and its folder does not exist."""
    if name is None:
        return
    values.check_run_name(name, out)
    folder = Path(out, name)
    problem = "this folder exists; choose another name, or delete it"
    require(not folder.exists() and not folder.is_symlink(), "name", name, problem)


def _publish(temporary: Path, folder: Path, numbered: bool) -> Path:
    """Move a complete run to ``folder`` and point ``latest`` to it.

    Args:
        temporary: the run.
        folder: its new place.
        numbered: append the first free one of -2, -3, ... if ``folder`` exists.

    Returns:
        The new place.

    Raises:
        OSError: the file system refuses; the run is at ``temporary`` then, as after a signal.
    """
    from ddpm.training.run import point

    number, free = 1, folder
    while numbered and free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    temporary.rename(free)
    try:
        point(free.parent / "latest", free)
    except BaseException:
        free.rename(temporary)
        raise
    return free


def _summary(
    imported: ImportedCheckpoint, config: Node, data_spec: DataSpec, source: str, num_steps: int
) -> list[str]:
    """Return lines about the network, the process, and the options that were assumed."""
    spec = imported.spec
    weights = sum(value.numel() for value in imported.raw.values())
    size = "x".join(map(str, data_spec.shape))
    classes = "" if data_spec.num_classes is None else f", {data_spec.num_classes} classes"
    lines = [f"{source}: {spec.target.__name__}, {weights:,} parameters, for {size}{classes}"]
    if imported.assumed:
        assumed = ", ".join(f"{name}={render(value)}" for name, value in imported.assumed.items())
        lines.append(f"assumed, as the weights do not show it (set network.<name>=...): {assumed}")
    names = (config[key]["_target_"].rpartition(".")[2] for key in ("schedule", "objective"))
    lines.append(
        f"process: {', '.join(names)}, {num_steps} steps, variance "
        f"{config['diffusion']['variance']} (set schedule=, objective=, diffusion=)"
    )
    if imported.averaged == "raw":
        lines.append("no averaged weights were found: the average starts at the weights themselves")
    elif imported.averaged == "ema":
        lines.append("only averaged weights were found: training would resume from the average")
    if imported.types:
        lines.append(f"weights of {' and '.join(imported.types)} were converted to float32")
    if imported.ignored:
        rest = f" and {len(imported.ignored) - 8} more" if len(imported.ignored) > 8 else ""
        names = ", ".join(imported.ignored[:8])
        lines.append(f"ignored, because these are not weights of the network: {names}{rest}")
    return [*lines, *imported.notes]


if __name__ == "__main__":
    main()
