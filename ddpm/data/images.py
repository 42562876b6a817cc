"""Sets of images: what they share, and those that come ready-made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ddpm.data.codec import Codec, ImageCodec
from ddpm.data.dataset import Dataset, count_labels
from ddpm.data.decoding import fit
from ddpm.errors import ConfigError, require
from ddpm.seeding import mix, mix_array

_FLIP = 1  # what the key is mixed with to decide on a flip

UNTOUCHED: int = next(key for key in count() if mix(key, _FLIP) % 2 == 0)
"""A key for :meth:`Dataset.fetch` with which our own data sets mirror nothing."""


class PixelSet(Dataset):
    """Images or videos in memory with labels and flips; a subclass may look them up otherwise."""

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
        """Raw ``(B, *shape)``, mirrored left to right where the key says so, and labels."""
        where = torch.as_tensor(indices, dtype=torch.int64)
        raw = self._look_up(where)
        if self._flip:
            mirrored = torch.from_numpy((mix_array(np.asarray(keys), _FLIP) & np.uint64(1)) == 1)
            raw[mirrored] = raw[mirrored].flip(-1)
        return raw, None if self._labels is None else self._labels[where]

    def class_counts(self, indices: Sequence[int] | None = None) -> list[int] | None:
        """Return the number of items per class; None without labels."""
        return count_labels(self._labels, self.num_classes, indices)

    def _look_up(self, where: torch.Tensor) -> torch.Tensor:
        """The pixels of the items ``where``, in a tensor of their own."""
        assert self._pixels is not None
        return self._pixels[where]


def target_size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """``image_size`` as (height, width), or None; raises ConfigError where it is not positive."""
    if image_size is None:
        return None
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    good = len(sides) == 2 and min(sides) > 0
    require(good, "image_size", image_size, "must be a positive number of pixels, or two: [H,W]")
    return sides[0], sides[1]


def _fitted(
    images: npt.NDArray[np.uint8], image_size: int | tuple[int, int] | None
) -> torch.Tensor:
    """Images ``(N, H, W, C)`` in another size, as a tensor ``(N, C, H, W)``."""
    size = target_size(image_size)
    if size is not None and size != images.shape[1:3]:
        single = images.shape[3] == 1
        fitted = [fit(Image.fromarray(each[:, :, 0] if single else each), size) for each in images]
        images = np.stack([np.asarray(each) for each in fitted]).reshape(len(images), *size, -1)
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


class Digits(PixelSet):
    """The 1797 handwritten digits, grey and 8x8, that come with scikit-learn: no download.

    ``image_size`` resizes them; ``class_cond`` gives the digit as the label.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] | None = None,
        class_cond: bool = False,
    ) -> None:
        from sklearn.datasets import load_digits

        values, digits = load_digits(return_X_y=True)
        images = np.rint(np.asarray(values) * (255 / 16)).astype(np.uint8)  # stored as 0..16
        pixels = _fitted(images.reshape(-1, 8, 8, 1), image_size)
        self._set_up(ImageCodec(pixels.shape[1:]), flip=False)
        self._set_pixels(pixels)
        if class_cond:
            self._set_labels([int(digit) for digit in digits], [str(n) for n in range(10)])


class CIFAR10(PixelSet):
    """CIFAR-10, 32x32 in colour: 50,000 images to train on or 10,000 to test with.

    ``path`` is the folder that holds cifar-10-batches-py, checked against the published MD5 sums;
    ``download`` fetches what is missing there. ``flip`` mirrors a random half of the items.
    """

    def __init__(
        self,
        *,
        path: str = "data/cifar10",
        download: bool = False,
        split: Literal["train", "test"] = "train",
        image_size: int | tuple[int, int] | None = None,
        class_cond: bool = False,
        flip: bool = False,
    ) -> None:
        root = os.path.expanduser(path)
        target_size(image_size)
        images, labels, names = _read_cifar10(root, split == "train", download)
        pixels = _fitted(images, image_size)
        self._set_up(ImageCodec(pixels.shape[1:]), flip=flip)
        self._set_pixels(pixels)
        if class_cond:
            self._set_labels(labels, names)
        alike = partial(CIFAR10, path=path, image_size=image_size, class_cond=class_cond)
        self._test = partial(alike, split="test") if split == "train" else None

    def own_split(self) -> CIFAR10 | None:
        """The test images, never mirrored; None where these are the test images."""
        return None if self._test is None else self._test()


def _read_cifar10(
    root: str, train: bool, download: bool
) -> tuple[npt.NDArray[np.uint8], list[int], list[str]]:
    """Images ``(N, 32, 32, 3)``, labels and class names; files are verified, then unpickled."""
    import torchvision.datasets

    published = torchvision.datasets.CIFAR10
    folder = os.path.join(root, published.base_folder)
    if not download and not os.path.isdir(folder):
        what = f"no CIFAR-10 in {root}"
        remedy = f"add data.download=true, or put {published.base_folder} there"
        raise ConfigError("path", root, f"{what}; {remedy}")
    if download:
        try:
            published(root, download=True)
        except Exception as error:  # no network, no space, a damaged archive: any error at all
            page = "https://www.cs.toronto.edu/~kriz/cifar.html"
            remedy = f"fetch {published.filename} from {page} on another machine, put it in {root}"
            problem = f"the download failed ({error}); {remedy} and run this again"
            raise ConfigError("download", True, problem) from error
    _verify_cifar10(folder)
    held = published(root, train=train)
    return np.asarray(held.data), [int(label) for label in held.targets], list(held.classes)


def _verify_cifar10(folder: str) -> None:
    import torchvision.datasets
    from torchvision.datasets.utils import check_integrity

    published = torchvision.datasets.CIFAR10
    meta = [published.meta["filename"], published.meta["md5"]]
    for name, md5 in [*published.train_list, *published.test_list, meta]:
        file = os.path.join(folder, name)
        if not check_integrity(file, md5):
            state = "is damaged (MD5 sum)" if os.path.isfile(file) else "is missing"
            remedy = f"remove {folder} and add data.download=true"
            raise ConfigError("path", file, f"{state}; {remedy}")
