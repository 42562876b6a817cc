"""Codec of videos, and their condition."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ddpm.data.arrays import as_float, load_arrays
from ddpm.data.class_rows import Row, Rows
from ddpm.data.codec import Codec, check_limits, checked_shape
from ddpm.data.decoding import SUFFIXES, read_pixels, suppress_pillow_warnings
from ddpm.data.depth import Levels, file_range_warnings
from ddpm.data.files import find_files
from ddpm.data.gifs import Rate, frame_durations, write_frames
from ddpm.data.pictures import as_image, grid, visible
from ddpm.data.samples import find_samples
from ddpm.data.scaling import ByteScaling, RangeScaling, Scaling
from ddpm.data.video_arrays import check_array_suffix
from ddpm.data.video_sources import VIDEO_FILES, VideoFile
from ddpm.errors import ConfigError, require

_MAX_STRIPS = 8  # videos in a picture
_MAX_STILLS = 16  # frames per video in a picture
_ORDER = "(channels, frames, height, width)"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Entries of a video that are a condition: clean in training and in sampling.

    Attributes:
        cond_frames: number of first frames.
        channels: indices of whole channels, from 0.
    """

    cond_frames: int = 0
    channels: tuple[int, ...] = ()

    def mask(self, shape: tuple[int, ...]) -> torch.Tensor | None:
        """Return the condition mask of videos of a shape.

        Args:
            shape: (channels, frames, height, width).

        Returns:
            Bool ``(C, F, 1, 1)``, true for entries of the condition; None without a condition.

        Raises:
            ConfigError: (key ``condition.cond_frames`` or ``condition.channels``) an invalid frame
                or channel, or nothing is left to generate.
        """
        channels, frames = shape[:2]
        key, count, whole = "condition.cond_frames", self.cond_frames, self.channels
        require(count >= 0, key, count, "must be 0 or more")
        problem = f"must be less than {frames}, the frames of a clip; at least 1 must be generated"
        require(count < frames, key, count, problem)
        key, last = "condition.channels", channels - 1
        valid = all(0 <= channel < channels for channel in whole)
        require(valid, key, whole, f"the data have channels 0 to {last}; use some of these")
        problem = "contains a channel twice; use each once"
        require(len(set(whole)) == len(whole), key, whole, problem)
        problem = f"at least 1 of the channels 0 to {last} must be generated; remove one"
        require(len(whole) < channels, key, whole, problem)
        if not count and not whole:
            return None
        mask = torch.zeros(channels, frames, 1, 1, dtype=torch.bool)
        mask[:, :count] = True
        mask[list(whole)] = True
        return mask


class VideoCodec(Codec):
    """Videos: raw uint8 0..255, or float32 ``low``..``high``, are -1..1 in model space.

    Args:
        shape: (channels, frames, height, width).
        low: raw value of -1; None for uint8.
        high: raw value of 1; None for uint8.
        condition: a :class:`Condition`, or its fields.
        fps: frame rate at which video files are read and GIFs written: frames per second; None for
            the shortest duration in each file; "shortest" for the same if the training data had
            frames of different durations; "stored" for all stored frames once.
        levels: ``low`` and ``high`` are black and white of 16-bit pictures.

    Raises:
        ConfigError: an invalid option.
    """

    kind = "videos"
    unit = "video"
    formats = ("gif", "npz", "npy")
    default_format = "gif"
    extra_formats = ("npz",)
    folders = {"gif": "videos"}
    has_motion = True

    def __init__(
        self,
        shape: Iterable[int],
        low: float | None = None,
        high: float | None = None,
        condition: Condition | Mapping[str, Any] = Condition(),
        fps: float | str | None = "stored",  # of checkpoints from versions without a rate
        levels: bool = False,
    ) -> None:
        valid = fps in (None, "shortest", "stored") or (isinstance(fps, int | float) and fps > 0)
        require(valid, "fps", fps, "must be a positive number, null, shortest or stored")
        require(not levels or low is not None, "levels", levels, "requires low and high")
        self.fps, self.levels = fps, Levels.from_range(16, low, high) if levels else Levels()
        self.shape = checked_shape(shape, "channels frames height width")
        check_limits(low, high)
        self._scaling: ByteScaling | RangeScaling = ByteScaling()
        if low is not None and high is not None:
            self._scaling = RangeScaling(float(low), float(high))
        if not isinstance(condition, Condition):
            fields = dict(condition)
            condition = Condition(**{**fields, "channels": tuple(fields.get("channels", ()))})
        self.condition = condition
        self.condition_mask = condition.mask(self.shape)
        self.condition_channels = condition.channels

    @property
    def scaling(self) -> Scaling:
        """Map of raw values to model space."""
        return self._scaling

    def encode(self, raw: torch.Tensor) -> torch.Tensor:
        """Convert raw ``(B, C, F, H, W)`` to float32: 0..255, or ``low``..``high``, to -1..1."""
        return self._scaling.encode(raw)

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Convert ``(B, C, F, H, W)`` to raw data: uint8, rounded and clamped, or float32."""
        return self._scaling.decode(x)

    def state(self) -> dict[str, Any]:
        """Return the kind, the shape, the range, the condition and the frame rate."""
        scaling = self._scaling
        low = high = None
        if not isinstance(scaling, ByteScaling):
            low, high = scaling.low, scaling.high
        condition = asdict(self.condition) | {"channels": list(self.condition_channels)}
        shape = list(self.shape)
        rate = {} if self.fps == "stored" else {"fps": self.fps}
        limits = {"low": low, "high": high}
        rate |= {"levels": True} if self.levels.bits == 16 else {}
        return {"kind": self.kind, "shape": shape, **limits, "condition": condition, **rate}

    def read(self, path: str) -> torch.Tensor:
        """Read a raw video ``(C, F, H, W)`` from a video file, a folder of frames or an array.

        Pictures are scaled to cover the size and cropped at the centre. Arrays must have the size,
        with channels and frames in either order. Of longer videos the first frames are used.

        Raises:
            ConfigError: (key ``path``) the file cannot be read, or does not match the model.
        """
        items = self._read_items(path, self.shape[1], self.shape[:1])
        if len(items) != 1:
            raise ConfigError("path", str(path), f"contains {len(items)} videos; save a single one")
        return torch.from_numpy(items[0])

    def read_condition(self, path: str) -> torch.Tensor:
        """Read raw items ``(N, C, F, H, W)`` with the condition; other entries are the minimum.

        A video file or a folder of frames is one item; an array file may contain several. A file
        needs only the frames of the condition. For whole channels it needs all frames; without
        frames in the condition, an array may contain only these channels.

        Raises:
            ConfigError: (key ``path``) the file cannot be read, or does not match the model.
        """
        if self.condition_mask is None:
            return super().read_condition(path)
        channels, frames = self.shape[:2]
        count, whole = self.condition.cond_frames, list(self.condition_channels)
        partial = (len(whole),) if not count else ()
        needed = frames if whole else count
        items = torch.from_numpy(self._read_items(path, needed, (channels, *partial)))
        minimum = 0 if isinstance(self._scaling, ByteScaling) else self._scaling.low
        empty = torch.full((len(items), *self.shape), minimum, dtype=items.dtype)
        raw = empty.clone()
        raw[:, whole if items.shape[1] < channels else slice(None), : items.shape[2]] = items
        return torch.where(self.condition_mask, raw, empty)

    def file_warnings(self, path: str) -> tuple[str, ...]:
        """Return warnings about a folder of frames: skipped files, and a small range of values."""
        path = _find_videos(path)
        if not os.path.isdir(path):
            return ()
        listing = find_files(path, SUFFIXES, "frames")
        with suppress_pillow_warnings():
            file = os.path.join(path, listing.files[0])
            header, _ = read_pixels(file, 1, None, self.levels)
        return listing.warnings + file_range_warnings(path, header.value_range, self.levels)

    def picture(
        self, raw: torch.Tensor, *, columns: int | None = None, rows: Rows = None
    ) -> Image.Image:
        """Return one film strip per video: up to 16 frames, evenly spaced, from left to right.

        Args:
            raw: ``(N, C, F, H, W)``, of which the first 8 are shown.
            columns: if set, all videos are shown.
            rows: items per class; the first video of each of the first 8 classes is shown, with the
                class names at the left.
        """
        strips = None
        if rows is not None:
            strips = [row for row in rows if row.name][:_MAX_STRIPS]
            raw = raw[[row.items[0] for row in strips]]
        shown = self._pixels(raw if columns else raw[:_MAX_STRIPS])
        stills = (
            np.linspace(0, self.shape[1] - 1, min(self.shape[1], _MAX_STILLS)).round().astype(int)
        )
        frames = shown[:, :, stills].swapaxes(1, 2)
        length = len(stills)
        if strips is not None:
            starts = range(0, len(strips) * length, length)
            strips = [
                Row(strip.name, tuple(range(start, start + length)))
                for strip, start in zip(strips, starts, strict=True)
            ]
        return grid(frames.reshape(-1, *frames.shape[2:]), length, strips)

    def write_motion_gif(
        self,
        raw: torch.Tensor,
        path: Path,
        *,
        columns: int | None = None,
        rows: Rows = None,
        duration_ms: int = 100,
    ) -> Path:
        """Write a GIF of a grid of moving videos; see :meth:`Codec.write_motion_gif`."""
        frames = self._pixels(raw).transpose(2, 0, 1, 3, 4)
        pictures = [grid(each, columns, rows) for each in frames]
        write_frames(pictures, path, self._durations_ms(duration_ms))
        return path

    def array(self, raw: torch.Tensor) -> npt.NDArray[Any]:
        """Return uint8 or float32 ``(N, C, F, H, W)``."""
        return raw.cpu().numpy()

    def write(
        self,
        raw: torch.Tensor,
        folder: Path,
        *,
        format: str,
        labels: torch.Tensor | None = None,
        first: int = 0,
        classes: Sequence[str] | None = None,
    ) -> list[Path]:
        """Write videos; see :meth:`Codec.write`. ``gif`` writes videos/00000.gif and so on.

        In GIFs, grey uint8 and frames of at most 256 colours are exact. float32 is shown from
        ``low`` to ``high``; numbers of channels other than 1 or 3 are shown side by side.
        """
        if format != "gif":
            return super().write(raw, folder, format=format, labels=labels, first=first)
        paths = []
        names = self._item_names(format, first, len(raw), classes)
        for name, pixels in zip(names, self._pixels(raw), strict=True):
            path = Path(folder, name)
            pictures = [as_image(each) for each in visible(pixels.swapaxes(0, 1))]
            write_frames(pictures, path, self._durations_ms(100))
            paths.append(path)
        return paths

    @property
    def _rate(self) -> Rate:
        """Frame rate of reading, for :func:`ddpm.data.gifs.timeline`."""
        if isinstance(self.fps, int | float):
            return float(self.fps)
        return "stored" if self.fps == "stored" else None

    def _durations_ms(self, default: int) -> int | list[int]:
        """Return the durations of written frames in ms; ``default`` if the rate is unknown."""
        if not isinstance(self.fps, int | float):
            return default
        return frame_durations(self.shape[1], self.fps)

    def _pixels(self, raw: torch.Tensor) -> npt.NDArray[np.uint8]:
        """Return the raw batch as uint8, ``low``..``high`` as 0..255."""
        return ByteScaling().decode(self.encode(raw.detach())).cpu().numpy()

    def _read_items(self, path: str, needed: int, channels: tuple[int, ...]) -> npt.NDArray[Any]:
        """Read raw videos ``(N, C, needed, H, W)`` from a file; C must be in ``channels``."""
        path = _find_videos(path)
        if os.path.isdir(path) or path.lower().endswith(VIDEO_FILES):
            return self._read_pictures(path, needed)
        check_array_suffix(path, "a GIF, mp4, webm or mov file, a folder of frames")
        values, _ = load_arrays(path, None, read_labels=False)
        items = values[None] if values.ndim == 4 else values
        for axes in (items, items.swapaxes(1, 2) if items.ndim == 5 else items):
            fits = axes.ndim == 5 and axes.shape[1] in channels and axes.shape[2] >= needed
            if fits and axes.shape[3:] == self.shape[2:] and len(axes):
                return np.ascontiguousarray(self._convert(axes[:, :, :needed], path))
        problem = f"has the shape {values.shape}, but the model's videos {self.shape} {_ORDER}"
        raise ConfigError("path", path, f"{problem}, of which {needed} frames are required")

    def _read_pictures(self, path: str, needed: int) -> npt.NDArray[Any]:
        channels, _, *size = self.shape
        if channels not in (1, 3):
            problem = f"pictures have 1 or 3 channels, the model's videos {channels}; use an .npz"
            raise ConfigError("path", path, problem)
        with suppress_pillow_warnings():
            video = VideoFile.open(path, self._rate)
            length = video.length()
            problem = f"has {length} frames, but {needed} are required; use a longer video"
            require(length >= needed, "path", path, problem)
            pixels = video.read(channels, range(needed), (size[0], size[1]), self.levels)
        if self.levels.bits == 16:
            return pixels[None]
        return self.decode(ByteScaling().encode(torch.from_numpy(pixels[None]))).numpy()

    def _convert(self, values: npt.NDArray[Any], path: str) -> npt.NDArray[Any]:
        if not isinstance(self._scaling, ByteScaling):
            return as_float(values, path)
        whole = values.dtype.kind in "iu" and values.min() >= 0 and values.max() <= 255
        problem = f"contains {values.dtype}, but the model's videos are uint8"
        problem = f"{problem}; save whole numbers from 0 to 255"
        require(whole, "path", path, problem)
        return values.astype(np.uint8)


def _find_videos(path: str) -> str:
    """Return the path of videos, which for a folder of samples is that of the samples."""
    return find_samples(str(path), ["samples.npz", "samples.npy", "images"])
