"""Data sets, and the codecs that carry their items to model space, back, and into files."""

from __future__ import annotations

from ddpm.data.codec import Codec, ImageCodec, SequenceCodec, codec_from_state
from ddpm.data.dataset import Dataset
from ddpm.data.folder import Folder
from ddpm.data.images import CIFAR10, Digits
from ddpm.data.sequences import Sequences

__all__ = [
    "CIFAR10",
    "Codec",
    "Dataset",
    "Digits",
    "Folder",
    "ImageCodec",
    "SequenceCodec",
    "Sequences",
    "codec_from_state",
]
