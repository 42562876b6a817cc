"""Samples beside the nearest images of the reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddpm import metrics
from ddpm.data import ImageCodec
from ddpm.data.class_rows import Rows
from ddpm.metrics.results import Neighbour


def nearest_images(
    features: Tensor, raw: Tensor, reference_features: Tensor, reference: metrics.Images
) -> list[Neighbour]:
    """Return samples beside the nearest reference images by distance in feature space.

    Args:
        features: (n, D) features of the samples.
        raw: uint8 (n or more, C, H, W) samples.
        reference_features: (m, D).
        reference: the m images.
    """
    exact = "donot_use_mm_for_euclid_dist"  # the distance of equal features is 0
    pairwise = torch.cdist(features.float(), reference_features.float(), compute_mode=exact)
    distances, indices = pairwise.min(dim=1)
    nearest = reference.read(indices.tolist())
    return [
        Neighbour(image_grid(raw[i : i + 1]), image_grid(nearest[i : i + 1]), float(distances[i]))
        for i in range(len(features))
    ]


def image_grid(raw: Tensor, rows: Rows = None) -> Any:
    """Return a grid of uint8 images (n, C, H, W) as a Pillow image.

    Args:
        raw: the images.
        rows: the rows of classes; None = a square.
    """
    return ImageCodec(tuple(raw.shape[1:])).picture(raw, rows=rows)
