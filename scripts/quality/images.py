"""Features, floors of FID, lossless codecs and memorisation on uint8 images (N, C, H, W)."""

from __future__ import annotations

import hashlib
import importlib
import io
import math
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ddpm.data import UNAUGMENTED_KEY, Dataset
from ddpm.data.split import split
from ddpm.metrics import fid
from scripts.cifar_classifier import Classifier, accuracy, parts, train

MEMORISED_RATIO = 1 / 3
"""Largest ratio of the distances to the nearest two training images of a memorised sample (Yoon et
al. 2023, "Diffusion probabilistic models generalize when they fail to memorize")."""
CODECS: dict[str, tuple[str, dict[str, Any]]] = {
    "PNG": ("PNG", {"optimize": True}),
    "WebP": ("WEBP", {"lossless": True, "quality": 100, "method": 6}),
    "JPEG XL": ("JXL", {"lossless": True, "effort": 9}),
}
"""Formats of Pillow and their options, by name in the table."""


@dataclass(frozen=True)
class Labelled:
    """Images with their classes.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Tensor) -> Labelled:
        return Labelled(self.images[rows], self.labels[rows])

    def halves(self, seed: int) -> tuple[Labelled, Labelled]:
        """Return two random halves with equally many images per class."""
        few = int(self.labels.bincount().min()) // 2 * len(self.labels.unique())
        first, second = parts(self.labels, [few, few], torch.Generator().manual_seed(seed))
        return self[first], self[second]


def labelled_parts(data: Dataset, val_fraction: float) -> tuple[Labelled, Labelled]:
    """Return the images for training and those that ``data.val_fraction`` holds out."""
    both = split(data, val_fraction)
    assert both.held_out is not None
    return _read(both.train), _read(both.held_out)


def _read(data: Dataset) -> Labelled:
    images, labels = data.fetch(range(len(data)), [UNAUGMENTED_KEY] * len(data))
    assert labels is not None, "a data set with classes"
    return Labelled(images, labels)


class FeatureSpace:
    """Features of a classifier of one half of the training images; FID is to the other half.

    A network has other features for images that it was trained on than for new ones; therefore the
    reference are images that it has not seen.

    Args:
        training: images for training.
        held_out: images that no model has seen.
        steps: optimizer steps of the classifier.
        seed: of the halves, the weights and the batches.

    Attributes:
        accuracy: of the classifier on the held-out images.
        sha256: hash of its weights.
    """

    WIDTH = 16
    BATCH = 128

    def __init__(
        self, training: Labelled, held_out: Labelled, *, steps: int, seed: int = 0
    ) -> None:
        seen, self.reference = training.halves(seed)
        self.held_out, self.seed = held_out, seed
        self.network: Classifier = train(
            seen.images, seen.labels, classes=int(training.labels.max()) + 1, width=self.WIDTH,
            steps=steps, batch=self.BATCH, seed=seed, mirror=False,
        )  # fmt: skip
        self.accuracy = accuracy(self.network, held_out.images, held_out.labels)
        digest = hashlib.sha256()
        for name, values in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + values.numpy().tobytes())
        self.sha256 = digest.hexdigest()
        self._reference = self.features(self.reference.images)

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Return features (N, 4 * WIDTH) of uint8 images."""
        return torch.cat([self.network(some)[0] for some in images.split(500)]).cpu()

    def fid(self, images: Tensor) -> float:
        """Return the Fréchet distance of images to the reference."""
        return fid(self.features(images), self._reference).values["fid"]

    def floors(self) -> dict[str, float]:
        """Return FID between random halves of the reference, and of the held-out images."""
        first, second = self.reference.halves(self.seed + 1)
        halves = fid(self.features(first.images), self.features(second.images)).values["fid"]
        return {
            "half against half": halves,
            "held out against train": self.fid(self.held_out.images),
        }


def memorised(samples: Tensor, training: Tensor) -> float:
    """Return the share of samples that copy a training image, by :data:`MEMORISED_RATIO`.

    Args:
        samples: uint8 images.
        training: uint8 images without duplicates of each other.
    """
    train_pixels = training.flatten(1).float()
    copies = 0
    for some in samples.split(250):
        distances = torch.cdist(some.flatten(1).float(), train_pixels)
        nearest = distances.topk(2, largest=False).values
        copies += int((nearest[:, 0] <= MEMORISED_RATIO * nearest[:, 1]).sum())
    return copies / len(samples)


def codec_bits(images: Tensor) -> dict[str, float | None]:
    """Return bits per dimension of lossless codecs; None where Pillow lacks the codec.

    All images are tiles of one picture, which shares headers and statistics among them; a file per
    image takes several times more.
    """
    picture = _tiled(images)
    dims = images.numel()
    return {name: _bits(picture, *codec, dims) for name, codec in CODECS.items()}


def _tiled(images: Tensor) -> Image.Image:
    """Return one picture of all images (N, C, H, W), as square as its rows allow."""
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count * height / width))
    columns = next(n for n in range(columns, count + 1) if count % n == 0)  # no empty tiles
    tiles = images.reshape(-1, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    pixels = tiles.reshape(-1, columns * width, channels).numpy()
    return Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels)


def _bits(
    picture: Image.Image, file_format: str, options: dict[str, Any], dims: int
) -> float | None:
    """Return bits per dimension of a picture in a lossless format; None without the format."""
    if file_format == "JXL":
        try:
            importlib.import_module("pillow_jxl")  # registers the format
        except ImportError:
            return None
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    restored = Image.open(io.BytesIO(buffer.getvalue())).convert(picture.mode)
    assert restored.tobytes() == picture.tobytes(), f"{file_format} is not lossless"
    return 8 * len(buffer.getvalue()) / dims
