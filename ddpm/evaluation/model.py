"""Interface of the models that can be evaluated."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

from ddpm.data import Codec
from ddpm.diffusion import GaussianDiffusion
from ddpm.guidance import Guidance
from ddpm.pipeline import SamplingPipeline


class DataSpecProtocol(Protocol):
    """Properties of the training data that an evaluation uses."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *spatial) of a sample."""
        ...

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None for an unconditional model."""
        ...

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, if they have names."""
        ...

    @property
    def class_counts(self) -> list[int] | None:
        """Number of training items per class; None if it is unknown."""
        ...

    @property
    def names(self) -> list[str] | None:
        """Names of the classes or their numbers as text; None for an unconditional model."""
        ...

    @property
    def codec(self) -> Codec:
        """Conversion between raw data and model space."""
        ...


class EvaluatedModel(Protocol):
    """A diffusion model that an :class:`~ddpm.evaluation.evaluator.Evaluator` can evaluate.

    :class:`ddpm.TrainedModel` is one.
    """

    @property
    def network(self) -> nn.Module:
        """The network; it is put into eval mode."""
        ...

    @property
    def diffusion(self) -> GaussianDiffusion:
        """The diffusion process."""
        ...

    @property
    def spec(self) -> DataSpecProtocol:
        """Shape, classes and codec of the data."""
        ...

    def pipeline(self, sampler: Any, *, guidance: Guidance) -> SamplingPipeline:
        """Return the denoiser and the sampler to draw samples with.

        Args:
            sampler: a name, a config node or a :class:`ddpm.samplers.Sampler`.
            guidance: options of guidance.

        Raises:
            ConfigError: an option that the model does not support.
        """
        ...

    def class_numbers(self, classes: Any, /) -> list[int] | None:
        """Return the numbers of classes given by number or name; by default all.

        Raises:
            ConfigError: an unconditional model, or an unknown class.
        """
        ...
