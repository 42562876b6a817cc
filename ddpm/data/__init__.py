"""Data sets, and the codecs that carry their items to model space, back, and into files."""

from __future__ import annotations

from ddpm.data.cifar import CIFAR10
from ddpm.data.codec import Codec, ImageCodec, SequenceCodec, codec_from_state
from ddpm.data.dataset import Dataset
from ddpm.data.folder import Folder
from ddpm.data.images import UNTOUCHED, Digits
from ddpm.data.sequences import Sequences
from ddpm.data.video_codec import Condition, VideoCodec
from ddpm.data.videos import Videos

__all__ = [
    "CIFAR10",
    "Codec",
    "Condition",
    "Dataset",
    "Digits",
    "Folder",
    "ImageCodec",
    "SequenceCodec",
    "Sequences",
    "UNTOUCHED",
    "VideoCodec",
    "Videos",
    "codec_from_state",
]
