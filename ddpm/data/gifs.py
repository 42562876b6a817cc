"""GIF files: their frames, composed into pictures, and files with every frame in them.

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
"""Frames per second of a GIF, see :func:`timeline`."""
_EXTENSION, _CONTROL, _IMAGE, _END = 0x21, 0xF9, 0x2C, 0x3B
_INTERLACED = 0x40
_CLEAR, _RESTORE = 2, 3
_GREYS = bytes(np.arange(256, dtype=np.uint8).repeat(3))
_ROUNDING = 1e-6  # of intervals: a middle that is the end of a frame still shows it
_UNSPECIFIED_MS = 100  # of a frame that does not say, as browsers show it
MAX_FRAMES = 10_000
"""Frames of a GIF once they are repeated for their durations."""
_FOR_EVER = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"


class Frame(NamedTuple):
    """What a GIF says of one of its frames, which may be a part of the picture."""

    left: int
    top: int
    gif: bytes
    """The part alone, as a GIF of its own."""
    grey: bool
    """Whether its palette holds no colours."""
    disposal: int
    """What becomes of the part afterwards: 2 = cleared, 3 = as it was before, else it stays."""
    duration_ms: int
    """How long it is shown."""


def read_layout(data: bytes) -> list[Frame]:
    """The frames of a GIF, no pixels decoded; raises ValueError if it stops before its end."""
    data, shared, at = data + bytes(12), _palette(data, 13, data[10]), 13
    end, at = len(data) - 12, at + len(shared)
    control, frames = b"", []
    while at < end and data[at] != _END:
        if data[at] == _IMAGE:
            left, top, width, height, flags = struct.unpack_from("<HHHHB", data, at + 1)
            palette = _palette(data, at + 10, flags)
            at += 10 + len(palette)
            pixels, at = at, _behind_blocks(data, at + 1)
            palette = palette or shared
            grey = palette[::3] == palette[1::3] == palette[2::3]
            bits = 0x80 | (len(palette) // 6).bit_length() - 1 if palette else 0
            head = b"GIF89a" + struct.pack("<HHBBB", width, height, bits, 0, 0) + palette
            part = struct.pack("<BHHHHB", _IMAGE, 0, 0, width, height, flags & _INTERLACED)
            alone = head + control + part + data[pixels:at] + bytes([_END])
            disposal, duration_ms = _controlled(control)
            frames.append(Frame(left, top, alone, grey, disposal, duration_ms))
            control = b""
        elif data[at] == _EXTENSION:
            start, at = at, _behind_blocks(data, at + 2)
            control = data[start:at] if data[start + 1] == _CONTROL else control
        else:
            at += 1
    if at >= end:
        raise ValueError("it stops before its end")
    return frames


def _controlled(control: bytes) -> tuple[int, int]:
    """Disposal and duration in ms of a graphic control extension; b"" if there is none."""
    if len(control) < 6:
        return 0, _UNSPECIFIED_MS
    return control[3] >> 2 & 7, 10 * int.from_bytes(control[4:6], "little") or _UNSPECIFIED_MS


def timeline(
    durations_ms: Sequence[float], rate: Rate, path: str, limit: int = MAX_FRAMES
) -> list[int]:
    """The index of the frame that is shown, at equal intervals in time.

    ``rate`` is a number of frames per second; None for intervals of the shortest duration, which
    shows every frame at least once; "stored" for each frame once, whatever its duration. Frames
    are looked up in the middle of the intervals. Raises ConfigError (key ``fps``), naming
    ``path``, if they become more than ``limit``.
    """
    if rate == "stored" or not durations_ms:
        return list(range(len(durations_ms)))
    step = min(durations_ms) if rate is None else 1000 / rate
    ends = np.cumsum(durations_ms) / step
    count = max(math.floor(float(ends[-1]) - 0.5 + _ROUNDING) + 1, 1)
    if count > max(limit, len(durations_ms)):
        told = f"{ends[-1] * step / 1000:.4g} s in intervals of {step:.4g} ms"
        problem = f"{path} lasts {told}, which are {count} frames, and the limit is {limit}"
        remedy = "set {fps} to a lower number, or to stored"
        raise ConfigError("fps", rate, problem, remedy)
    middles = np.arange(count) + 0.5 - _ROUNDING
    return np.searchsorted(ends, middles).clip(max=len(ends) - 1).tolist()


def _palette(data: bytes, at: int, flags: int) -> bytes:
    return data[at : at + (6 << (flags & 7))] if flags & 0x80 else b""


def _behind_blocks(data: bytes, at: int) -> int:
    """The place after a chain of blocks, each with its length before it; the last has none."""
    while at < len(data) and data[at]:
        at += data[at] + 1
    return at + 1


def compose(frames: Iterable[Frame], size: tuple[int, int]) -> Iterator[Image.Image]:
    """The pictures (RGBA, ``size`` = width and height) that a person sees, one for each frame.

    Pillow's own reading shows the colour hidden under transparency where a frame is cleared.
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


def durations(count: int, fps: float) -> list[int]:
    """Durations in ms of ``count`` frames at ``fps``, which GIFs store in units of 10 ms.

    Each frame ends at the nearest unit, so that errors do not add up.
    """
    ends = [round(100 * number / fps) for number in range(count + 1)]
    return [10 * max(end - start, 1) for start, end in pairwise(ends)]


def write_frames(
    frames: Sequence[Image.Image], path: Path, duration_ms: int | Sequence[int]
) -> None:
    """Write ``frames`` (all L or all RGB, of one size) as a GIF that repeats for ever.

    ``duration_ms`` is that of each frame, or of all. Frames that equal the one before are written
    too; Pillow's own writer merges them. Grey is exact, and so are colours where a
    frame has at most 256; of more, it shows the nearest of 256. Raises ConfigError (key ``path``).
    """
    width, height = frames[0].size
    grey = frames[0].mode == "L"
    flags = 0xF7 if grey else 0x70  # a palette of 256 for all frames, or one each; 8 bits
    with replacing(path) as aside, open(aside, "wb") as file:
        file.write(b"GIF89a" + struct.pack("<HHBBB", width, height, flags, 0, 0))
        file.write((_GREYS if grey else b"") + _FOR_EVER)
        times = [duration_ms] * len(frames) if isinstance(duration_ms, int) else duration_ms
        for frame, time_ms in zip(frames, times, strict=True):
            indexed = frame if grey else frame.quantize(256, dither=Image.Dither.NONE)
            blocks = getdata(indexed, duration=time_ms, include_color_table=not grey)
            file.write(b"".join(blocks))
        file.write(bytes([_END]))
