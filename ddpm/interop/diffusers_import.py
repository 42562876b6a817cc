"""Reading of folders of diffusers: pipelines, bare networks and checkpoints of training."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm.errors import ConfigError, require
from ddpm.files import UNREADABLE
from ddpm.hub import PREFIX, download, repository_of
from ddpm.interop.diffusers_network import NETWORK, check_class, network_spec
from ddpm.interop.diffusers_process import process_of
from ddpm.interop.diffusers_weights import weights_from
from ddpm.interop.files import read
from ddpm.interop.foreign_format import NetworkSpec
from ddpm.interop.imported import ImportedCheckpoint
from ddpm.interop.process import Node
from ddpm.interop.unwrap import plain

INDEX = "model_index.json"
CONFIG = "config.json"
SCHEDULER_CONFIG = "scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model"
_RAW, _AVERAGE = "unet", "unet_ema"
_PATTERNS = [
    INDEX,
    CONFIG,
    SCHEDULER_CONFIG,
    f"{WEIGHTS}.*",
    f"{_RAW}/*",
    f"{_AVERAGE}/*",
    "scheduler/*",
]


@dataclass(frozen=True)
class _Folder:
    """The parts of a folder.

    Attributes:
        unet: folder of the network with its weights.
        ema: folder of the averaged weights, if they are separate.
        scheduler: content of ``scheduler_config.json``, None without that file.
    """

    unet: Path
    ema: Path | None
    scheduler: dict[str, Any] | None


def read_folder(file: str, overrides: Mapping[str, Node]) -> ImportedCheckpoint:
    """Read a folder of diffusers.

    Args:
        file: a pipeline, with ``unet/`` or in the older layout without; the folder of a network; or
            a checkpoint of training, with ``unet/`` and ``unet_ema/``. Also a file in such a
            folder, or the name of a repository on the Hugging Face hub.
        overrides: config nodes of the process that replace those of the folder.

    Raises:
        ConfigError: not such a folder, or one that has no equivalent, with the reason.
    """
    place = Path(file)
    if not place.exists():
        place = download(_repository(file), _PATTERNS, key="file", value=file)
    folder = _parts(place.parent if place.is_file() else place, file)
    config = _json(folder.unet / CONFIG)
    spec = network_spec(config)
    imported = process_of(folder.scheduler, spec.channels, spec.out_channels, overrides)
    raw, types = _weights(folder.unet, spec)
    average = None
    if folder.ema is not None:
        average, more = _weights(folder.ema, spec)
        types = sorted({*types, *more})
    only_average = folder.unet.name == _AVERAGE
    return ImportedCheckpoint(
        spec=spec,
        raw=raw,
        ema=raw if average is None else average,
        process=imported.process,
        step=_step(folder),
        size=_size(config),
        values=None,
        assumed={},
        averaged="ema" if only_average else "raw" if average is None else "both",
        types=types,
        ignored=(),
        notes=imported.notes,
    )


def _repository(file: str) -> str:
    """Return the repository that a missing path names; ConfigError if it names none."""
    owner, _, name = file.removeprefix(PREFIX).partition("/")
    path = not file.startswith(PREFIX) and (not name or "/" in name or Path(owner).exists())
    require(not path, "file", file, "folder not found")
    return repository_of("file", f"{PREFIX}{owner}/{name}")


def _parts(root: Path, file: str) -> _Folder:
    """Return the parts of a folder."""
    if (root / INDEX).is_file():
        _check_components(_json(root / INDEX))
    places = [root / _RAW, root / _AVERAGE, root]
    networks = [place for place in places if (place / CONFIG).is_file()]
    problem = (
        f"has no {_RAW}/{CONFIG} and no {CONFIG}; use the folder of a pipeline that diffusers saved"
    )
    require(bool(networks), "file", file, problem)
    unet, ema = networks[0], root / _AVERAGE
    separate = unet.name == _RAW and (ema / CONFIG).is_file()
    schedulers = (root / "scheduler", root, root.parent / "scheduler")
    files = [place / SCHEDULER_CONFIG for place in schedulers]
    scheduler = next((_json(each) for each in files if each.is_file()), None)
    return _Folder(unet, ema if separate else None, scheduler)


def _check_components(index: Mapping[str, Any]) -> None:
    """Raise ConfigError for a pipeline with other components than a network and a scheduler."""
    for name, value in index.items():
        component = not name.startswith("_") and isinstance(value, list) and any(value)
        if component and name == _RAW:
            check_class({"_class_name": value[-1]})
        problem = (
            f"the pipeline has this component beside unet and scheduler, of class {value[-1]}, "
            "which cannot be imported"
            if component
            else ""
        )
        require(not component or name in (_RAW, "scheduler"), name, None, problem)


def _json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file, a dictionary."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except UNREADABLE as error:
        problem = f"{path.name} cannot be read; save or copy the folder again"
        raise ConfigError("file", str(path), problem) from error
    require(isinstance(content, dict), "file", str(path), "is not a config of diffusers")
    return content


def _weights(folder: Path, spec: NetworkSpec) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights in a folder with our names, and their dtypes other than float32."""
    content: dict[str, Any] = {}
    for path in _weight_files(folder):
        part = read(str(path))
        require(isinstance(part, Mapping), "file", str(path), f"is not a state dict of {NETWORK}")
        content.update(part)
    tensors = all(isinstance(value, Tensor) for value in content.values())
    require(tensors, "file", str(folder), f"its weights are not a state dict of {NETWORK}")
    which = "averaged" if folder.name == _AVERAGE else "raw"
    weights, types = plain(content, which, "file", str(folder))
    return weights_from(spec, weights), list(types)


def _weight_files(folder: Path) -> list[Path]:
    """Return the files with the weights: one, or the parts that an index lists."""
    for suffix in ("safetensors", "bin"):
        single = folder / f"{WEIGHTS}.{suffix}"
        if single.is_file():
            return [single]
        index = folder / f"{WEIGHTS}.{suffix}.index.json"
        if index.is_file():
            names = set(dict(_json(index).get("weight_map", {})).values())
            return [folder / Path(str(name)).name for name in sorted(names)]
        variants = sorted(folder.glob(f"{WEIGHTS}.*.{suffix}"))  # such as fp16
        if variants:
            return variants[:1]
    problem = f"has no {WEIGHTS}.safetensors or .bin; download or copy it into this folder"
    raise ConfigError("file", str(folder), problem)


def _size(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return the height and width of the images; None if the config does not have them."""
    size = config.get("sample_size")
    sizes: list[Any] = size if isinstance(size, list) else [size, size]
    good = len(sizes) == 2 and all(isinstance(each, int) and each > 0 for each in sizes)
    require(size is None or good, "unet.sample_size", size, "must be one number or two, above 0")
    return None if size is None else tuple(sizes)


def _step(folder: _Folder) -> int:
    """Return the number of optimizer steps: that of the average, or that in a folder's name."""
    average = folder.ema or folder.unet
    step = _json(average / CONFIG).get("optimization_step")
    if isinstance(step, int):
        return step
    names = (each.name for each in (folder.unet.parent, folder.unet))
    matches = (re.fullmatch(r"checkpoint-(\d+)", name) for name in names)
    return next((int(match[1]) for match in matches if match), 0)
