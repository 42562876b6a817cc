"""Data sets by name: those of a config, and the data groups of the configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ddpm import instantiate
from ddpm.config.location import config_dir
from ddpm.config.registry import config_with_defaults
from ddpm.config.text import from_yaml
from ddpm.data.split import Split
from ddpm.evaluation.reference_data import Load, NamedData

_PROVENANCE_KEYS = ("_target_", "path", "split", "val_fraction")


class ConfiguredData:
    """Resolves the names of data sets for :class:`ddpm.evaluation.ReferenceResolver`.

    Args:
        node: the ``data`` node of a model's config; None without a model.
        read: reads these data; None = from the node.
    """

    def __init__(
        self, node: Mapping[str, Any] | None, read: Callable[[], Split] | None = None
    ) -> None:
        self.node, self._read = node, read

    def __call__(self, name: str | None) -> Load | None:
        """Return the function that reads the data of a name; None if the name is unknown.

        Args:
            name: of a data group, such as ``cifar``; None = the training data of the model. A name
                that is also a path stands for the path.
        """
        if name is None:
            return None if self.node is None else self._load_model_data
        file = config_dir() / "data" / f"{name}.yaml"
        if not file.is_file() or Path(name).exists():
            return None
        return lambda: _load_group(file)

    def _load_model_data(self) -> NamedData:
        assert self.node is not None
        if self._read is not None:
            return NamedData(self._read(), _provenance(self.node))
        config = config_with_defaults({"data": self.node})  # of versions with fewer options
        return NamedData(instantiate.splits(config), _provenance(self.node))


def _load_group(file: Path) -> NamedData:
    """Return the data of a group with its default options, with classes if it has classes."""
    node = from_yaml(file.read_text(encoding="utf-8"), str(file))
    node |= {"class_cond": True} if "class_cond" in node else {}
    return NamedData(instantiate.splits({"data": node}), _provenance(node))


def _provenance(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: node[key] for key in _PROVENANCE_KEYS if key in node}
