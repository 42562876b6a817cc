"""Options of guidance, as commands and Python take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm import plugins
from ddpm.errors import ConfigError, require

if TYPE_CHECKING:  # commands read the options before they import torch
    from ddpm.data.spec import DataSpec
    from ddpm.diffusion import DenoiserProtocol
    from ddpm.guidance.denoisers import Score

DEFAULT_AUTOGUIDANCE = 2.0


@dataclass(frozen=True)
class Guide:
    """A trained model as the guide of autoguidance.

    Attributes:
        denoiser: without clipping.
        has_classes: it is class-conditional.
    """

    denoiser: DenoiserProtocol
    has_classes: bool


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Guidance of sampling; the default is none.

    Args:
        scale: of classifier-free guidance; 1 = off.
        rescale: see :class:`~ddpm.guidance.denoisers.ClassifierFreeGuidance`, 0 (off) to 1.
        interval: noise levels ``sigma / alpha`` with guidance, such as (0.2, 3); None = all.
        guide: a weaker model, for autoguidance: a run or a checkpoint; or a score of x0, for
            gradient guidance: a function, also as ``module:function``. See
            :mod:`ddpm.guidance.denoisers`.
        guide_scale: of the guide; None = 2 for a model, 1 for a function.

    Raises:
        ConfigError: options that contradict each other.
    """

    scale: float = 1.0
    rescale: float = 0.0
    interval: tuple[float, float] | None = None
    guide: str | Path | Score | Guide | None = None
    guide_scale: float | None = None

    def __post_init__(self) -> None:
        require(
            0 <= self.rescale <= 1,
            "guidance_rescale",
            self.rescale,
            "must be between 0 (off) and 1",
        )
        problem = "requires a guidance other than 1; set it to 0"
        require(self.scale != 1 or self.rescale == 0, "guidance_rescale", self.rescale, problem)
        problem = "requires a guide; set guide, or leave it null"
        good = self.guide is not None or self.guide_scale is None
        require(good, "guide_scale", self.guide_scale, problem)
        problem = "requires guidance; set guidance or guide, or leave it null"
        good = self.interval is None or self.scale != 1 or self.guide is not None
        require(good, "guidance_interval", self.interval, problem)

    @property
    def is_function(self) -> bool:
        """True if the guide is a function."""
        if isinstance(self.guide, str):
            return ":" in self.guide and not Path(self.guide).exists()
        return callable(self.guide)

    def evaluation_options(self) -> dict[str, Any]:
        """Return the options of an evaluation, whose results name the guide.

        Raises:
            ConfigError: a guide that is an object and not a name.
        """
        problem = "must be a path or module:function, which the results of an evaluation name"
        named = self.guide is None or isinstance(self.guide, str | Path)
        require(named, "guide", type(self.guide).__name__, problem)
        return {
            "guidance": self.scale,
            "guidance_rescale": self.rescale,
            "guidance_interval": self.interval,
            "guide": None if self.guide is None else str(self.guide),
            "guide_scale": self.guide_scale,
        }

    def resolved(self, load: Callable[[str], Guide]) -> Guidance:
        """Return the same guidance with the guide that a path or a name stands for.

        Args:
            load: returns the guide of a run or a checkpoint.

        Raises:
            ConfigError: (key ``guide``) a function or a checkpoint that cannot be loaded.
        """
        guide = self.guide
        if self.is_function and isinstance(guide, str):
            guide = plugins.function("guide", guide)
        elif isinstance(guide, str | Path):
            try:
                guide = load(str(guide))
            except ConfigError as error:
                raise error.renamed("guide", self.guide) from error
        return replace(self, guide=guide)

    def wrap(
        self,
        denoiser: DenoiserProtocol,
        *,
        has_classes: bool,
        has_null: bool,
        clip: Callable[[DenoiserProtocol], DenoiserProtocol],
    ) -> DenoiserProtocol:
        """Return a denoiser with this guidance and clipped x0.

        Args:
            denoiser: without clipping.
            has_classes: its network is class-conditional.
            has_null: its network was trained with dropped labels.
            clip: returns the denoiser with clipped x0.

        Raises:
            ConfigError: guidance of a network that was not trained for it.
        """
        from ddpm.guidance.denoisers import (
            Autoguidance,
            ClassifierFreeGuidance,
            GradientGuidance,
        )

        if self.scale != 1:
            if not has_classes or not has_null:
                problem = (
                    "the model was not trained for guidance; train with data.class_cond=true "
                    "diffusion.label_dropout=0.1, or set guidance to 1"
                )
                raise ConfigError("guidance", self.scale, problem)
            denoiser = ClassifierFreeGuidance(
                denoiser, scale=self.scale, rescale=self.rescale, interval=self.interval
            )
        options: dict[str, Any] = {"interval": self.interval}
        if isinstance(self.guide, Guide):
            scale = DEFAULT_AUTOGUIDANCE if self.guide_scale is None else self.guide_scale
            conditional = has_classes and self.guide.has_classes
            denoiser = Autoguidance(
                denoiser, self.guide.denoiser, scale=scale, conditional=conditional, **options
            )
        elif callable(self.guide):
            scale = 1.0 if self.guide_scale is None else self.guide_scale
            denoiser = GradientGuidance(  # the score sees x0 within the range of the data
                clip(denoiser), self.guide, scale=scale, conditional=has_classes, **options
            )
        return clip(denoiser)


NO_GUIDANCE = Guidance()
LATER_OPTIONS = ("guidance_interval", "guide", "guide_scale")
"""Options that results of earlier versions do not have; None means the same."""


@dataclass(frozen=True, kw_only=True)
class GuidanceArguments:
    """Options of guidance as commands name them; see :class:`Guidance`."""

    guidance: float
    guidance_rescale: float
    guidance_interval: tuple[float, float] | None = None
    guide: str | None = None
    guide_scale: float | None = None

    @property
    def guidance_options(self) -> Guidance:
        """The same options as an object."""
        return Guidance(
            scale=self.guidance,
            rescale=self.guidance_rescale,
            interval=self.guidance_interval,
            guide=self.guide,
            guide_scale=self.guide_scale,
        )

    def guidance_provenance(self) -> dict[str, Any]:
        """Return the options that numbers depend on."""
        options = {"guidance": self.guidance, "guidance_rescale": self.guidance_rescale}
        later = {name: getattr(self, name) for name in LATER_OPTIONS}
        return {**options, **{name: value for name, value in later.items() if value is not None}}


def as_guidance(guidance: float | Guidance, rescale: float = 0.0) -> Guidance:
    """Return guidance from the scale and the rescaling of classifier-free guidance.

    Raises:
        ConfigError: (key ``guidance_rescale``) a rescaling beside options of guidance.
    """
    if not isinstance(guidance, Guidance):
        return Guidance(scale=guidance, rescale=rescale)
    problem = "is an option of guidance; set rescale there"
    require(rescale == 0, "guidance_rescale", rescale, problem)
    return guidance


def check_guide(path: str, guide: DataSpec, model: DataSpec) -> None:
    """Raise ConfigError (key ``guide``) for a guide of other data than the model's.

    Args:
        path: of the guide.
        guide: its data.
        model: the data of the model.
    """
    shapes = guide.shape, model.shape
    problem = f"has data of shape {shapes[0]}, the model {shapes[1]}; use a guide for the same data"
    require(shapes[0] == shapes[1], "guide", path, problem)
    problem = "has data in another range than the model; use a guide for the same data"
    require(guide.codec.state() == model.codec.state(), "guide", path, problem)
    classes = guide.num_classes, model.num_classes
    problem = f"has {classes[0]} classes, the model {classes[1] or 0}; use a guide with the same"
    require(classes[0] in (None, classes[1]), "guide", path, problem)
