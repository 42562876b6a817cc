"""mp4, webm and mov files through PyAV, which is in the extra ``ddpm[video]``.

The format is recognized by content. The first video stream is read; rotation is applied, and
transparency is blended with white.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from ddpm.data.decoding import MAX_PIXELS, Header, image_pixels
from ddpm.errors import ConfigError
from ddpm.files import check_is_file

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import InputContainer

CONTAINERS = (".mp4", ".webm", ".mov")
MAX_CONTAINER_FRAMES = 1_000_000
"""Frames of one file after resampling; these are indices, not pixels."""
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"  # FFmpeg's names of two formats
_BOXES = (
    b"ftyp",
    b"moov",
    b"moof",
    b"mdat",
    b"free",
    b"skip",
    b"wide",
)  # outermost, of mp4 and mov
_JITTER = 0.25  # of an interval: frame times that deviate less are at a constant rate
_DEFAULT_MS = 100  # of a single frame without a duration, as in GIFs
_REMEDY = "remove the file or re-encode it"


def pyav_version() -> str | None:
    """Return the version of PyAV, which contains the decoders; None if it is not installed."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version("av")
    return None


def read_container_header(path: str) -> Header:
    """Return the header of the video at ``path``; only the first frame is decoded.

    The header has the presentation timestamp of each frame, in units of the file's clock, and the
    durations that follow from them.

    Raises:
        ConfigError: (key ``path``) PyAV is not installed; the file is not an mp4, webm or mov
            video, is damaged or too large.
    """
    if _is_truncated(path):
        raise ConfigError("path", path, "is damaged (it ends too early)", _REMEDY)
    with _open_stream(path) as (container, stream):
        packets = (packet for packet in container.demux(stream) if not packet.is_discard)
        lengths = {each.pts: each.duration or 0 for each in packets if each.pts is not None}
        if not lengths:
            raise ConfigError("path", path, "is damaged (it contains no frames)", _REMEDY)
        timestamps = sorted(lengths)
        time_base = Fraction(stream.time_base or 1)
        durations_ms = _durations_ms(timestamps, lengths[timestamps[-1]], time_base)
    with _open_stream(path) as (container, stream):
        frame = next(container.decode(stream))
        height, width = frame.height, frame.width
        if frame.rotation % 180:
            height, width = width, height
        grey = frame.format.name.startswith("gray")
    return Header(height, width, grey, durations_ms, timestamps=tuple(timestamps))


def read_container_frames(
    path: str, channels: int, timestamps: Sequence[int], size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """Return frames of the video at ``path`` as uint8 ``(channels, F, height, width)``.

    Decoding starts at the key frame before the first frame and stops after the last one. Memory is
    used only for the frames that are returned.

    Args:
        path: of the file.
        channels: 1 (grey) or 3 (RGB).
        timestamps: of the frames, from the header; may repeat.
        size: (height, width); frames are scaled to cover it and cropped at the centre.

    Raises:
        ConfigError: (key ``path``) see :func:`read_container_header`.
    """
    required = set(timestamps)
    frames = _decode(path, channels, required, size, seek=True)
    if len(frames) < len(required):  # the index of key frames is wrong, or damage
        frames = _decode(path, channels, required, size, seek=False)
    if len(frames) < len(required):
        problem = f"is damaged ({len(required) - len(frames)} frames cannot be decoded)"
        raise ConfigError("path", path, problem, _REMEDY)
    return np.stack([frames[timestamp] for timestamp in timestamps], axis=1)


def _decode(
    path: str, channels: int, required: set[int], size: tuple[int, int], *, seek: bool
) -> dict[int, npt.NDArray[np.uint8]]:
    """Return the pixels of the required frames by timestamp, as far as they can be decoded."""
    frames: dict[int, npt.NDArray[np.uint8]] = {}
    first, last = min(required), max(required)
    with _open_stream(path) as (container, stream):
        if seek and first > (stream.start_time or 0):
            container.seek(first, stream=stream)
        for frame in container.decode(stream):
            if frame.pts in required and not frame.is_corrupt:
                frames[frame.pts] = image_pixels(_image(frame), channels, size)
            if frame.pts is not None and frame.pts >= last:
                break
    return frames


def _image(frame: VideoFrame) -> Image.Image:
    """Return a frame as an upright RGB or RGBA image."""
    transparent = any(component.is_alpha for component in frame.format.components)
    image = Image.fromarray(frame.to_ndarray(format="rgba" if transparent else "rgb24"))
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _durations_ms(timestamps: Sequence[int], last: int, time_base: Fraction) -> tuple[float, ...]:
    """Return the duration of each frame; all are equal if the frame rate is constant.

    Clocks are coarse (1 ms in webm files), and the timestamps of cameras are noisy. Timestamps near
    those of a constant frame rate are therefore replaced by these.

    Args:
        timestamps: rising.
        last: duration of the last frame; at least the shortest of the others is used.
        time_base: seconds per unit of both.
    """
    tick_ms = 1000 * time_base
    intervals = len(timestamps) - 1
    if not intervals:
        return (float(last * tick_ms) or _DEFAULT_MS,)
    interval = Fraction(timestamps[-1] - timestamps[0], intervals)
    ideal = timestamps[0] + np.arange(len(timestamps)) * float(interval)
    if np.abs(np.asarray(timestamps) - ideal).max() <= _JITTER * interval:
        return (float(interval * tick_ms),) * len(timestamps)
    ticks = np.diff(timestamps).tolist()
    ticks.append(max(last, min(ticks)))  # many encoders write 1 for the last one
    return tuple(float(each * tick_ms) for each in ticks)


@contextmanager
def _open_stream(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the video stream of a file; convert errors within the context to ConfigError."""
    try:
        import av
    except ImportError as error:
        problem = "mp4, webm and mov files need PyAV, which is not installed"
        raise ConfigError("path", path, problem, "run: pip install 'ddpm[video]'") from error
    check_is_file(path)
    # FFmpeg also reads lists of other files and addresses; neither is allowed.
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    try:
        with av.open(f"file:{path}", options=options) as container:
            stream = container.streams.best("video")
            if not isinstance(stream, av.VideoStream):
                raise ConfigError("path", path, "contains no video stream", _REMEDY)
            if stream.width * stream.height > MAX_PIXELS:
                size = f"{stream.width}x{stream.height} pixels per frame"
                limit = f"the limit is {MAX_PIXELS // 1_000_000} million"
                remedy = "remove the file or scale it down"
                raise ConfigError("path", path, f"has {size}, {limit}", remedy)
            yield container, stream
    except ConfigError:
        raise
    except (PermissionError, FileNotFoundError) as error:
        problem = f"cannot be opened ({error.strerror})"
        raise ConfigError("path", path, problem, "make it readable or move it away") from error
    except Exception as error:  # FFmpeg's errors are of many types
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ConfigError("path", path, f"is damaged ({reason})", _REMEDY) from error


def _is_truncated(path: str) -> bool:
    """Return True if a file is shorter than its outermost elements say; FFmpeg ignores that."""
    try:
        total = os.path.getsize(path)
        with open(path, "rb") as file:
            start = file.read(16)
            if start[:4] == b"\x1a\x45\xdf\xa3":
                return _matroska_end(start + file.read(240)) > total
            at = 0
            while at + 8 <= total:
                file.seek(at)
                head = file.read(16)
                length, kind = int.from_bytes(head[:4], "big"), head[4:8]
                length = int.from_bytes(head[8:16], "big") if length == 1 else length
                if kind not in _BOXES or length < 8:  # 0 is until the end of the file
                    return False
                at += length
            return at > total
    except OSError:
        return False  # opening it reports why


def _matroska_end(head: bytes) -> int:
    """Return the end of the segment of a webm file, or 0 if it is unknown."""
    header_size, at = _variable_int(head, 4)
    segment = at + header_size
    if header_size < 0 or head[segment : segment + 4] != b"\x18\x53\x80\x67":
        return 0
    size, at = _variable_int(head, segment + 4)
    return at + size if size >= 0 else 0


def _variable_int(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of variable length in EBML, -1 if it is unknown, and the place after it."""
    if at >= len(data) or not data[at]:
        return -1, at
    length = 9 - data[at].bit_length()
    mask = (1 << 7 * length) - 1
    value = int.from_bytes(data[at : at + length], "big") & mask
    return (-1 if value == mask else value), at + length
