"""Reading of GIF files, with frames composed to pictures, and writing of all frames.

Format: https://www.w3.org/Graphics/GIF/spec-gif89a.txt
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from PIL.GifImagePlugin import getdata

from ddpm.errors import ConfigError
from ddpm.files import replacing

Rate = float | Literal["stored"] | None
"""Frames per second of a GIF; see :func:`timeline`."""
_EXTENSION, _CONTROL, _IMAGE, _END = 0x21, 0xF9, 0x2C, 0x3B
_INTERLACED = 0x40
_CLEAR, _RESTORE = 2, 3
_GREYS = bytes(np.arange(256, dtype=np.uint8).repeat(3))
_ROUNDING = 1e-6  # of an interval: a midpoint at the end of a frame belongs to that frame
_UNSPECIFIED_MS = 100  # duration of a frame without one, as in browsers
MAX_FRAMES = 10_000
"""Maximum number of frames of a GIF, with repetition for their durations."""
_LOOP_FOREVER = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"


class Frame(NamedTuple):
    """A frame as stored in a GIF; it may cover only a part of the picture."""

    left: int
    """Left edge of the part, in pixels."""
    top: int
    """Top edge of the part, in pixels."""
    gif: bytes
    """The part as a separate GIF file."""
    grey: bool
    """Whether its palette contains only grey."""
    disposal: int
    """Disposal of the part after display: 2 = clear, 3 = restore the previous, otherwise keep."""
    duration_ms: int
    """Duration in ms."""


def read_layout(data: bytes) -> list[Frame]:
    """Return the frames of a GIF without decoding pixels; raise ValueError if it is truncated."""
    data, shared, at = data + bytes(12), _palette(data, 13, data[10]), 13
    end, at = len(data) - 12, at + len(shared)
    control, frames = b"", []
    while at < end and data[at] != _END:
        if data[at] == _IMAGE:
            left, top, width, height, flags = struct.unpack_from("<HHHHB", data, at + 1)
            palette = _palette(data, at + 10, flags)
            at += 10 + len(palette)
            pixels, at = at, _skip_blocks(data, at + 1)
            palette = palette or shared
            grey = palette[::3] == palette[1::3] == palette[2::3]
            bits = 0x80 | (len(palette) // 6).bit_length() - 1 if palette else 0
            head = b"GIF89a" + struct.pack("<HHBBB", width, height, bits, 0, 0) + palette
            part = struct.pack("<BHHHHB", _IMAGE, 0, 0, width, height, flags & _INTERLACED)
            alone = head + control + part + data[pixels:at] + bytes([_END])
            disposal, duration_ms = _parse_control(control)
            frames.append(Frame(left, top, alone, grey, disposal, duration_ms))
            control = b""
        elif data[at] == _EXTENSION:
            start, at = at, _skip_blocks(data, at + 2)
            control = data[start:at] if data[start + 1] == _CONTROL else control
        else:
            at += 1
    if at >= end:
        raise ValueError("the file is truncated")
    return frames


def _parse_control(control: bytes) -> tuple[int, int]:
    """Return disposal and duration in ms of a graphic control extension, which may be b""."""
    if len(control) < 6:
        return 0, _UNSPECIFIED_MS
    return control[3] >> 2 & 7, 10 * int.from_bytes(control[4:6], "little") or _UNSPECIFIED_MS


def timeline(
    durations_ms: Sequence[float], rate: Rate, path: str, limit: int = MAX_FRAMES
) -> list[int]:
    """Return the index of the stored frame that is visible at the middle of each time interval.

    Args:
        durations_ms: duration of each stored frame, in ms.
        rate: intervals per second; None = intervals of the shortest duration, so that all frames
            occur; "stored" = all frames once, independent of their durations.
        path: path of the file, for messages.
        limit: maximum number of intervals.

    Raises:
        ConfigError: (key ``fps``) more than ``limit`` intervals.
    """
    if rate == "stored" or not durations_ms:
        return list(range(len(durations_ms)))
    step = min(durations_ms) if rate is None else 1000 / rate
    ends = np.cumsum(durations_ms) / step
    count = max(math.floor(float(ends[-1]) - 0.5 + _ROUNDING) + 1, 1)
    if count > max(limit, len(durations_ms)):
        length = f"{ends[-1] * step / 1000:.4g} s in intervals of {step:.4g} ms"
        problem = f"{path} has {count} frames ({length}), and the limit is {limit}"
        remedy = "set {fps} to a lower number, or to stored"
        raise ConfigError("fps", rate, problem, remedy)
    middles = np.arange(count) + 0.5 - _ROUNDING
    return np.searchsorted(ends, middles).clip(max=len(ends) - 1).tolist()


def _palette(data: bytes, at: int, flags: int) -> bytes:
    return data[at : at + (6 << (flags & 7))] if flags & 0x80 else b""


def _skip_blocks(data: bytes, at: int) -> int:
    """Return the position after a chain of length-prefixed blocks, of which the last is empty."""
    while at < len(data) and data[at]:
        at += data[at] + 1
    return at + 1


def compose(frames: Iterable[Frame], size: tuple[int, int]) -> Iterator[Image.Image]:
    """Yield one picture (RGBA) per frame, as a viewer displays it; ``size`` is (width, height).

    Unlike here, Pillow shows the colour of transparent pixels after a frame is cleared.
    """
    canvas = Image.new("RGBA", size)
    for frame in frames:
        with Image.open(io.BytesIO(frame.gif), formats=("GIF",)) as opened:
            part = opened.convert("RGBA")
        before = canvas.copy() if frame.disposal == _RESTORE else canvas
        corner = frame.left, frame.top
        canvas.paste(part, corner, part)
        yield canvas.copy()
        canvas = before
        if frame.disposal == _CLEAR:
            canvas.paste((0, 0, 0, 0), (*corner, frame.left + part.width, frame.top + part.height))


def frame_durations(count: int, fps: float) -> list[int]:
    """Return the durations in ms of ``count`` frames at ``fps`` frames per second.

    GIFs store multiples of 10 ms. The end of each frame is rounded, so that errors do not
    accumulate.
    """
    ends = [round(100 * number / fps) for number in range(count + 1)]
    return [10 * max(end - start, 1) for start, end in pairwise(ends)]


def write_frames(
    frames: Sequence[Image.Image], path: Path, duration_ms: int | Sequence[int]
) -> None:
    """Write a GIF that repeats forever.

    Unlike with Pillow's writer, equal consecutive frames are not merged. Grey is exact, and so are
    frames of at most 256 colours; others are quantised to 256 colours.

    Args:
        frames: pictures of one size, all L or all RGB.
        path: path of the file.
        duration_ms: duration of each frame, or of all frames, in ms.

    Raises:
        ConfigError: (key ``path``) the file cannot be written.
    """
    width, height = frames[0].size
    grey = frames[0].mode == "L"
    flags = (
        0xF7 if grey else 0x70
    )  # a global palette of 256 greys, or one palette per frame; 8 bits
    with replacing(path) as aside, open(aside, "wb") as file:
        file.write(b"GIF89a" + struct.pack("<HHBBB", width, height, flags, 0, 0))
        file.write((_GREYS if grey else b"") + _LOOP_FOREVER)
        times = [duration_ms] * len(frames) if isinstance(duration_ms, int) else duration_ms
        for frame, time_ms in zip(frames, times, strict=True):
            indexed = frame if grey else frame.quantize(256, dither=Image.Dither.NONE)
            blocks = getdata(indexed, duration=time_ms, include_color_table=not grey)
            file.write(b"".join(blocks))
        file.write(bytes([_END]))
