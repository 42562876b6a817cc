"""Feature extractors: images to feature vectors and class logits."""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm.errors import ConfigError, require
from ddpm.memory import is_out_of_memory
from ddpm.metrics.image_sources import file_sha256


class Extractor(ABC):
    """Maps uint8 images (B, C, H, W) to features (B, D) and, optionally, class logits (B, K).

    The constructor checks everything that does not need the weights. :meth:`prepare` loads them and
    is called first. The features of an image must not depend on the other images of its batch.
    """

    name: str
    """Name in the provenance of numbers."""
    resize: str
    """Description of the resizing of images."""
    sha256: str
    """Hash of everything that determines the features, mostly the weights; set when prepared."""

    @abstractmethod
    def prepare(self, device: torch.device | str) -> None:
        """Load the weights onto ``device``.

        Raises:
            ConfigError: weights that cannot be loaded or downloaded.
        """

    @abstractmethod
    def _extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features (B, D) and logits (B, K) or None of images on the device."""

    @torch.inference_mode()
    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Return ``features`` (B, D) and, if available, ``logits`` (B, K), as float32 or float64.

        Args:
            images: uint8 (B, C, H, W) on the device of :meth:`prepare`.

        Raises:
            ConfigError: images that are not supported, or outputs of another shape or type.
        """
        assert images.dtype == torch.uint8 and images.ndim == 4, (images.dtype, images.shape)
        features, logits = self._extract(images)
        outputs = {"features": features} | ({} if logits is None else {"logits": logits})
        for what, values in outputs.items():
            good = values.ndim == 2 and len(values) == len(images) and values.is_floating_point()
            if not good:
                shape = f"{values.dtype} of shape {tuple(values.shape)}".removeprefix("torch.")
                problem = f"returns {what} in {shape} for {len(images)} images; they must be floats"
                raise ConfigError("extractor", self.name, f"{problem} of shape (images, {what})")
        double = torch.float64
        return {k: v if v.dtype == double else v.float() for k, v in outputs.items()}

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features (B, D) only; see :meth:`outputs`."""
        return self.outputs(images)["features"]

    def output_sizes(
        self, shape: tuple[int, ...], device: torch.device | str
    ) -> tuple[int, int | None]:
        """Return the numbers of features and of logits (or None) for images (C, H, W).

        A black image is tried, so that unsupported images raise an error before any work.
        """
        outputs = self.outputs(torch.zeros(1, *shape, dtype=torch.uint8, device=device))
        logits = outputs.get("logits")
        return outputs["features"].shape[1], None if logits is None else logits.shape[1]

    def provenance(self) -> dict[str, Any]:
        """Return name and hash, as plain JSON."""
        return {"name": self.name, "sha256": self.sha256}


class Pixels(Extractor):
    """Pixels divided by 255 as features, for small images; needs no download."""

    name = "pixels"
    resize = "none"
    sha256 = hashlib.sha256(b"pixels: channels, rows, columns; divided by 255").hexdigest()

    def prepare(self, device: torch.device | str) -> None:
        """Do nothing: it does not have weights."""

    def _extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        return images.flatten(1).float() / 255, None


class Custom(Extractor):
    """A TorchScript file that maps uint8 images (B, C, H, W) to features (B, D).

    It may return a tuple of features and class logits (B, K) instead. Loading such a file runs its
    code: use only files that you trust.

    Args:
        path: written by ``torch.jit.save``.
    """

    name = "custom"
    resize = "its own"

    def __init__(self, *, path: str) -> None:
        self._path = Path(path)
        problem = "file not found; save a TorchScript module there with torch.jit.save"
        require(self._path.is_file(), "path", path, problem)
        self.sha256 = file_sha256(self._path, "path")

    def prepare(self, device: torch.device | str) -> None:
        """Load the file onto ``device``.

        Raises:
            ConfigError: a file that is not TorchScript.
        """
        try:
            with warnings.catch_warnings(action="ignore"):
                self._module = torch.jit.load(str(self._path), map_location=device).eval()
        except Exception as error:  # not an archive, or one of another kind
            if is_out_of_memory(error):
                raise
            problem = f"cannot be loaded as TorchScript ({reason(error)}); write it again with"
            where = str(self._path)
            raise ConfigError("extractor.path", where, f"{problem} torch.jit.save") from error

    def _extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        try:
            outputs = self._module(images)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            shape = tuple(images.shape)
            problem = f"fails on uint8 images of shape {shape}: {reason(error)}"
            raise ConfigError("extractor.path", str(self._path), problem) from error
        parts = outputs if isinstance(outputs, tuple) else (outputs,)
        if len(parts) not in (1, 2) or not all(isinstance(part, Tensor) for part in parts):
            problem = "must return a tensor of features, or a tuple of features and logits"
            raise ConfigError("extractor.path", str(self._path), problem)
        return parts[0], parts[1] if len(parts) == 2 else None


def reason(error: BaseException) -> str:
    """Return the last line of an error; TorchScript puts a trace before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
