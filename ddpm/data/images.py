"""Base class of data sets of images and videos, and the digits of scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ddpm.data.codec import Codec
from ddpm.data.dataset import Dataset, count_labels
from ddpm.data.decoding import fit
from ddpm.data.image_codec import ImageCodec
from ddpm.errors import require
from ddpm.seeding import mix, mix_array

_FLIP = 1  # mixed with the key to decide on a flip

UNAUGMENTED_KEY: int = next(key for key in count() if mix(key, _FLIP) % 2 == 0)
"""A key for :meth:`Dataset.fetch` with which the data sets of this package do not flip."""


class PixelSet(Dataset):
    """Base class of data sets of images or videos in memory, with labels and flips.

    A subclass may override the look-up of items that are not in memory.
    """

    _pixels: torch.Tensor | None
    _labels: torch.Tensor | None
    _flip: bool

    def _set_up(self, codec: Codec, *, flip: bool) -> None:
        self.shape, self.codec, self._flip = codec.shape, codec, flip
        self.num_classes = self.class_names = self._labels = self._pixels = None
        self.in_memory = False

    def _set_pixels(self, pixels: torch.Tensor) -> None:
        self._pixels, self.in_memory = pixels, True

    def _set_labels(self, labels: Sequence[int], names: Sequence[str]) -> None:
        self._labels = torch.tensor(labels, dtype=torch.int64)
        self.class_names, self.num_classes = list(names), len(names)

    def __len__(self) -> int:
        assert self._pixels is not None
        return len(self._pixels)

    def fetch(
        self, indices: Sequence[int], keys: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return raw items, mirrored left to right for some keys, and labels.

        See :meth:`Dataset.fetch`.
        """
        positions = torch.as_tensor(indices, dtype=torch.int64)
        raw = self._read_items_at(positions)
        if self._flip:
            mirrored = np.flatnonzero(mix_array(np.asarray(keys), _FLIP) & np.uint64(1))
            pixels = raw.numpy()  # which copies bytes several times faster than torch
            for place in mirrored.tolist():
                pixels[place] = pixels[place, ..., ::-1].copy()
        return raw, None if self._labels is None else self._labels[positions]

    def class_counts(self, indices: Sequence[int] | None = None) -> list[int] | None:
        """Return the number of items per class; None without labels."""
        return count_labels(self._labels, self.num_classes, indices)

    def _read_items_at(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the pixels of items in a new tensor."""
        assert self._pixels is not None
        return self._pixels.index_select(0, positions)  # 10 times faster than an index of bytes


def target_size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return ``image_size`` as (height, width), or None; raise ConfigError for invalid sizes."""
    if image_size is None:
        return None
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    good = len(sides) == 2 and min(sides) > 0
    require(good, "image_size", image_size, "must be a positive number of pixels, or two: [H,W]")
    return sides[0], sides[1]


def resize_images(
    images: npt.NDArray[np.uint8], image_size: int | tuple[int, int] | None
) -> torch.Tensor:
    """Resize images ``(N, H, W, C)``, C = 1 or 3, and return a tensor ``(N, C, *size)``.

    Args:
        images: uint8.
        image_size: side length, or (height, width), in pixels; None = unchanged.

    Raises:
        ConfigError: (key ``image_size``) the size is not positive.
    """
    size = target_size(image_size)
    if size is not None and size != images.shape[1:3]:
        single = images.shape[3] == 1
        items = [fit(Image.fromarray(each[:, :, 0] if single else each), size) for each in images]
        images = np.stack([np.asarray(each) for each in items]).reshape(len(images), *size, -1)
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


class Digits(PixelSet):
    """The 1797 handwritten digits of scikit-learn, ``(1, 8, 8)``, uint8 grey; no download.

    Args:
        image_size: resize to a side length, or to (height, width), in pixels; None = 8.
        class_cond: return labels, which are the digits.

    Raises:
        ConfigError: (key ``image_size``) the size is not positive.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] | None = None,
        class_cond: bool = False,
    ) -> None:
        values, digits = _read_digits()
        images = np.rint(values * (255 / 16)).astype(np.uint8)  # scikit-learn has 0..16
        pixels = resize_images(images.reshape(-1, 8, 8, 1), image_size)
        self._set_up(ImageCodec(pixels.shape[1:]), flip=False)
        self._set_pixels(pixels)
        if class_cond:
            self._set_labels([int(digit) for digit in digits], [str(n) for n in range(10)])


def _read_digits() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return the pixels (N, 64) and the labels (N,) of scikit-learn's ``load_digits``.

    Its file is read directly: importing scikit-learn takes a second or more.
    """
    spec = find_spec("sklearn")
    folders = spec.submodule_search_locations if spec is not None else None
    path = Path(folders[0] if folders else "") / "datasets" / "data" / "digits.csv.gz"
    if path.is_file():
        table = np.loadtxt(path, delimiter=",")
        return table[:, :-1], table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    values, digits = load_digits(return_X_y=True)
    return np.asarray(values), np.asarray(digits)
