"""Codec of images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ddpm.data.class_rows import Rows
from ddpm.data.codec import Codec, check_limits, checked_shape
from ddpm.data.decoding import read_pixels, suppress_pillow_warnings
from ddpm.data.depth import Levels, file_range_warnings
from ddpm.data.pictures import grid
from ddpm.data.scaling import ByteScaling, IntegerScaling, Scaling
from ddpm.errors import ConfigError, require
from ddpm.files import replacing


class ImageCodec(Codec):
    """Images: raw uint8 0..255, or 16-bit levels ``low``..``high``, are -1..1 in model space.

    Args:
        shape: (channels, height, width). Picture files have 1 channel (grey) or 3 (RGB).
        low: black of 16-bit grey images; None for uint8.
        high: white of 16-bit grey images; None for uint8. With ``low`` and ``high``, raw data are
            whole numbers in float32, written as 16-bit PNG or arrays of uint16.

    Raises:
        ConfigError: an invalid shape or range.
    """

    kind = "images"
    unit = "img"
    formats = ("png", "npz", "npy")
    default_format = "png"
    folders = {"png": "images"}

    def __init__(
        self, shape: Iterable[int], low: float | None = None, high: float | None = None
    ) -> None:
        self.shape = checked_shape(shape, "channels height width")
        check_limits(low, high)
        self._scaling: ByteScaling | IntegerScaling = ByteScaling()
        self.levels = Levels()
        if low is not None and high is not None:
            problem = "must have 1 channel for 16-bit levels"
            require(self.shape[0] == 1, "shape", self.shape, problem)
            self.levels = Levels.from_range(16, low, high)
            self._scaling = IntegerScaling(float(low), float(high))

    @property
    def scaling(self) -> Scaling:
        """Map of raw values to model space."""
        return self._scaling

    def encode(self, raw: torch.Tensor) -> torch.Tensor:
        """Convert raw ``(B, C, H, W)`` to float32 in -1..1."""
        return self._scaling.encode(raw)

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Convert ``(B, C, H, W)`` to the nearest raw values, clamped to their range."""
        return self._scaling.decode(x)

    def pixels(self, raw: torch.Tensor) -> torch.Tensor:
        """Return raw ``(B, C, H, W)`` as uint8, black..white as 0..255, for display and metrics."""
        return raw if raw.dtype == torch.uint8 else ByteScaling().decode(self.encode(raw))

    def state(self) -> dict[str, Any]:
        """Return the kind, the shape, and the range of 16-bit levels."""
        levels = self.levels
        limits = {"low": levels.low, "high": levels.high} if levels.bits == 16 else {}
        return {"kind": self.kind, "shape": list(self.shape), **limits}

    def read(self, path: str) -> torch.Tensor:
        """Read a picture file as raw ``(C, H, W)``, scaled to cover this size and centre-cropped.

        Raises:
            ConfigError: (key ``path``) the file is not a readable picture, or the model does not
                have 1 or 3 channels.
        """
        self._require_picture_channels("path", path, "train on grey or RGB images")
        channels, height, width = self.shape
        with suppress_pillow_warnings():
            _, pixels = read_pixels(path, channels, (height, width), self.levels)
        return torch.from_numpy(pixels.copy())

    def file_warnings(self, path: str) -> tuple[str, ...]:
        """Return a warning if the 16-bit values use a small part of the model's range."""
        with suppress_pillow_warnings():
            header, _ = read_pixels(path, 1, None, self.levels)
        return file_range_warnings(path, header.value_range, self.levels)

    def picture(
        self, raw: torch.Tensor, *, columns: int | None = None, rows: Rows = None
    ) -> Image.Image:
        """Return a grid of the images; see :func:`ddpm.data.pictures.grid`."""
        return grid(self.pixels(raw.detach()).cpu().numpy(), columns, rows)

    def array(self, raw: torch.Tensor) -> npt.NDArray[Any]:
        """Return ``(N, H, W, C)``, the order that other evaluation programs expect."""
        array = np.ascontiguousarray(raw.cpu().numpy().transpose(0, 2, 3, 1))
        return array if self.levels.bits == 8 else array.astype(np.uint16)

    def write(
        self,
        raw: torch.Tensor,
        folder: Path,
        *,
        format: str,
        labels: torch.Tensor | None = None,
        first: int = 0,
        classes: Sequence[str] | None = None,
    ) -> list[Path]:
        """Write images; see :meth:`Codec.write`. ``png`` writes images/00000.png and so on."""
        if format != "png":
            return super().write(raw, folder, format=format, labels=labels, first=first)
        self._require_picture_channels("format", format, "use format=npz")
        paths = []
        names = self._item_names(format, first, len(raw), classes)
        for name, pixels in zip(names, self.array(raw), strict=True):
            path = Path(folder, name)
            with replacing(path) as aside:
                image = Image.fromarray(pixels[:, :, 0] if self.shape[0] == 1 else pixels)
                image.save(aside, "PNG")
            paths.append(path)
        return paths

    def _require_picture_channels(self, key: str, value: str, remedy: str) -> None:
        channels = self.shape[0]
        if channels not in (1, 3):
            problem = f"pictures have 1 or 3 channels, these images have {channels}; {remedy}"
            raise ConfigError(key, value, problem)
