"""Sources of videos: GIF, mp4, webm and mov files, and folders of pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ddpm.data import gifs, video_containers
from ddpm.data.decoding import (
    SUFFIXES,
    Header,
    read_gif_frames,
    read_gif_header,
    read_header,
    read_pixels,
)
from ddpm.data.depth import Bits, Levels, reject_range
from ddpm.data.disk_cache import DiskCache, code_version
from ddpm.data.files import find_files, folder_classes
from ddpm.data.gifs import MAX_FRAMES, Rate, timeline
from ddpm.data.header_index import HeaderIndex
from ddpm.data.headers import HeaderTable
from ddpm.data.video_containers import (
    CONTAINERS,
    MAX_CONTAINER_FRAMES,
    pyav_version,
    read_container_frames,
    read_container_header,
)
from ddpm.errors import ConfigError, require

GIF = ".gif"
VIDEO_FILES = (GIF, *CONTAINERS)


class VideoSource(Protocol):
    """Complete videos of one size, of any lengths."""

    lengths: list[int]
    """Number of frames of each video."""
    channels: int
    """Number of channels."""
    size: tuple[int, int]
    """Height and width in the output of :meth:`read`, in pixels."""
    limits: tuple[float, float] | None
    """Range of float32 values; None for uint8."""
    warnings: tuple[str, ...]
    """See :attr:`ddpm.data.Dataset.warnings`."""

    def name(self, video: int) -> str:
        """Return the name of a video, for messages."""
        ...

    def labels(self) -> tuple[list[int], list[str]]:
        """Return the class of each video, and the class names.

        Raises:
            ConfigError: (key ``class_cond``) videos without a class, or invalid labels.
        """
        ...

    def read(self, video: int, frames: range) -> npt.NDArray[Any]:
        """Return frames of a video.

        Args:
            video: index of the video.
            frames: indices of the F frames.

        Returns:
            uint8 or float32 ``(C, F, H, W)``.

        Raises:
            ConfigError: (key ``path``) a file cannot be read.
        """
        ...


@dataclass(frozen=True)
class VideoFile:
    """A video: a GIF, mp4, webm or mov file, or a folder that directly contains pictures.

    Attributes:
        path: path of the file or the folder.
        frames: names of the pictures, ``2.png`` before ``10.png``; empty for a file.
        timeline: index of the stored frame for each frame of a file; None if still unknown.
        timestamps: timestamps of the stored frames of an mp4, webm or mov file.
    """

    path: str
    frames: tuple[str, ...] = ()
    timeline: list[int] | None = None
    timestamps: tuple[int, ...] = ()

    @classmethod
    def open(cls, path: str, fps: Rate) -> VideoFile:
        """Return the video at ``path``.

        Args:
            path: path of a video file or a folder.
            fps: frame rate of a video file; see :func:`ddpm.data.gifs.timeline`.

        Raises:
            ConfigError: (key ``path``) the path is not a readable video.
        """
        if not os.path.isdir(path):
            header = _read_header(path)
            try:
                return cls(path).with_timeline(header, fps, path)
            except ConfigError as error:
                raise ConfigError("path", path, error.problem, "use a shorter one") from error
        names = [
            name for name in find_files(path, SUFFIXES, "frames").files if not os.path.dirname(name)
        ]
        if not names:
            problem = "its pictures are in subfolders; use the folder of a single video"
            raise ConfigError("path", path, problem)
        return cls(path, tuple(sorted(names, key=_natural_key)))

    def with_timeline(self, header: Header, fps: Rate, name: str) -> VideoFile:
        """Return a copy of a video file with its timeline.

        Args:
            header: header of the file.
            fps: frame rate; see :func:`ddpm.data.gifs.timeline`.
            name: name of the file, for messages.

        Raises:
            ConfigError: (key ``fps``) the timeline has too many frames.
        """
        limit = MAX_CONTAINER_FRAMES if header.timestamps else MAX_FRAMES
        indices = timeline(header.durations_ms, fps, name, limit)
        return replace(self, timeline=indices, timestamps=header.timestamps)

    @property
    def files(self) -> list[str]:
        """Paths of the file, or of the pictures."""
        return [os.path.join(self.path, name) for name in self.frames] or [self.path]

    def length(self) -> int:
        """Return the number of frames."""
        return len(self.frames or self.timeline or ())

    def read(
        self, channels: int, indices: Sequence[int], size: tuple[int, int], levels: Levels
    ) -> npt.NDArray[Any]:
        """Return frames ``(channels, F, *size)``; see :func:`ddpm.data.decoding.read_pixels`.

        Args:
            channels: 1 (grey) or 3 (RGB).
            indices: indices of the F frames.
            size: (height, width) to cover and crop to.
            levels: range of 16-bit grey.
        """
        if not self.frames:
            assert self.timeline is not None
            stored = [self.timeline[at] for at in indices]
            if self.timestamps:
                times = [self.timestamps[index] for index in stored]
                frames = read_container_frames(self.path, channels, times, size)
            else:
                frames = read_gif_frames(self.path, channels, stored, size)
            return frames if levels.bits == 8 else levels.bytes_to_levels(frames)
        files = self.files
        pixels = [read_pixels(files[at], channels, size, levels)[1] for at in indices]
        return np.stack(pixels, axis=1)


def _read_header(file: str) -> Header:
    """Return the header of a video file or a picture."""
    if file.lower().endswith(CONTAINERS):
        return read_container_header(file)
    return read_gif_header(file) if file.lower().endswith(GIF) else read_header(file)


def _natural_key(name: str) -> tuple[list[int | str], str]:
    """Return a key that sorts names by the numbers in them: words and numbers alternate."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


@dataclass(frozen=True)
class VideoListing:
    """Video files, and folders that directly contain pictures, in a folder at any depth.

    Attributes:
        root: path of the folder.
        videos: names of the pictures of each video in their natural order, empty for a file, by the
            path of the video relative to ``root``.
        warnings: see :attr:`ddpm.data.Dataset.warnings`.
    """

    root: str
    videos: dict[str, tuple[str, ...]]
    warnings: tuple[str, ...]

    @classmethod
    def scan(cls, root: str) -> VideoListing:
        """Return the videos in a folder; raise ConfigError (key ``path``) if none are found."""
        videos: dict[str, list[str]] = {}
        listing = find_files(root, (*VIDEO_FILES, *SUFFIXES), "videos")
        for file in listing.files:
            folder, name = os.path.split(file)
            if file.lower().endswith(VIDEO_FILES):
                videos[file] = []
            else:
                videos.setdefault(folder or ".", []).append(name)
        ordered = {name: tuple(sorted(each, key=_natural_key)) for name, each in videos.items()}
        return cls(root, ordered, listing.warnings)

    @property
    def files(self) -> list[str]:
        """Paths of all files, relative to the folder; those of a video are consecutive."""
        return [
            frame if name == "." else os.path.join(name, frame) if frame else name
            for name, frames in self.videos.items()
            for frame in frames or ("",)
        ]


class VideoFiles:
    """Videos in a folder.

    Args:
        listing: the videos.
        cache: disk cache, which has the headers of files that have not changed; None = without.
        image_size: (height, width) to cover and crop to; None = the size that all share.
        color: "rgb", "grey", or "auto" for that which all share.
        fps: frame rate of video files; see :func:`ddpm.data.gifs.timeline`.
        bits: 8, 16, or "auto" for those which all share.
        low: black of 16-bit pictures; None = 0.
        high: white of 16-bit pictures; None = 65535.

    Raises:
        ConfigError: a file is unreadable, or differs from others in a property that must be shared.
    """

    limits: tuple[float, float] | None = None
    """See :attr:`VideoSource.limits`."""
    has_varying_durations: bool
    """Whether some file has frames of different durations."""

    def __init__(
        self,
        listing: VideoListing,
        cache: DiskCache | None,
        image_size: tuple[int, int] | None,
        color: str,
        fps: Rate,
        bits: Bits,
        low: float | None,
        high: float | None,
    ) -> None:
        self._root, self.warnings, files = listing.root, listing.warnings, listing.files
        self._names = list(listing.videos)
        self._videos = [
            VideoFile(os.path.join(self._root, name), frames)
            for name, frames in listing.videos.items()
        ]
        code = code_version(gifs, video_containers)
        header_file = None if cache is None else cache.open_headers(code, pyav_version())
        headers = HeaderIndex(self._root, files, _read_header, header_file)
        first = headers.read(0)
        grey = first.grey if color == "auto" else color == "grey"
        self.levels = Levels.choose(bits, low, high, grey, first.bits)
        table = HeaderTable(
            files,
            first,
            any_size=image_size is not None,
            any_color=color != "auto",
            any_bits=bits != "auto" or not grey,
        )
        table.allocate()
        headers.read_all(table, "reading headers")
        if self.levels.bits == 16:
            self.limits = self.levels.low, self.levels.high
        headers.measure_ranges(
            table,
            self.levels,
            lambda at: read_pixels(os.path.join(self._root, files[at]), 1, levels=self.levels)[0],
        )
        self.warnings += table.warnings(self._root, self.levels)
        if not table.deep():
            reject_range(low, high)
        self.channels, self.size = 1 if grey else 3, image_size or first[:2]
        self._set_timelines(headers, fps)
        self.lengths = [video.length() for video in self._videos]

    def _set_timelines(self, headers: HeaderIndex, fps: Rate) -> None:
        """Set the timelines of the video files."""
        self.has_varying_durations, position, timed = False, 0, False
        for at, video in enumerate(self._videos):
            if not video.frames:
                header = headers.read(position)
                if header.durations_ms:
                    timed = True
                    self.has_varying_durations |= len(set(header.durations_ms)) > 1
                    self._videos[at] = video.with_timeline(header, fps, self._names[at])
            position += len(video.frames) or 1
        problem = "only applies to GIF, mp4, webm and mov files, but none were found; omit it"
        require(fps is None or timed, "fps", fps, problem)

    def name(self, video: int) -> str:
        """Return the path of the file or the folder, relative to the root."""
        return self._names[video]

    def labels(self) -> tuple[list[int], list[str]]:
        """Return the class of each video, the first folder of its path, and the class names."""
        labels, names, warnings = folder_classes(self._names, self._root)
        self.warnings += warnings
        return labels, names

    def read(self, video: int, frames: range) -> npt.NDArray[Any]:
        """Return frames of a video; see :meth:`VideoSource.read`."""
        return self._videos[video].read(self.channels, frames, self.size, self.levels)
