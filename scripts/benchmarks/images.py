"""Random images in memory and in folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from ddpm.data import ImageCodec
from ddpm.data.images import PixelSet


def pixels(count: int, size: int) -> Tensor:
    """Return random images (count, 3, size, size), uint8, smooth on a scale of eight pixels."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, max(size // 8, 2), max(size // 8, 2), generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    noise = torch.rand(smooth.shape, generator=generator)
    return (255 * (0.9 * smooth + 0.1 * noise)).to(torch.uint8)


def write_images(folder: Path, count: int, size: int, suffix: str) -> Path:
    """Write random images into a folder, and return it."""
    folder.mkdir(parents=True)
    for index, image in enumerate(pixels(count, size).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(np.ascontiguousarray(image)).save(folder / f"{index:06}.{suffix}")
    return folder


class Memory(PixelSet):
    """Random images in memory, mirrored at random."""

    def __init__(self, count: int, size: int) -> None:
        self._set_up(ImageCodec((3, size, size)), flip=True)
        self._set_pixels(pixels(count, size))


class ImageFiles(Dataset[Tensor]):
    """Images that are decoded per item, as in the examples of diffusers."""

    def __init__(self, folder: Path, size: int) -> None:
        from torchvision import transforms

        self.files = sorted(folder.iterdir())
        steps = (transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor())
        self.transform: Callable[[Image.Image], Any] = transforms.Compose(
            [*steps, transforms.Normalize([0.5], [0.5])]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB"))
