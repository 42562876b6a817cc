"""How near samples come to data: extractors, features, scores, and what to compare with."""

from __future__ import annotations

from ddpm.metrics.extractors import Custom, Extractor, Pixels
from ddpm.metrics.features import Features, extract, joined, of_batch, share
from ddpm.metrics.image_sources import (
    DatasetImages,
    FolderImages,
    HeldImages,
    Images,
    NpzImages,
    SomeImages,
    holds_statistics,
)
from ddpm.metrics.moments import Moments
from ddpm.metrics.pretrained import CLIP, Auto, DINOv2, Inception
from ddpm.metrics.reference import LARGEST_KEPT, Reference, named, reference_of
from ddpm.metrics.scores import Score, Statistics, check, fid, isc, kid, name_of, prc

__all__ = [
    "CLIP",
    "LARGEST_KEPT",
    "Auto",
    "Custom",
    "DINOv2",
    "DatasetImages",
    "Extractor",
    "Features",
    "FolderImages",
    "HeldImages",
    "Images",
    "Inception",
    "Moments",
    "NpzImages",
    "Pixels",
    "Reference",
    "Score",
    "SomeImages",
    "Statistics",
    "check",
    "extract",
    "fid",
    "holds_statistics",
    "isc",
    "joined",
    "kid",
    "name_of",
    "named",
    "of_batch",
    "prc",
    "reference_of",
    "share",
]
