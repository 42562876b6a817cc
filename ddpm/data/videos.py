"""Clips of videos as a data set."""

from __future__ import annotations

import math
import os
from typing import Literal

import torch

from ddpm.data.decoding import SUFFIXES, quiet_about_size
from ddpm.data.depth import Bits
from ddpm.data.files import visit_all
from ddpm.data.images import PixelSet, target_size
from ddpm.data.samples import samples_at
from ddpm.data.video_codec import Condition, VideoCodec
from ddpm.data.video_sources import (
    VIDEO_FILES,
    Order,
    Source,
    VideoArray,
    VideoFiles,
    must_be_array,
)
from ddpm.errors import ConfigError, require

_NO_CONDITION = Condition()


class Videos(PixelSet):
    """Clips ``(C, F, H, W)`` of GIFs, of folders of pictures, or of an array file.

    ``path`` is a folder in which, at any depth, every GIF and every folder that directly holds
    pictures is a video (its frames in natural order of their names), or an .npy, .npz or .pt file
    of ``(N, C, F, H, W)`` or ``(N, F, C, H, W)``. ``order`` says which of the two; None: told by
    the shape, if exactly one of the axes can be 1 to 4 channels.

    Frames of a GIF follow at equal intervals in time, ``fps`` of them per second. ``fps`` None:
    intervals of the file's shortest duration, so that a frame of 200 ms beside others of 50 ms is
    four frames. "stored": every frame is one, whatever its duration.

    Of every video each ``stride``-th frame is taken, from the first on, and these are cut one
    after the other into clips of ``frames`` frames; a rest that makes no clip is left out, and a
    video too short for one is refused. ``frames`` None: each video is one clip; all have as many.

    ``image_size``, ``color``, ``bits`` and ``cache_mb`` are those of :class:`~ddpm.data.Folder`;
    arrays keep their channels. ``class_cond``: the class is the first folder below ``path``, or
    stands in the array "labels" or "arr_1". ``key`` names the array of an .npz. Pictures and uint8
    arrays are uint8; 16-bit grey pictures float32, with ``low`` and ``high`` as in a folder; other
    arrays float32, with ``low`` and ``high`` as in :class:`~ddpm.data.Sequences`.
    ``flip`` mirrors a random half of the clips, left to right. ``condition`` says what of a clip is
    given clean.

    Raises ConfigError for whatever keeps the videos from becoming one set, naming the file.
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
        condition: Condition = _NO_CONDITION,
    ) -> None:
        require(cache_mb >= 0, "cache_mb", cache_mb, "must be 0 or more")
        require(stride >= 1, "stride", stride, "must be at least 1, which takes every frame")
        good = frames is None or frames >= 1
        require(good, "frames", frames, "must be at least 1; null takes the whole videos")
        if isinstance(fps, int | float):
            require(0 < fps < math.inf, "fps", fps, "must be more than 0, such as 20")
        size = target_size(image_size)
        rate, levels = fps, False
        pictures = (color, bits, fps) != ("auto", "auto", None)  # options of theirs
        place = _samples_at(path, pictures)
        if place != path and not os.path.isdir(place):
            order = order or "ncfhw"
        path = place
        with quiet_about_size():
            if os.path.isdir(path):
                _only("arrays", key=key, order=order)
                source = VideoFiles(path, size, color, fps, bits, low, high)
                levels = source.levels.bits == 16
                rate = "shortest" if fps is None and source.uneven else fps
            else:
                must_be_array(path, "a folder of videos")
                options = {"color": color, "bits": bits, "fps": fps}
                earlier = self.legacy_defaults.items()  # in a config of an earlier version
                typed = {k: v for k, v in options.items() if v != "auto" and (k, v) not in earlier}
                _only("pictures", **typed)
                source = VideoArray(path, key, order, class_cond, size, low, high)
            self._source: Source | None = source
            self._cut(source, frames, stride)
            shape = (source.channels, self._frames, *source.size)
            low, high = source.limits or (None, None)
            self._set_up(VideoCodec(shape, low, high, condition, rate, levels), flip=flip)
            if class_cond:
                labels, names = source.labels()
                self._set_labels([labels[video] for video, _ in self._clips], names)
            self.warnings = source.warnings
            self._dtype = torch.uint8 if source.limits is None else torch.float32
            if len(self) * math.prod(shape) * self._dtype.itemsize <= cache_mb * 2**20:
                self._set_pixels(self._read_all(source))
                self._source = None  # an .npz would stay in memory a second time

    def __len__(self) -> int:
        return len(self._clips)

    def _cut(self, source: Source, frames: int | None, stride: int) -> None:
        """Decide on the clips: each a video and the frame it begins with."""
        lengths = [len(range(0, length, stride)) for length in source.lengths]
        if frames is None:
            frames = lengths[0]
            other = next((at for at, each in enumerate(lengths) if each != frames), None)
            if other is not None:
                sizes = f"{source.name(0)} has {frames}, {source.name(other)} has {lengths[other]}"
                problem = f"the videos differ in frames, taken by data.stride={stride}: {sizes}"
                remedy = f"say how many make a clip, such as data.frames={min(lengths)}"
                raise ConfigError("frames", None, f"{problem}; {remedy}")
        for video, length in enumerate(lengths):
            if length < frames:
                every = f", one of every {stride}" if stride > 1 else ""
                problem = f"{source.name(video)} has {source.lengths[video]} frames, too few for it"
                remedy = f"set data.frames={length} or less, or remove it"
                raise ConfigError("frames", frames, f"{problem}{every}; {remedy}")
        self._frames, self._stride = frames, stride
        self._clips = [
            (video, start * stride)
            for video, length in enumerate(lengths)
            for start in range(0, length - frames + 1, frames)
        ]

    def _read_all(self, source: Source) -> torch.Tensor:
        """All clips; each video is read once."""
        pixels = torch.empty((len(self), *self.shape), dtype=self._dtype)
        array = pixels.numpy()
        firsts = [at for at, (_, start) in enumerate(self._clips) if start == 0]
        ends = [*firsts[1:], len(self)]

        def read(video: int) -> None:
            first, end = firsts[video], ends[video]
            wanted = range(0, (end - first) * self._frames * self._stride, self._stride)
            channels, _, *size = self.shape
            block = source.read(video, wanted)
            block = block.reshape(channels, end - first, self._frames, *size)
            array[first:end] = block.swapaxes(0, 1)

        visit_all(len(firsts), read, "reading videos")
        return pixels

    def _look_up(self, where: torch.Tensor) -> torch.Tensor:
        if self._pixels is not None:
            return super()._look_up(where)
        assert self._source is not None
        raw = torch.empty((len(where), *self.shape), dtype=self._dtype)
        for place, index in enumerate(where.tolist()):
            video, start = self._clips[index]
            wanted = range(start, start + self._frames * self._stride, self._stride)
            raw.numpy()[place] = self._source.read(video, wanted)
        return raw


def _samples_at(path: str, pictures: bool) -> str:
    """Return the place of the samples in a folder of ours: arrays, which are exact, or pictures."""
    arrays, files = ["samples.npz", "samples.npy"], ["videos", "images"]
    wanted = [*files, *arrays] if pictures else [*arrays, *files]
    return samples_at(path, wanted, (*VIDEO_FILES, *SUFFIXES))


def _only(kind: str, **options: object) -> None:
    """Refuse options that go with another kind of files."""
    for name, value in options.items():
        require(value is None, name, value, f"is for {kind}, which these are not; omit it")
