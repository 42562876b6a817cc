"""Options of evaluations, shared by ``ddpm-evaluate``, training and Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ddpm.errors import ConfigError, did_you_mean, require
from ddpm.guidance import GuidanceArguments

FIDELITY = ("fid", "kid", "isc", "prc")
"""Metrics of samples."""
LIKELIHOOD = ("bpd", "loss")
"""Metrics of clean data."""
METRICS = (*FIDELITY, *LIKELIHOOD)


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(GuidanceArguments):
    """Metrics to compute and all options that determine them.

    The comments in ``configs/evaluate.yaml`` describe each option.

    Raises:
        ConfigError: an unknown metric, or a count below 1.
    """

    metrics: list[str]
    extractor: dict[str, Any]
    reference: str | None
    sampler: dict[str, Any]
    num_samples: int | None
    num_images: int
    bound_steps: int | None
    classes: list[int | str] | int | str | None
    batch_size: int
    seed: int
    image_size: int | tuple[int, int] | None = None
    color: Literal["auto", "rgb", "grey"] = "auto"
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        require(bool(self.metrics), "metrics", [], "name at least one, such as [fid]")
        for name in self.metrics:
            if name not in METRICS:
                hint = did_you_mean(name, METRICS)
                raise ConfigError("metrics", name, f"unknown metric{hint}")
        unique = list(dict.fromkeys(self.metrics))
        object.__setattr__(self, "metrics", unique)  # the dataclass is frozen
        for key in ("batch_size", "num_images"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "must be at least 1")

    @property
    def fidelity(self) -> list[str]:
        """Requested metrics of samples."""
        return [name for name in self.metrics if name in FIDELITY]

    @property
    def likelihood(self) -> list[str]:
        """Requested metrics of clean data."""
        return [name for name in self.metrics if name in LIKELIHOOD]

    @property
    def folder_options(self) -> dict[str, Any]:
        """The options for reading folders of images that differ from their defaults."""
        options = {name: getattr(self, name) for name in ("image_size", "color", "low", "high")}
        return {name: value for name, value in options.items() if value not in (None, "auto")}

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Check that metrics of images are requested for images only.

        Args:
            shape: (C, *spatial) of a sample.

        Raises:
            ConfigError: names ``metrics``.
        """
        problem = "fidelity is defined for images only; use metrics=[bpd,loss]"
        require(not self.fidelity or len(shape) == 3, "metrics", self.fidelity, problem)


def matches_metric(name: str, requested: str) -> bool:
    """Return True if a number is the main number of a requested metric.

    Args:
        name: of the number, without the number of samples, such as ``val_bpd``.
        requested: one of :data:`METRICS`. The main number of ``prc`` is the precision.
    """
    return name in {"prc": ("precision",)}.get(requested, (requested, f"val_{requested}"))
