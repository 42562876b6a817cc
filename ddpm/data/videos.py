"""Data set of clips of videos."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy.typing as npt
import torch

from ddpm.data import gifs, video_containers, video_sources
from ddpm.data.decoding import SUFFIXES, suppress_pillow_warnings
from ddpm.data.depth import Bits
from ddpm.data.disk_cache import DiskCache, code_version
from ddpm.data.files import parallel_for
from ddpm.data.images import PixelSet, target_size
from ddpm.data.item_file import ItemFile
from ddpm.data.samples import find_samples
from ddpm.data.video_arrays import Order, VideoArray, check_array_suffix
from ddpm.data.video_codec import Condition, VideoCodec
from ddpm.data.video_containers import pyav_version
from ddpm.data.video_sources import VIDEO_FILES, VideoFiles, VideoListing, VideoSource
from ddpm.errors import ConfigError, require

_NO_CONDITION = Condition()


class Videos(PixelSet):
    """Clips ``(C, F, H, W)`` of video files, of folders of pictures, or of an array file.

    Items are uint8, or float32 for 16-bit grey pictures and for arrays of other types. A video is
    divided into consecutive clips; frames at its end that do not fill a clip are not used.

    Args:
        path: folder in which, at any depth, each GIF, mp4, webm or mov file is a video, and so is
            each folder that directly contains pictures, in the natural order of their names; or an
            .npy, .npz or .pt file of ``(N, C, F, H, W)`` or ``(N, F, C, H, W)``. mp4, webm and mov
            files need PyAV: ``pip install 'ddpm[video]'``.
        frames: frames per clip; None = the length of the videos, which must be equal.
        stride: use every ``stride``-th frame.
        fps: frame rate to which video files are resampled; None = intervals of the shortest
            duration in each file, so that a frame of 200 ms beside others of 50 ms counts as four;
            "stored" = each frame once, independent of its duration.
        image_size: see :class:`~ddpm.data.Folder`.
        class_cond: return labels. The class is the first folder below ``path``, or in the array
            "labels" or "arr_1".
        color: see :class:`~ddpm.data.Folder`; arrays keep their channels.
        bits: see :class:`~ddpm.data.Folder`.
        key: name of the array in an .npz, or in a dict of tensors; None = "arr_0", or the only one.
        order: order of the axes of an array, "ncfhw" or "nfchw"; None = inferred from the shape if
            exactly one of axes 1 and 2 has length 1 to 4.
        low: lower end of the range: black of 16-bit pictures, see :class:`~ddpm.data.Folder`, or
            the minimum of arrays, see :class:`~ddpm.data.Sequences`.
        high: upper end of the range, likewise.
        flip: mirror a random half of the clips, left to right.
        cache_mb: see :class:`~ddpm.data.Folder`.
        disk_cache: see :class:`~ddpm.data.Folder`; has no effect on arrays.
        condition: entries of a clip that are a condition.

    Raises:
        ConfigError: a file is unreadable, differs from others in a property that must be shared, or
            is shorter than a clip.
    """

    legacy_defaults = {"fps": "stored", "bits": 8}

    def __init__(
        self,
        *,
        path: str,
        frames: int | None = None,
        stride: int = 1,
        fps: float | Literal["stored"] | None = None,
        image_size: int | tuple[int, int] | None = None,
        class_cond: bool = False,
        color: Literal["auto", "rgb", "grey"] = "auto",
        bits: Bits = "auto",
        key: str | None = None,
        order: Order | None = None,
        low: float | None = None,
        high: float | None = None,
        flip: bool = False,
        cache_mb: int = 2048,
        disk_cache: bool | str | None = None,
        condition: Condition = _NO_CONDITION,
    ) -> None:
        require(cache_mb >= 0, "cache_mb", cache_mb, "must be 0 or more")
        require(stride >= 1, "stride", stride, "must be at least 1, which uses every frame")
        good = frames is None or frames >= 1
        require(good, "frames", frames, "must be at least 1, or null for whole videos")
        if isinstance(fps, int | float):
            require(0 < fps < math.inf, "fps", fps, "must be positive and finite, such as 20")
        size = target_size(image_size)
        rate, levels, cache = fps, False, None
        prefer_pictures = (color, bits, fps) != ("auto", "auto", None)  # their options are set
        samples = _find_samples(path, prefer_pictures)
        if samples != path and not os.path.isdir(samples):
            order = order or "ncfhw"
        path = samples
        with suppress_pillow_warnings():
            if os.path.isdir(path):
                _reject_options("arrays", key=key, order=order)
                listing = VideoListing.scan(path)
                cache = DiskCache.choose(disk_cache, path, listing.files)
                source = VideoFiles(listing, cache, size, color, fps, bits, low, high)
                levels = source.levels.bits == 16
                varying = source.has_varying_durations
                rate = "shortest" if fps is None and varying else fps
            else:
                check_array_suffix(path, "a folder of videos")
                self._reject_picture_options(color=color, bits=bits, fps=fps)
                source = VideoArray(path, key, order, class_cond, size, low, high)
            self._source: VideoSource | None = source
            self._file: ItemFile | None = None
            self._choose_clips(source, frames, stride)
            shape = (source.channels, self._frames, *source.size)
            low, high = source.limits or (None, None)
            self._set_up(VideoCodec(shape, low, high, condition, rate, levels), flip=flip)
            if class_cond:
                labels, names = source.labels()
                self._set_labels([labels[video] for video, _ in self._clips], names)
            self.warnings = source.warnings
            self._dtype = torch.uint8 if source.limits is None else torch.float32
            if cache is not None and isinstance(source, VideoFiles):
                self._open_file(cache, (source.levels, fps, frames, stride))
            self._keep(source, cache_mb)

    def __len__(self) -> int:
        return len(self._clips)

    def _reject_picture_options(self, **options: object) -> None:
        """Raise ConfigError for options that do not apply to arrays."""
        legacy = self.legacy_defaults.items()  # in configs of earlier versions
        chosen = {k: v for k, v in options.items() if v != "auto" and (k, v) not in legacy}
        _reject_options("pictures", **chosen)

    def is_decoded(self, indices: Sequence[int] | None = None) -> bool:
        """Return True if the items are in memory or in the disk cache."""
        return self.in_memory or (self._file is not None and self._file.is_complete(indices))

    def _open_file(self, cache: DiskCache, options: tuple[object, ...]) -> None:
        """Open the file of decoded clips in the disk cache."""
        code = code_version(gifs, video_containers, video_sources)
        parts = ("clips", self.shape, *options, code, pyav_version())
        clip_bytes = math.prod(self.shape) * self._dtype.itemsize
        self._file = cache.open(parts, len(self), clip_bytes)
        self.warnings += cache.warnings

    def _keep(self, source: VideoSource, limit_mb: int) -> None:
        """Keep all clips in memory if they do not exceed the limit."""
        if len(self) * math.prod(self.shape) * self._dtype.itemsize <= limit_mb * 2**20:
            self._set_pixels(self._read_all(source))
            self._source = self._file = None  # releases the memory of an .npz

    def _choose_clips(self, source: VideoSource, frames: int | None, stride: int) -> None:
        """Choose the clips, each of which is a video and the index of its first frame."""
        lengths = [len(range(0, length, stride)) for length in source.lengths]
        if frames is None:
            frames = lengths[0]
            other = next((at for at, each in enumerate(lengths) if each != frames), None)
            if other is not None:
                sizes = f"{source.name(0)} has {frames}, {source.name(other)} has {lengths[other]}"
                problem = f"the videos differ in length with data.stride={stride}: {sizes}"
                remedy = f"set the frames per clip, such as data.frames={min(lengths)}"
                raise ConfigError("frames", None, f"{problem}; {remedy}")
        for video, length in enumerate(lengths):
            if length < frames:
                every = f" with data.stride={stride}" if stride > 1 else ""
                problem = f"{source.name(video)} has only {source.lengths[video]} frames{every}"
                remedy = f"set data.frames={length} or less, or remove the video"
                raise ConfigError("frames", frames, f"{problem}; {remedy}")
        self._frames, self._stride = frames, stride
        self._clips = [
            (video, start * stride)
            for video, length in enumerate(lengths)
            for start in range(0, length - frames + 1, frames)
        ]

    def _read_all(self, source: VideoSource) -> torch.Tensor:
        """Return all clips; each video is read once."""
        pixels = torch.empty((len(self), *self.shape), dtype=self._dtype)
        array = pixels.numpy()
        firsts = [at for at, (_, start) in enumerate(self._clips) if start == 0]
        ends = [*firsts[1:], len(self)]

        file = self._file

        def read(video: int) -> None:
            first, end = firsts[video], ends[video]
            stored = self._read_stored(first, end, array.dtype)
            if stored is not None:
                array[first:end] = stored
                return
            indices = range(0, (end - first) * self._frames * self._stride, self._stride)
            channels, _, *size = self.shape
            block = source.read(video, indices)
            block = block.reshape(channels, end - first, self._frames, *size)
            array[first:end] = block.swapaxes(0, 1)
            if file is not None:
                for index in range(first, end):
                    file.write(index, array[index].tobytes())

        parallel_for(len(firsts), read, "reading videos")
        return pixels

    def _read_stored(self, first: int, end: int, dtype: npt.DTypeLike) -> npt.NDArray[Any] | None:
        """Return clips from the disk cache, None unless it has all of them."""
        if self._file is None:
            return None
        contents, valid = self._file.read_block(first, end)
        return contents.view(dtype).reshape(-1, *self.shape) if valid.all() else None

    def _read_items_at(self, positions: torch.Tensor) -> torch.Tensor:
        if self._pixels is not None:
            return super()._read_items_at(positions)
        assert self._source is not None
        raw = torch.empty((len(positions), *self.shape), dtype=self._dtype)
        clips = raw.numpy()
        for place, index in enumerate(positions.tolist()):
            stored = self._read_stored(index, index + 1, clips.dtype)
            if stored is not None:
                clips[place] = stored[0]
                continue
            video, start = self._clips[index]
            indices = range(start, start + self._frames * self._stride, self._stride)
            clips[place] = self._source.read(video, indices)
            if self._file is not None:
                self._file.write(index, clips[place].tobytes())
        return raw


def _find_samples(path: str, prefer_pictures: bool) -> str:
    """Return the path of the samples in a folder of samples, by default as exact arrays."""
    arrays, files = ["samples.npz", "samples.npy"], ["videos", "images"]
    readable = [*files, *arrays] if prefer_pictures else [*arrays, *files]
    return find_samples(path, readable, (*VIDEO_FILES, *SUFFIXES))


def _reject_options(kind: str, **options: object) -> None:
    """Raise ConfigError for options that apply to another kind of files."""
    for name, value in options.items():
        require(value is None, name, value, f"only applies to {kind}; omit it")
