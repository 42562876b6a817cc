"""How near samples come to data: extractors, features, scores, and what to compare with."""

from __future__ import annotations

from ddpm.fidelity.extractors import Custom, Extractor, Pixels
from ddpm.fidelity.features import Features, extract, joined, of_batch, share
from ddpm.fidelity.images import (
    DatasetImages,
    FolderImages,
    HeldImages,
    Images,
    NpzImages,
    SomeImages,
    holds_statistics,
)
from ddpm.fidelity.moments import Moments
from ddpm.fidelity.published import CLIP, Auto, DINOv2, Inception
from ddpm.fidelity.reference import LARGEST_KEPT, Reference, named, reference_of
from ddpm.fidelity.scores import Score, Statistics, check, fid, isc, kid, name_of, prc

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
