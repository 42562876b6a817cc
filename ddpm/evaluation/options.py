"""What is measured, and how: the options that ``ddpm-evaluate`` and training share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ddpm.errors import ConfigError, did_you_mean, require

FIDELITY = ("fid", "kid", "isc", "prc")
LIKELIHOOD = ("bpd", "loss")
METRICS = (*FIDELITY, *LIKELIHOOD)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Which numbers, of how many samples and of which data; ``configs/evaluate.yaml`` tells each.

    Raises:
        ConfigError: an unknown metric, or a number that makes no sense.
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
    guidance: float
    guidance_rescale: float
    image_size: int | tuple[int, int] | None = None
    color: Literal["auto", "rgb", "grey"] = "auto"
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        require(bool(self.metrics), "metrics", [], "name at least one, such as [fid]")
        for name in self.metrics:
            if name not in METRICS:
                hint = did_you_mean(name, METRICS)
                raise ConfigError("metrics", name, f"there is no such metric{hint}")
        object.__setattr__(self, "metrics", list(dict.fromkeys(self.metrics)))  # it is frozen
        for key in ("batch_size", "num_images"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "must be at least 1")

    @property
    def fidelity(self) -> list[str]:
        """The metrics of samples."""
        return [name for name in self.metrics if name in FIDELITY]

    @property
    def of_folders(self) -> dict[str, Any]:
        """The options for reading folders of pictures that are not at their defaults."""
        options = {name: getattr(self, name) for name in ("image_size", "color", "low", "high")}
        return {name: value for name, value in options.items() if value not in (None, "auto")}

    @property
    def likelihood(self) -> list[str]:
        """The metrics of data."""
        return [name for name in self.metrics if name in LIKELIHOOD]


def answers(metric: str, asked: str) -> bool:
    """Whether a number is the one that was asked for: of ``prc`` the precision."""
    return metric in {"prc": ("precision",)}.get(asked, (asked, f"val_{asked}"))
