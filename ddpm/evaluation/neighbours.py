"""Samples beside the images of the reference that are nearest to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddpm import metrics
from ddpm.data import ImageCodec
from ddpm.data.class_rows import Rows
from ddpm.metrics.results import Neighbour


def neighbours(
    mine: Tensor, raw: Tensor, theirs: Tensor, images: metrics.Images
) -> list[Neighbour]:
    """Return samples beside the nearest images, with their distances in feature space.

    Args:
        mine: (n, D) features of the samples.
        raw: uint8 (n or more, C, H, W) the samples.
        theirs: (m, D) features of the images.
        images: the images.
    """
    exact = "donot_use_mm_for_euclid_dist"  # the distance of equal features is 0
    apart, where = torch.cdist(mine.float(), theirs.float(), compute_mode=exact).min(dim=1)
    near = images.read(where.tolist())
    return [
        Neighbour(picture(raw[i : i + 1]), picture(near[i : i + 1]), float(apart[i]))
        for i in range(len(mine))
    ]


def picture(raw: Tensor, rows: Rows = None) -> Any:
    """Return a grid of uint8 images (n, C, H, W), in rows of classes where they are given."""
    return ImageCodec(tuple(raw.shape[1:])).picture(raw, rows=rows)
