"""Distances between samples and data: extractors, features, reference data and scores."""

from __future__ import annotations

from ddpm.metrics.extractors import Custom, Extractor, Pixels
from ddpm.metrics.features import Features, concatenate, extract, extract_batch
from ddpm.metrics.image_sources import (
    DatasetImages,
    FolderImages,
    Images,
    InMemoryImages,
    NpzImages,
    RandomSubset,
    contains_statistics,
)
from ddpm.metrics.moments import Moments
from ddpm.metrics.pretrained import CLIP, Auto, DINOv2, Inception
from ddpm.metrics.reference import LARGEST_CACHED, Reference, cached_reference, load_reference
from ddpm.metrics.scores import Score, Statistics, check_metric, fid, isc, kid, metric_name, prc

__all__ = [
    "CLIP",
    "LARGEST_CACHED",
    "Auto",
    "Custom",
    "DINOv2",
    "DatasetImages",
    "Extractor",
    "Features",
    "FolderImages",
    "InMemoryImages",
    "Images",
    "Inception",
    "Moments",
    "NpzImages",
    "Pixels",
    "Reference",
    "Score",
    "RandomSubset",
    "Statistics",
    "check_metric",
    "extract",
    "fid",
    "contains_statistics",
    "isc",
    "concatenate",
    "kid",
    "metric_name",
    "load_reference",
    "extract_batch",
    "prc",
    "cached_reference",
]
