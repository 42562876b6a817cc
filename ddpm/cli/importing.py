"""``ddpm-import``: a run out of a checkpoint of another system."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm.cli import app
from ddpm.config import paths, values
from ddpm.config.registry import config_with_defaults, node
from ddpm.config.text import to_yaml
from ddpm.errors import ConfigError, render, require

if TYPE_CHECKING:
    from ddpm.data.spec import DataSpec
    from ddpm.interop.checkpoint_import import ImportedCheckpoint

Node = dict[str, Any]
AXES = {1: "length", 2: "height and width", 3: "frames, height and width"}


def main() -> None:
    """Run the console script."""
    app.main("import", lambda: bring)


def bring(
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
    """Read the checkpoint, say what it is, and write a run with one checkpoint."""
    from ddpm.console import info
    from ddpm.interop.checkpoint_import import read_checkpoint
    from ddpm.training import checkpoint
    from ddpm.training.checkpoint import CheckpointMetadata
    from ddpm.training.run import Run, appearing
    from ddpm.version import __version__

    require(step is None or step >= 0, "step", step, "must be 0 or above")
    _require_free(name, out)
    parts = {
        "schedule": schedule,
        "objective": objective,
        "diffusion": diffusion,
        "timesteps": timesteps,
    }
    said = {key: node for key, node in parts.items() if node is not None}
    found = read_checkpoint(source, file, ema, recipe, version, network, said)
    taken = found.step if step is None else step
    config: Node = {
        "model": node(found.spec.target, found.spec.options),
        **found.process.nodes(),
    }
    if data is not None:
        config["data"] = data
    config = {"seed": 0, **paths.stored(config_with_defaults(config))}
    data_spec = _data_spec(found, config, size, given_channels, cond_frames, data)
    _check(config, data_spec, found)
    info("\n".join(_told(found, config, data_spec, source)))
    came = {"source": source, "file": Path(file).name, "recipe": recipe}
    metadata = CheckpointMetadata(
        ddpm=__version__, config=config, data=data_spec.state(), step=taken, came=came
    )
    state = {
        "step": taken,
        "num_updates": 0,  # the optimizer is new: its learning rate warms up
        "optimizer": None,
        "ema": {"step": max(taken, 1_000_000), "initted": 1},  # past the warm-up
        "timesteps": None,
        "scaler": None,
    }
    wanted = f"{time.strftime('%Y%m%d-%H%M%S')}-{source}" if name is None else name
    with appearing(Path(out)) as place:
        Run(place).create(to_yaml(config))
        weights = {"raw": found.raw, "ema": found.ema}
        checkpoint.save(place / checkpoint.FOLDER, metadata, **weights, state=state)
        folder = _settle(place, Path(out, wanted), name is None)
    info(f"done: {folder}\nsample it with: ddpm-sample ckpt={folder}")


def _data_spec(
    found: ImportedCheckpoint,
    config: Node,
    size: int | list[int] | None,
    given_channels: list[int] | None,
    cond_frames: int,
    data: Node | None,
) -> DataSpec:
    """Shape, classes and codec: of the data if they are named, else of what the network takes."""
    from ddpm import instantiate
    from ddpm.data import Codec, Condition, ImageCodec, SequenceCodec, VideoCodec
    from ddpm.data.classes import relabel
    from ddpm.data.spec import DataSpec

    spec = found.spec
    if data is not None:
        own = instantiate.dataset({"data": data})
        return DataSpec.from_dataset(relabel(own, _classes(found, config), None))
    axes = len(spec.size)
    spatial = [size] * min(axes, 2) if isinstance(size, int) else size or found.size
    what = AXES[axes]
    if spatial is None:
        problem = f"is missing: the weights do not show it; add size=... ({what} of the data)"
        raise ConfigError("size", None, problem)
    good = len(spatial) == axes and all(n >= 1 for n in spatial)
    require(good, "size", size, f"must be {axes} numbers above 0: {what}")
    shape = (spec.channels, *spatial)
    low, high = found.values or (None, None)
    if axes == 3:
        answered = spec.out_channels // (2 if found.learned else 1)
        rest = tuple(range(answered, spec.channels))
        given = rest if given_channels is None else tuple(given_channels)
        condition = Condition(cond_frames=cond_frames, channels=given)
        codec: Codec = VideoCodec(shape, low, high, condition)
    elif axes == 2:
        codec = ImageCodec(shape)
    else:
        codec = SequenceCodec(shape, *(found.values or (-1.0, 1.0)))
    return DataSpec(shape, _classes(found, config), None, codec)


def _classes(found: ImportedCheckpoint, config: Node) -> int | None:
    """The classes of the data; with label dropout the network's last one stands for none."""
    known = found.spec.num_classes
    dropped = config["diffusion"]["label_dropout"] > 0
    problem = "is for a network with classes; leave it at 0"
    require(not dropped or known is not None, "diffusion.label_dropout", None, problem)
    return known if known is None or not dropped else known - 1


def _check(config: Node, data_spec: DataSpec, found: ImportedCheckpoint) -> None:
    """Refuse a process or data that the network is not for."""
    from ddpm import instantiate

    spec, process = found.spec, instantiate.diffusion(config, data_spec)
    channels = data_spec.shape[0]
    for key, have, need in (
        ("data", channels, spec.channels),
        ("data's classes", data_spec.num_classes, _classes(found, config)),
        ("diffusion.self_condition", process.self_condition, spec.self_condition),
    ):
        problem = f"the network has {render(need)} there; say what it was trained with"
        require(have == need, key, have, problem)
    answers, needed = spec.out_channels, process.output_channels(channels)
    problem = (
        f"needs a network that answers with {needed} channels and this one has {answers}; a "
        "learned variance (diffusion=iddpm) takes two a channel, channels that are given whole "
        "(given_channels=[...]) none"
    )
    require(answers == needed, "diffusion.variance", process.variance, problem)
    network = instantiate.network(config, data_spec, process)
    network.load_state_dict(found.raw)


def _require_free(name: str | None, out: str) -> None:
    """Raise ConfigError where the name is not that of one new folder."""
    if name is None:
        return
    values.check_run_name(name, out)
    folder = Path(out, name)
    problem = "there is such a folder; choose another name, or delete it"
    require(not folder.exists() and not folder.is_symlink(), "name", name, problem)


def _settle(place: Path, folder: Path, numbered: bool) -> Path:
    """Give a complete run its name, with the first of -2, -3, ... that is free if it may have one.

    Raises:
        OSError: the file system refuses; the run is at ``place`` then, as after a signal.
    """
    from ddpm.training.run import point

    number, free = 1, folder
    while numbered and free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    place.rename(free)
    try:
        point(free.parent / "latest", free)
    except BaseException:
        free.rename(place)
        raise
    return free


def _told(found: ImportedCheckpoint, config: Node, data_spec: DataSpec, source: str) -> list[str]:
    """What was found, and what had to be assumed."""
    spec = found.spec
    weights = sum(value.numel() for value in found.raw.values())
    size = "x".join(map(str, data_spec.shape))
    classes = "" if data_spec.num_classes is None else f", {data_spec.num_classes} classes"
    lines = [f"{source}: {spec.target.__name__}, {weights:,} parameters, for {size}{classes}"]
    if found.assumed:
        said = ", ".join(f"{name}={render(value)}" for name, value in found.assumed.items())
        lines.append(f"assumed, for the weights do not show it (network.<name>=... to say): {said}")
    schedule, diffusion = config["schedule"], config["diffusion"]
    names = (config[key]["_target_"].rpartition(".")[2] for key in ("schedule", "objective"))
    lines.append(
        f"process: {', '.join(names)}, {schedule['num_steps']} steps, variance "
        f"{diffusion['variance']} (schedule=, objective=, diffusion= to say otherwise)"
    )
    if found.averaged == "raw":
        lines.append("no averaged weights were found: the average starts at the weights themselves")
    elif found.averaged == "ema":
        lines.append("only averaged weights were found: training would go on from the average")
    if found.types:
        lines.append(f"weights of {' and '.join(found.types)} were converted to float32")
    if found.ignored:
        rest = f" and {len(found.ignored) - 8} more" if len(found.ignored) > 8 else ""
        names = ", ".join(found.ignored[:8])
        lines.append(f"ignored, because these are not weights of the network: {names}{rest}")
    return lines


if __name__ == "__main__":
    main()
