"""Data sets, and codecs that convert their items to model space, back, and to files."""

from __future__ import annotations

from ddpm.data.cifar import CIFAR10
from ddpm.data.codec import Codec, codec_from_state
from ddpm.data.dataset import Dataset
from ddpm.data.folder import Folder
from ddpm.data.image_codec import ImageCodec
from ddpm.data.images import UNAUGMENTED_KEY, Digits
from ddpm.data.mnist import MNIST
from ddpm.data.sequence_codec import SequenceCodec
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
    "MNIST",
    "SequenceCodec",
    "Sequences",
    "UNAUGMENTED_KEY",
    "VideoCodec",
    "Videos",
    "codec_from_state",
]
