"""Features of images: extraction in batches, and concatenation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.errors import ConfigError
from ddpm.metrics.extractors import Extractor
from ddpm.metrics.image_sources import Images


@dataclass(frozen=True)
class Features:
    """Features of some images, on the CPU.

    Attributes:
        indices: int64 (n,) indices of the images.
        features: (n, D).
        logits: (n, K) class logits; None if the extractor does not have them.
    """

    indices: Tensor
    features: Tensor
    logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.indices)


def extract(
    extractor: Extractor,
    images: Images,
    mine: range | Sequence[int],
    *,
    batch_size: int,
    device: torch.device | str,
    on_batch: Callable[[int], object] | None = None,
) -> Features:
    """Return the features of the images ``mine``, in that order.

    Args:
        extractor: prepared on ``device``.
        images: source of the images.
        mine: their indices; for several processes, see
            :func:`ddpm.distributed.sharding.shard_range`.
        batch_size: images per batch.
        device: of the extractor.
        on_batch: called after each batch with the number of images in it.

    Raises:
        ConfigError: features that are NaN or infinite.
    """
    parts = []
    for start in range(0, len(mine), batch_size):
        indices = list(mine[start : start + batch_size])
        parts.append(extract_batch(extractor, images.read(indices).to(device), indices))
        if on_batch is not None:
            on_batch(len(indices))
    return concatenate(parts)


def extract_batch(extractor: Extractor, images: Tensor, indices: Sequence[int]) -> Features:
    """Return the features of uint8 images (B, C, H, W) on the extractor's device.

    Args:
        extractor: must be prepared.
        images: the images.
        indices: B indices that the images have in the result.

    Raises:
        ConfigError: features that are NaN or infinite.
    """
    assert len(images) == len(indices)
    outputs = {name: values.cpu() for name, values in extractor.outputs(images).items()}
    for name, values in outputs.items():
        bad = int((~torch.isfinite(values)).any(1).sum())
        if bad:
            problem = f"returns {name} that are NaN or infinite, of {bad} of {len(images)} images"
            raise ConfigError("extractor", extractor.name, f"{problem}; repair it")
    where = torch.tensor(indices, dtype=torch.int64)
    return Features(where, outputs["features"], outputs.get("logits"))


def concatenate(parts: Sequence[Features], count: int | None = None) -> Features:
    """Concatenate features.

    Args:
        parts: features of batches or of processes; some may be empty.
        count: sort the result by the indices 0 to ``count - 1`` and drop duplicates, which padding
            creates; None = keep the order.
    """
    filled = [part for part in parts if len(part)]
    if not filled:
        return Features(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0))
    indices = torch.cat([part.indices for part in filled])
    values = torch.cat([part.features for part in filled])
    logits = [part.logits for part in filled if part.logits is not None]
    whole = torch.cat(logits) if len(logits) == len(filled) else None
    if count is None:
        return Features(indices, values, whole)
    order = indices.argsort(stable=True)
    sorted_indices = indices[order]
    new = torch.ones(len(order), dtype=torch.bool)
    new[1:] = sorted_indices[1:] != sorted_indices[:-1]
    order = order[new & (sorted_indices < count)]
    assert torch.equal(indices[order], torch.arange(count)), "images are missing"
    return Features(indices[order], values[order], None if whole is None else whole[order])
