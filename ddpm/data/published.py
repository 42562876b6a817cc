"""Data sets that are downloaded once into the user's cache, with test images of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ddpm.data.dataset import Dataset
from ddpm.data.image_codec import ImageCodec
from ddpm.data.images import PixelSet, resize_images
from ddpm.errors import ConfigError
from ddpm.files import user_cache

TIMEOUT_SECONDS = 30.0


class PublishedImages(PixelSet):
    """Base class of image data sets with published files for training and for tests."""

    _test: Callable[[], Dataset] | None = None

    def _set_images(
        self,
        images: npt.NDArray[np.uint8],
        image_size: int | tuple[int, int] | None,
        *,
        flip: bool = False,
    ) -> None:
        """Set the pixels of images ``(N, H, W, C)``, resized to ``image_size``."""
        pixels = resize_images(images, image_size)
        self._set_up(ImageCodec(pixels.shape[1:]), flip=flip)
        self._set_pixels(pixels)

    def own_split(self) -> Dataset | None:
        """Return the test images, without flips; None if these are the test images."""
        return None if self._test is None else self._test()


def cache_folder(name: str, title: str) -> Path:
    """Return the folder of a data set in the user's cache, which all runs share.

    Raises:
        ConfigError: (key ``path``) the home directory is unknown.
    """
    cache = user_cache()
    if cache is None:
        problem = f"the home directory is unknown; set data.path to a folder for {title}"
        raise ConfigError("path", None, problem)
    return cache / name
