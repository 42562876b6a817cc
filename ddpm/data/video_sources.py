"""Sources of videos: GIF, mp4, webm and mov files, folders of pictures, and array files."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from ddpm.data.arrays import SUFFIXES as ARRAYS
from ddpm.data.arrays import array_classes, declared_range, load_arrays, measured_range
from ddpm.data.decoding import (
    SUFFIXES,
    Header,
    fit,
    must_agree,
    read_gif_frames,
    read_gif_header,
    read_header,
    read_pixels,
)
from ddpm.data.depth import LOOKED_AT, Bits, Levels, depth_warnings, range_warnings, refuse_range
from ddpm.data.files import find_files, folder_classes, visit_all
from ddpm.data.gifs import MAX_FRAMES, Rate, timeline
from ddpm.data.video_containers import (
    CONTAINERS,
    MAX_CONTAINER_FRAMES,
    read_container_frames,
    read_container_header,
)
from ddpm.errors import ConfigError, require

Size = tuple[int, int] | None
Order = Literal["ncfhw", "nfchw"]
GIF = ".gif"
VIDEO_FILES = (GIF, *CONTAINERS)
_CHANNELS = range(1, 5)  # what an axis of channels is taken to have, where nobody says


def must_be_array(path: str, others: str) -> None:
    """Raise ConfigError unless ``path`` ends as arrays do; ``others`` could have stood there."""
    if not path.lower().endswith(ARRAYS):
        what = "is" if os.path.exists(path) else "does not exist, and is"
        problem = f"{what} none of {others}, {', '.join(ARRAYS)}; name one of those"
        raise ConfigError("path", path, problem)


class Source(Protocol):
    """Videos of one size, whole, of any length."""

    lengths: list[int]
    """The number of frames of each."""
    channels: int
    size: tuple[int, int]
    """Height and width of what :meth:`read` gives."""
    limits: tuple[float, float] | None
    """The range of float32 values; None for uint8."""
    warnings: tuple[str, ...]
    """As :attr:`ddpm.data.Dataset.warnings`."""

    def name(self, video: int) -> str:
        """What a video is called in messages."""
        ...

    def labels(self) -> tuple[list[int], list[str]]:
        """The class of each video, and the classes' names; raises ConfigError."""
        ...

    def read(self, video: int, wanted: range) -> npt.NDArray[Any]:
        """Some frames of a video: uint8 or float32 ``(C, F, H, W)``."""
        ...


@dataclass(frozen=True)
class VideoFile:
    """A video: a GIF, mp4, webm or mov file, or a folder that directly contains pictures.

    Attributes:
        path: of the file or the folder.
        frames: names of the pictures, ``2.png`` before ``10.png``; empty for a file.
        timeline: indices of the stored frames of a file, one per frame; None until it is read.
        timestamps: of the stored frames of an mp4, webm or mov file.
    """

    path: str
    frames: tuple[str, ...] = ()
    timeline: list[int] | None = None
    timestamps: tuple[int, ...] = ()

    @classmethod
    def at(cls, path: str, fps: Rate) -> VideoFile:
        """The video at ``path``; raises ConfigError if there is none."""
        if not os.path.isdir(path):
            try:
                return cls(path).with_timeline(_read_header(path), fps, path)
            except ConfigError as error:
                raise ConfigError("path", path, error.problem, "save a shorter one") from error
        inside = [
            name for name in find_files(path, SUFFIXES, "frames").files if not os.path.dirname(name)
        ]
        if not inside:
            problem = "its pictures are in folders below it; give the folder of one video"
            raise ConfigError("path", path, problem)
        return cls(path, tuple(sorted(inside, key=_natural)))

    def with_timeline(self, header: Header, fps: Rate, name: str) -> VideoFile:
        """Return a video file with the frames that it shows at a rate.

        Raises:
            ConfigError: (key ``fps``) the file, called ``name``, has too many of them.
        """
        limit = MAX_CONTAINER_FRAMES if header.timestamps else MAX_FRAMES
        shown = timeline(header.durations_ms, fps, name, limit)
        return replace(self, timeline=shown, timestamps=header.timestamps)

    @property
    def files(self) -> list[str]:
        """The paths of the file, or of the pictures."""
        return [os.path.join(self.path, name) for name in self.frames] or [self.path]

    def length(self) -> int:
        """The number of frames."""
        return len(self.frames or self.timeline or ())

    def read(
        self, channels: int, wanted: Sequence[int], size: tuple[int, int], levels: Levels
    ) -> npt.NDArray[Any]:
        """Some frames as ``(channels, F, H, W)``, each fitted to ``size``."""
        if not self.frames:
            assert self.timeline is not None
            stored = [self.timeline[at] for at in wanted]
            if self.timestamps:
                times = [self.timestamps[index] for index in stored]
                frames = read_container_frames(self.path, channels, times, size)
            else:
                frames = read_gif_frames(self.path, channels, stored, size)
            return frames if levels.bits == 8 else levels.of_bytes(frames)
        files = self.files
        read = [read_pixels(files[at], channels, size, levels)[1] for at in wanted]
        return np.stack(read, axis=1)


def _read_header(file: str) -> Header:
    """Return the header of a video file or a picture."""
    if file.lower().endswith(CONTAINERS):
        return read_container_header(file)
    return read_gif_header(file) if file.lower().endswith(GIF) else read_header(file)


def _natural(name: str) -> tuple[list[int | str], str]:
    """A key that sorts by the numbers in names: words and numbers take turns."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


class VideoFiles:
    """All video files, and all folders that contain pictures, in a folder and those below it.

    ``fps`` is the rate of video files, see :func:`ddpm.data.gifs.timeline`. ``uneven`` is True if
    the frames of a file have different durations.

    Raises ConfigError for whatever keeps them from becoming one set, naming the file.
    """

    limits: tuple[float, float] | None = None

    def __init__(
        self,
        root: str,
        image_size: Size,
        color: str,
        fps: Rate,
        bits: Bits,
        low: float | None,
        high: float | None,
    ) -> None:
        self._root = root
        found: dict[str, list[str]] = {}
        listing = find_files(self._root, (*VIDEO_FILES, *SUFFIXES), "videos")
        self.warnings = listing.warnings
        for file in listing.files:
            folder, name = os.path.split(file)
            if file.lower().endswith(VIDEO_FILES):
                found[file] = []
            else:
                found.setdefault(folder or ".", []).append(name)
        self._names = list(found)
        self._videos = [
            VideoFile(os.path.join(self._root, name), tuple(sorted(frames, key=_natural)))
            for name, frames in found.items()
        ]
        first = _read_header(self._videos[0].files[0])
        grey = first.grey if color == "auto" else color == "grey"
        self.levels = Levels.chosen(bits, low, high, grey, first.bits)
        headers = self._headers(
            any_size=image_size is not None,
            any_color=color != "auto",
            any_bits=bits != "auto" or not grey,
        )
        if self.levels.bits == 16:
            self.limits = self.levels.low, self.levels.high
        self._warn_of_depth(headers)
        if not any(header.bits == 16 for video in headers for header in video):
            refuse_range(low, high)
        self.channels, self.size = 1 if grey else 3, image_size or first[:2]
        self.uneven = any(len(set(header[0].durations_ms)) > 1 for header in headers)
        timed = [at for at, header in enumerate(headers) if header[0].durations_ms]
        problem = "is for GIF, mp4, webm and mov files, and there are none; omit it"
        require(fps is None or bool(timed), "fps", fps, problem)
        for at in timed:
            header = headers[at][0]
            self._videos[at] = self._videos[at].with_timeline(header, fps, self._names[at])
        self.lengths = [video.length() for video in self._videos]

    def _headers(self, *, any_size: bool, any_color: bool, any_bits: bool) -> list[list[Header]]:
        """The headers of each video's files, all of one size and colour where that has to be."""
        files = [file for video in self._videos for file in video.files]
        headers = [_read_header(files[0])] * len(files)
        first = os.path.relpath(files[0], self._root), headers[0]

        def look(index: int) -> None:
            headers[index] = _read_header(files[index])
            other = os.path.relpath(files[index], self._root), headers[index]
            must_agree(first, other, any_size=any_size, any_color=any_color, any_bits=any_bits)

        visit_all(len(files), look, "looking at videos")
        left = iter(headers)
        return [[next(left) for _ in video.files] for video in self._videos]

    def _warn_of_depth(self, headers: list[list[Header]]) -> None:
        """Take what is to be said of the depths of all pictures, and of the range of some."""
        pictures = [header for video in headers for header in video]
        deep = [
            file
            for video, each in zip(self._videos, headers, strict=True)
            for file, header in zip(video.files, each, strict=True)
            if header.bits == 16
        ]
        counts = len(pictures), len(deep), sum(header.deep_colour for header in pictures)
        self.warnings += depth_warnings(self._root, *counts, self.levels)
        step = -(-len(deep) // LOOKED_AT) or 1
        seen = [read_pixels(file, 1, levels=self.levels)[0].seen for file in deep[::step]]
        self.warnings += range_warnings(self._root, seen, self.levels)

    def name(self, video: int) -> str:
        """The path of the GIF or the folder, below the root."""
        return self._names[video]

    def labels(self) -> tuple[list[int], list[str]]:
        """The class of each video, the first folder above it, and the classes' names."""
        labels, names, warnings = folder_classes(self._names, self._root)
        self.warnings += warnings
        return labels, names

    def read(self, video: int, wanted: range) -> npt.NDArray[Any]:
        """As :meth:`Source.read`."""
        return self._videos[video].read(self.channels, wanted, self.size, self.levels)


@dataclass
class VideoArray:
    """An .npy, .npz or .pt file of ``(N, C, F, H, W)`` or ``(N, F, C, H, W)``.

    uint8 stays that, everything else becomes float32. An .npy file stays on the disk.
    """

    path: str
    key: str | None
    order: Order | None
    class_cond: bool
    image_size: Size
    low: float | None
    high: float | None
    limits: tuple[float, float] | None = field(init=False, default=None)
    warnings: tuple[str, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        values, self._labels = load_arrays(self.path, self.key, self.class_cond, mapped=True)
        if values.ndim != 5 or 0 in values.shape:
            problem = f"has the shape {values.shape}; it must be (N, channels, frames, height,"
            raise ConfigError("path", self.path, f"{problem} width), or (N, frames, channels, ...)")
        order = self.order or _order(values.shape, self.path)
        self._values = values if order == "ncfhw" else values.swapaxes(1, 2)
        number, self.channels, length, height, width = self._values.shape
        self.size = self.image_size or (height, width)
        self.lengths = [length] * number
        if values.dtype == np.uint8:
            for end, value in (("low", self.low), ("high", self.high)):
                problem = f"{self.path} holds uint8, which is 0 to 255; omit it, or save float32"
                require(value is None, end, value, problem)
        else:
            measured = measured_range(values, self.path)
            self.limits = declared_range(measured, self.path, self.low, self.high)

    def name(self, video: int) -> str:
        """Its number, and the file."""
        return f"video {video} of {self.path}"

    def labels(self) -> tuple[list[int], list[str]]:
        """The class of each video, from the labels in the file, and the classes' names."""
        numbers, names = array_classes(self._labels, self.path, len(self.lengths), "video")
        return numbers.tolist(), names

    def read(self, video: int, wanted: range) -> npt.NDArray[Any]:
        """As :meth:`Source.read`; resized values stay within the range."""
        frames = self._values[video][:, wanted.start : wanted.stop : wanted.step]
        frames = frames if self.limits is None else frames.astype(np.float32)
        if self.size == frames.shape[2:]:
            return frames
        planes = [fit(Image.fromarray(each), self.size) for row in frames for each in row]
        fitted = np.stack([np.asarray(each) for each in planes])
        fitted = fitted.reshape(*frames.shape[:2], *self.size)
        return fitted if self.limits is None else fitted.clip(*self.limits)


def _order(shape: tuple[int, ...], path: str) -> Order:
    """The order of axes, where the shape tells: one of axes 1, 2 may be channels, one may not."""
    first, second = shape[1] in _CHANNELS, shape[2] in _CHANNELS
    if first == second:
        which = "both axes 1 and 2" if first else "neither of axes 1 and 2"
        problem = f"{path} has the shape {shape}, in which {which} could be 1 to 4 channels; set"
        raise ConfigError("order", None, f"{problem} data.order=ncfhw or data.order=nfchw")
    return "ncfhw" if first else "nfchw"
