"""Extractors: what turns images into the features that fidelity is measured in."""

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
    """Uint8 images (B, C, H, W) to features (B, D), and to class logits (B, K) where it has them.

    What can be refused without the weights is refused when it is made; :meth:`prepare` loads
    them, and is called before anything else. The features of an image must not depend on the
    batch that it is in.
    """

    name: str
    """What it is called beside a number."""
    resize: str
    """What it does to the sizes of images, in words."""
    sha256: str
    """Of what determines the features, mostly the file of weights; known once prepared."""

    @abstractmethod
    def prepare(self, device: torch.device | str) -> None:
        """Load what is needed onto ``device``.

        Raises:
            ConfigError: weights that cannot be had.
        """

    @abstractmethod
    def _extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features and logits of images on the device."""

    @torch.inference_mode()
    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """``features`` (B, D), and ``logits`` (B, K) where there are, as float32 or float64.

        Args:
            images: uint8 (B, C, H, W) on the device of :meth:`prepare`.

        Raises:
            ConfigError: images that it cannot take, or what it gives is no such thing.
        """
        assert images.dtype == torch.uint8 and images.ndim == 4, (images.dtype, images.shape)
        features, logits = self._extract(images)
        found = {"features": features} | ({} if logits is None else {"logits": logits})
        for what, values in found.items():
            good = values.ndim == 2 and len(values) == len(images) and values.is_floating_point()
            if not good:
                shape = f"{values.dtype} of shape {tuple(values.shape)}".removeprefix("torch.")
                problem = f"gives {what} in {shape} for {len(images)} images; they must be floats"
                raise ConfigError("extractor", self.name, f"{problem} of shape (images, {what})")
        double = torch.float64
        return {k: v if v.dtype == double else v.float() for k, v in found.items()}

    def __call__(self, images: Tensor) -> Tensor:
        """The features alone; see :meth:`outputs`."""
        return self.outputs(images)["features"]

    def output_sizes(
        self, shape: tuple[int, ...], device: torch.device | str
    ) -> tuple[int, int | None]:
        """How many features and how many logits, if any, it has for images (C, H, W).

        It tries a black image, so what it cannot take is told before there is any work.
        """
        found = self.outputs(torch.zeros(1, *shape, dtype=torch.uint8, device=device))
        logits = found.get("logits")
        return found["features"].shape[1], None if logits is None else logits.shape[1]

    def provenance(self) -> dict[str, Any]:
        """Name and hash."""
        return {"name": self.name, "sha256": self.sha256}


class Pixels(Extractor):
    """The pixels themselves, divided by 255: for small images, and without any download."""

    name = "pixels"
    resize = "none"
    sha256 = hashlib.sha256(b"pixels: channels, rows, columns; divided by 255").hexdigest()

    def prepare(self, device: torch.device | str) -> None:
        """There is nothing to load."""

    def _extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        return images.flatten(1).float() / 255, None


class Custom(Extractor):
    """A TorchScript file of the user's own, from uint8 (B, C, H, W) to features (B, D).

    It may give a tuple of features and class logits (B, K) instead. Such a file is code that is
    run, so it is trusted as the command line is: use none that came from elsewhere.

    Args:
        path: what ``torch.jit.save`` wrote.
    """

    name = "custom"
    resize = "its own"

    def __init__(self, *, path: str) -> None:
        self._path = Path(path)
        problem = "there is no such file; save a TorchScript module there, with torch.jit.save"
        require(self._path.is_file(), "path", path, problem)
        self.sha256 = file_sha256(self._path, "path")

    def prepare(self, device: torch.device | str) -> None:
        """Load the file."""
        try:
            with warnings.catch_warnings(action="ignore"):
                self._module = torch.jit.load(str(self._path), map_location=device).eval()
        except Exception as error:  # what is no archive, or one of another kind
            if is_out_of_memory(error):
                raise
            problem = f"cannot be loaded as TorchScript ({reason(error)}); write it anew with"
            where = str(self._path)
            raise ConfigError("extractor.path", where, f"{problem} torch.jit.save") from error

    def _extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        try:
            found = self._module(images)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            shape = tuple(images.shape)
            problem = f"fails on uint8 images of shape {shape}: {reason(error)}"
            raise ConfigError("extractor.path", str(self._path), problem) from error
        parts = found if isinstance(found, tuple) else (found,)
        if len(parts) not in (1, 2) or not all(isinstance(part, Tensor) for part in parts):
            problem = "must give a tensor of features, or a tuple of features and logits"
            raise ConfigError("extractor.path", str(self._path), problem)
        return parts[0], parts[1] if len(parts) == 2 else None


def reason(error: BaseException) -> str:
    """The last line of what an error says: TorchScript puts a trace before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
