"""Videos to model space and back, into files, and what of them is given as a condition."""

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
from ddpm.data.codec import Codec, checked_shape
from ddpm.data.decoding import SUFFIXES, quiet_about_size, read_pixels
from ddpm.data.depth import Levels, of_one_file
from ddpm.data.files import find_files
from ddpm.data.gifs import Rate, durations, write_frames
from ddpm.data.pictures import as_image, grid, visible
from ddpm.data.samples import samples_at
from ddpm.data.scaling import Bytes, Range
from ddpm.data.video_sources import VIDEO_FILES, VideoFile, must_be_array
from ddpm.errors import ConfigError, require

_STRIPS = 8  # videos in a picture
_STILLS = 16  # frames of each, at most
_ORDER = "(channels, frames, height, width)"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What of a video is given clean, in training and in sampling.

    Attributes:
        cond_frames: the first so many frames.
        channels: whole channels, counted from 0.
    """

    cond_frames: int = 0
    channels: tuple[int, ...] = ()

    def mask(self, shape: tuple[int, ...]) -> torch.Tensor | None:
        """True where an entry of ``shape`` (C, F, H, W) is given: bool (C, F, 1, 1), or None.

        Raises ConfigError (key ``condition.cond_frames`` or ``condition.channels``).
        """
        channels, frames = shape[:2]
        key, count, named = "condition.cond_frames", self.cond_frames, self.channels
        require(count >= 0, key, count, "must be 0 or more")
        problem = f"a clip has {frames} frames, and at least 1 is to be drawn; lower it"
        require(count < frames, key, count, problem)
        key, last = "condition.channels", channels - 1
        within = all(0 <= channel < channels for channel in named)
        require(within, key, named, f"the data have the channels 0 to {last}; name some of those")
        problem = "names a channel twice; name each once"
        require(len(set(named)) == len(named), key, named, problem)
        problem = f"of the channels 0 to {last} at least 1 is to be drawn; leave it out"
        require(len(named) < channels, key, named, problem)
        if not count and not named:
            return None
        mask = torch.zeros(channels, frames, 1, 1, dtype=torch.bool)
        mask[:, :count] = True
        mask[list(named)] = True
        return mask


class VideoCodec(Codec):
    """Videos: raw uint8 0..255, or float32 from ``low`` to ``high``, is -1..1 in model space.

    ``shape`` is (channels, frames, height, width). Without ``low`` and ``high`` raw data are uint8.
    ``condition`` is a :class:`Condition` or its fields. ``fps`` is the rate at which GIFs are read
    and written: a number of frames per second, None for the shortest duration in each file,
    "shortest" for the same of a model that was trained on frames of different durations, "stored"
    for each stored frame once. ``levels`` tells that ``low`` and ``high`` are black and white in
    16-bit pictures.
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
        fps: float | str | None = "stored",  # of checkpoints of versions that knew no rate
        levels: bool = False,
    ) -> None:
        known = fps in (None, "shortest", "stored") or (isinstance(fps, int | float) and fps > 0)
        require(known, "fps", fps, "must be a positive number, null, shortest or stored")
        require(not levels or low is not None, "levels", levels, "needs low and high")
        self.fps, self.levels = fps, Levels.declared(16, low, high) if levels else Levels()
        self.shape = checked_shape(shape, "channels frames height width")
        require((low is None) == (high is None), "low", low, f"and high={high} go together")
        self._scaling = Bytes() if low is None or high is None else Range(float(low), float(high))
        if not isinstance(condition, Condition):
            fields = dict(condition)
            condition = Condition(**{**fields, "channels": tuple(fields.get("channels", ()))})
        self.condition = condition
        self.condition_mask, self.condition_channels = (
            condition.mask(self.shape),
            condition.channels,
        )

    def encode(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw ``(B, C, F, H, W)`` to float32: 0..255, or ``low`` to ``high``, to -1..1."""
        return self._scaling.encode(raw)

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Model space to raw: uint8, rounded and clamped, or float32, as it comes."""
        return self._scaling.decode(x)

    def state(self) -> dict[str, Any]:
        """Kind, shape, range and condition."""
        scaling = self._scaling
        low, high = (None, None) if isinstance(scaling, Bytes) else (scaling.low, scaling.high)
        condition = asdict(self.condition) | {"channels": list(self.condition_channels)}
        shape = list(self.shape)
        rate = {} if self.fps == "stored" else {"fps": self.fps}
        limits = {"low": low, "high": high}
        rate |= {"levels": True} if self.levels.bits == 16 else {}
        return {"kind": self.kind, "shape": shape, **limits, "condition": condition, **rate}

    def read(self, path: str) -> torch.Tensor:
        """The first frames of a GIF, a folder of frames, or an array file of one video.

        Pictures are scaled to cover the size and cut at the centre; arrays must have it, in either
        order of channels and frames. Of longer videos the first frames are taken.
        """
        items = self._items(path, self.shape[1], self.shape[:1])
        if len(items) != 1:
            raise ConfigError("path", str(path), f"holds {len(items)} videos; save one of them")
        return torch.from_numpy(items[0])

    def read_condition(self, path: str) -> torch.Tensor:
        """Raw items ``(N, C, F, H, W)``: what is given is read, everything else is the least value.

        A GIF or a folder of frames is one item, an array file may hold many. Where frames are
        given, they are enough; where channels are, all frames are needed, and, if no frames are
        given besides, an array may hold the given channels alone.
        """
        if self.condition_mask is None:
            return super().read_condition(path)
        channels, frames = self.shape[:2]
        count, named = self.condition.cond_frames, list(self.condition_channels)
        alone = (len(named),) if not count else ()
        items = torch.from_numpy(self._items(path, frames if named else count, (channels, *alone)))
        least = 0 if isinstance(self._scaling, Bytes) else self._scaling.low
        raw = torch.full((len(items), *self.shape), least, dtype=items.dtype)
        read = raw.clone()
        read[:, named if items.shape[1] < channels else slice(None), : items.shape[2]] = items
        return torch.where(self.condition_mask, read, raw)

    def file_warnings(self, path: str) -> tuple[str, ...]:
        """Of a folder of frames: skipped files, and 16-bit values in a small part of the range."""
        path = _place(path)
        if not os.path.isdir(path):
            return ()
        listing = find_files(path, SUFFIXES, "frames")
        with quiet_about_size():
            seen = read_pixels(os.path.join(path, listing.files[0]), 1, None, self.levels)[0].seen
        return listing.warnings + of_one_file(path, seen, self.levels)

    def picture(
        self, raw: torch.Tensor, *, columns: int | None = None, rows: Rows = None
    ) -> Image.Image:
        """A film strip for each video: up to 16 of its frames, evenly spaced, from left to right.

        Only the first 8 videos are shown, but all where ``columns`` says that they belong together.
        With ``rows`` they are the first videos of the first 8 classes, with the names at the left.
        """
        strips = None
        if rows is not None:
            strips = [row for row in rows if row.name][:_STRIPS]
            raw = raw[[row.items[0] for row in strips]]
        shown = self._pixels(raw if columns else raw[:_STRIPS])
        stills = np.linspace(0, self.shape[1] - 1, min(self.shape[1], _STILLS)).round().astype(int)
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
        """Write a grid of the videos ``(N, C, F, H, W)``, moving together, as one GIF."""
        frames = self._pixels(raw).transpose(2, 0, 1, 3, 4)
        pictures = [grid(each, columns, rows) for each in frames]
        write_frames(pictures, path, self._durations_ms(duration_ms))
        return path

    def array(self, raw: torch.Tensor) -> npt.NDArray[Any]:
        """As it is: uint8 or float32 ``(N, C, F, H, W)``."""
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
        """As :meth:`Codec.write`; ``gif`` writes videos/00000.gif and so on, from ``first``.

        Grey uint8 is exact in it, and so are frames of at most 256 colours. Floats are shown from
        ``low`` to ``high``; channels that are neither 1 nor 3 stand side by side.
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
        """The rate at which GIFs are read, for :func:`ddpm.data.gifs.timeline`."""
        if isinstance(self.fps, int | float):
            return float(self.fps)
        return "stored" if self.fps == "stored" else None

    def _durations_ms(self, default: int) -> int | list[int]:
        """The durations of frames that are written; ``default`` if the rate is not known."""
        if not isinstance(self.fps, int | float):
            return default
        return durations(self.shape[1], self.fps)

    def _pixels(self, raw: torch.Tensor) -> npt.NDArray[np.uint8]:
        """The raw batch as uint8, ``low`` to ``high`` as 0..255."""
        return Bytes().decode(self.encode(raw.detach())).cpu().numpy()

    def _items(self, path: str, needed: int, channels: tuple[int, ...]) -> npt.NDArray[Any]:
        """The raw videos ``(N, C, needed, H, W)`` in a file, C one of ``channels``."""
        path = _place(path)
        if os.path.isdir(path) or path.lower().endswith(VIDEO_FILES):
            return self._from_pictures(path, needed)
        must_be_array(path, "a GIF, mp4, webm or mov file, a folder of frames")
        values, _ = load_arrays(path, None, want_labels=False)
        items = values[None] if values.ndim == 4 else values
        for axes in (items, items.swapaxes(1, 2) if items.ndim == 5 else items):
            fits = axes.ndim == 5 and axes.shape[1] in channels and axes.shape[2] >= needed
            if fits and axes.shape[3:] == self.shape[2:] and len(axes):
                return np.ascontiguousarray(self._typed(axes[:, :, :needed], path))
        problem = f"has the shape {values.shape}, but the model's videos {self.shape} {_ORDER}"
        raise ConfigError("path", path, f"{problem}, of which {needed} frames are needed")

    def _from_pictures(self, path: str, needed: int) -> npt.NDArray[Any]:
        channels, _, *size = self.shape
        if channels not in (1, 3):
            problem = f"pictures hold 1 or 3 channels, the model's videos {channels}; give an .npz"
            raise ConfigError("path", path, problem)
        with quiet_about_size():
            video = VideoFile.at(path, self._rate)
            length = video.length()
            problem = f"has {length} frames, but {needed} are needed; give a longer one"
            require(length >= needed, "path", path, problem)
            pixels = video.read(channels, range(needed), (size[0], size[1]), self.levels)
        if self.levels.bits == 16:
            return pixels[None]
        return self.decode(Bytes().encode(torch.from_numpy(pixels[None]))).numpy()

    def _typed(self, values: npt.NDArray[Any], path: str) -> npt.NDArray[Any]:
        if not isinstance(self._scaling, Bytes):
            return as_float(values, path)
        whole = values.dtype.kind in "iu" and values.min() >= 0 and values.max() <= 255
        problem = (
            f"holds {values.dtype}, the model's videos are uint8; save whole numbers, 0 to 255"
        )
        require(whole, "path", path, problem)
        return values.astype(np.uint8)


def _place(path: str) -> str:
    """Return the path of videos; for a folder of samples, that of the samples."""
    return samples_at(str(path), ["samples.npz", "samples.npy", "images"])
