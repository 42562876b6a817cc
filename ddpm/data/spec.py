"""Specification of a data set, stored in every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ddpm.config.schema import typed
from ddpm.data.classes import label_values
from ddpm.data.codec import Codec, codec_from_state
from ddpm.data.dataset import Dataset
from ddpm.errors import ConfigError, require


@dataclass(frozen=True)
class DataSpec:
    """Properties of a data set that sampling requires, stored in every checkpoint.

    Attributes:
        shape: (C, *spatial) of a sample.
        num_classes: number of classes of class-conditional training, else None.
        class_names: names of the classes, or None.
        codec: conversion between raw data and model space.
        class_counts: number of training items per class; None if it is unknown.
    """

    shape: tuple[int, ...]
    num_classes: int | None
    class_names: list[str] | None
    codec: Codec
    class_counts: list[int] | None = None

    @classmethod
    def from_dataset(cls, data: Dataset) -> DataSpec:
        """Return the specification of a data set."""
        classes = data.num_classes
        counts = None if classes is None else data.class_counts()
        return cls(tuple(data.shape), classes, data.class_names, data.codec, counts)

    @classmethod
    def from_metadata(cls, header: Mapping[str, Any]) -> DataSpec:
        """Return the specification in the metadata of a checkpoint.

        Raises:
            ConfigError: missing or invalid entries.
        """
        try:
            shape = typed(header["shape"], tuple[int, ...], "config.json: shape")
            classes = typed(header["num_classes"], int | None, "config.json: num_classes")
            names = typed(header["class_names"], list[str] | None, "config.json: class_names")
            codec = header["codec"]
            # Checkpoints of ddpm 0.1 up to commit 1a06e83 do not have it.
            counts = header.get("class_counts")
            counts = typed(counts, list[int] | None, "config.json: class_counts")
        except (KeyError, TypeError) as error:
            raise ConfigError(
                "ckpt", None, f"its config.json has no {error}; use another checkpoint"
            ) from error
        require(
            len(shape) > 0, "ckpt", None, "its config.json has no shape; use another checkpoint"
        )
        good = counts is None or (len(counts) == classes and min(counts) >= 0 < sum(counts))
        require(
            good, "ckpt", None, "its config.json has no valid class_counts; use another checkpoint"
        )
        return cls(shape, classes, names, codec_from_state(codec), counts)

    @property
    def names(self) -> list[str] | None:
        """Names of the classes, by default their numbers; None without classes."""
        if self.num_classes is None:
            return None
        return self.class_names or [str(number) for number in range(self.num_classes)]

    def values(self, labels: torch.Tensor | None) -> torch.Tensor | None:
        """Return class numbers (B,) as labels: the class names where all are whole numbers."""
        values = label_values(self.names)
        return labels if labels is None or values is None else torch.tensor(values)[labels]

    def state(self) -> dict[str, Any]:
        """Return the specification as plain data for JSON."""
        return {
            "shape": list(self.shape),
            "num_classes": self.num_classes,
            "class_names": self.class_names,
            "codec": self.codec.state(),
            "class_counts": self.class_counts,
        }
