"""Image files to arrays: the one place that opens a picture.

JPEG, PNG, WebP, BMP and TIFF, whatever the suffix says; of an animation, the first frame, of a
document, the first page. The picture is turned as its EXIF orientation says (where this stands
before the pixels; broken EXIF is ignored). Transparency is laid on white, so that the colours
hidden under it do not show. CMYK and palettes are converted, 16-bit grey becomes what
:class:`ddpm.data.depth.Levels` say, 16 bits per colour become 8. Colour profiles are ignored.

Of GIFs all frames can be read, composed one after the other as the file says (partial frames,
disposal, palettes of their own); for their durations see :func:`ddpm.data.gifs.timeline`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ddpm.data.depth import WHITE, Levels
from ddpm.data.gifs import compose, read_layout
from ddpm.errors import ConfigError

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 64_000_000
_PICTURES = (("JPEG", "PNG", "WEBP", "BMP", "TIFF"), "JPEG, PNG, WebP, BMP or TIFF picture")
_GIFS = (("GIF",), "GIF")
_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
_BYTES = Levels()
_WHITE_IS_ZERO = (262, 0)  # a tag of TIFF


class Header(NamedTuple):
    """What a file says of its picture before any pixel is decoded."""

    height: int
    width: int
    grey: bool
    """Whether it is stored without colour; WebP always stores colour."""
    durations_ms: tuple[float, ...] = ()
    """Duration of each frame of a GIF, mp4, webm or mov file."""
    bits: int = 8
    """16 for 16-bit grey."""
    deep_colour: bool = False
    """Whether there are 16 bits per colour, of which 8 are read."""
    timestamps: tuple[int, ...] = ()
    """Presentation timestamps of the frames of an mp4, webm or mov file."""
    seen: tuple[int, int] | None = None
    """The least and greatest value of 16-bit grey that was decoded."""


def must_agree(
    first: tuple[str, Header],
    other: tuple[str, Header],
    *,
    any_size: bool,
    any_color: bool,
    any_bits: bool,
) -> None:
    """Raise ConfigError if two files, given by name and header, do not belong into one set.

    ``any_size``, ``any_color`` and ``any_bits``: they may differ in that, because the user said
    what to take.
    """
    (name, one), (other_name, another) = first, other
    if not any_size and one[:2] != another[:2]:
        side = min(*one[:2], *another[:2])
        sizes = f"{name} is {_size(one)}, {other_name} is {_size(another)}"
        problem = f"the images differ in size: {sizes}"
        remedy = f"resize them to one size, such as {{image_size}}={side}"
        raise ConfigError("image_size", None, problem, remedy)
    if not any_color and one.grey != another.grey:
        grey, rgb = (name, other_name) if one.grey else (other_name, name)
        problem = f"{grey} is grey but {rgb} is in colour"
        raise ConfigError("color", "auto", problem, "set {color}=rgb or {color}=grey")
    if not any_bits and one.bits != another.bits:
        problem = f"{name} has {one.bits} bits, {other_name} has {another.bits}"
        raise ConfigError("bits", "auto", problem, "set {bits}=16 or {bits}=8")


def _size(header: Header) -> str:
    return f"{header.width} wide and {header.height} high"


def read_header(path: str) -> Header:
    """Size, as it will be shown, and colour of the picture at ``path``; decodes no pixels."""
    with _opened(path) as image:
        return _header(image)


def read_pixels(
    path: str, channels: int, size: tuple[int, int] | None = None, levels: Levels = _BYTES
) -> tuple[Header, Pixels]:
    """The picture at ``path`` as ``(channels, height, width)``, fitted to ``size``.

    ``channels`` is 1 (grey) or 3 (RGB, always of 8-bit ``levels``); ``size`` is (height, width), or
    None for the picture's. Raises ConfigError, naming the file, for one that is damaged, too large,
    beyond the levels or not a picture.
    """
    with _opened(path) as image:
        header = _header(image)
        turn = _TURNS.get(_orientation(image))
        if header.bits == 16:
            values, clear = _deep(image)
            plain, seen = levels.of_deep(values, clear, path)
            plain = plain.convert("RGB") if channels == 3 else plain
            header = header._replace(seen=seen)
        else:
            plain = levels.of_plain(_plain(image, channels))
        if turn is not None:
            plain = plain.transpose(turn)
        size = size or (header.height, header.width)
        pixels = (
            levels.fitted(fit(plain, size))[None] if levels.bits == 16 else _pixels(plain, size)
        )
    return header, pixels


def read_gif_header(path: str) -> Header:
    """Size, colour and durations of the frames of the GIF at ``path``; decodes no pixels.

    Raises ConfigError, naming the file, also for one that does not reach its end.
    """
    with _opened(path, _GIFS) as image:
        frames = read_layout(Path(path).read_bytes())
        grey = all(frame.grey for frame in frames)
        durations_ms = tuple(frame.duration_ms for frame in frames)
        return Header(image.height, image.width, grey, durations_ms)


def read_gif_frames(
    path: str, channels: int, wanted: Sequence[int], size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """The stored frames ``wanted`` of the GIF at ``path``: uint8 ``(channels, F, height, width)``.

    A frame may be wanted several times. They are composed, converted and fitted each like a picture
    of :func:`read_pixels`.
    """
    with _opened(path, _GIFS) as image:
        frames = read_layout(Path(path).read_bytes())[: max(wanted) + 1]
        seen = enumerate(compose(frames, image.size))
        needed = set(wanted)
        read = {at: _pixels(_plain(each, channels), size) for at, each in seen if at in needed}
        return np.stack([read[index] for index in wanted], axis=1)


def image_pixels(image: Image.Image, channels: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return an 8-bit image as ``(channels, height, width)``, fitted to ``size``.

    Transparency is blended with white; ``channels`` is 1 (grey) or 3 (RGB).
    """
    return _pixels(_plain(image, channels), size)


def _plain(image: Image.Image, channels: int) -> Image.Image:
    return _without_alpha(image).convert("L" if channels == 1 else "RGB")


def _pixels(plain: Image.Image, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """An image (L or RGB), fitted to ``size``, as ``(channels, height, width)``."""
    pixels = np.asarray(fit(plain, size))
    return pixels[None] if plain.mode == "L" else pixels.transpose(2, 0, 1)


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale ``image`` (L, RGB or F) to cover ``size`` (height, width), and cut to it at the centre.

    Both directions are scaled alike; bicubic, antialiased.
    """
    height, width = size
    if image.size == (width, height):
        return image
    scale = min(image.width / width, image.height / height)
    left = (image.width - scale * width) / 2
    top = (image.height - scale * height) / 2
    # rounding must not push the box over the edge
    box = (
        max(left, 0.0),
        max(top, 0.0),
        min(left + scale * width, float(image.width)),
        min(top + scale * height, float(image.height)),
    )
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


@contextmanager
def quiet_about_size() -> Iterator[None]:
    """Keep Pillow's warnings to itself.

    Large pictures are refused here anyway, and odd metadata, as TIFF files have, do not matter.

    Changes a process-wide filter, so it is for the main thread, around the threads that decode.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@contextmanager
def _opened(path: str, kind: tuple[tuple[str, ...], str] = _PICTURES) -> Iterator[Image.Image]:
    """An image file, open; whatever goes wrong with it becomes a ConfigError that names it."""
    formats, called = kind
    remedy = "remove the file or re-encode it"
    try:
        if not os.path.isfile(path):  # opening a pipe would wait for ever
            raise ConfigError("path", path, "no such file")
        with Image.open(path, formats=formats) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(path, f"{image.width}x{image.height} pixels")
            _refuse_deep(path, image)
            yield image
    except ConfigError:
        raise
    except UnidentifiedImageError as error:
        raise ConfigError("path", path, f"holds no {called}; {remedy}") from error
    except (PermissionError, FileNotFoundError, IsADirectoryError) as error:
        problem = f"cannot be opened ({error.strerror}); make it readable or move it away"
        raise ConfigError("path", path, problem) from error
    except Image.DecompressionBombError as error:
        raise _too_large(path, "too many pixels") from error
    except Exception as error:  # the decoders raise nearly everything on damaged files
        raise ConfigError("path", path, f"is damaged ({error}); {remedy}") from error


def _too_large(path: str, size: str) -> ConfigError:
    limit = f"the limit is {MAX_PIXELS // 1_000_000} million"
    return ConfigError("path", path, f"has {size}, {limit}; remove the file or scale it down")


def _refuse_deep(path: str, image: Image.Image) -> None:
    """Refuse values that do not say what is black and what is white."""
    if image.mode in ("I", "F"):
        called = {"F": "32-bit floating-point values"}.get(image.mode, "32-bit or signed values")
        problem = f"holds {called}, whose black and white are unknown"
        remedy = "convert it to a TIFF or PNG with 8 or 16 bits per channel, scaled as you need"
        raise ConfigError("path", path, f"{problem}; {remedy}")


def _header(image: Image.Image) -> Header:
    width, height = image.size
    if _orientation(image) in (5, 6, 7, 8):
        width, height = height, width
    bits = 16 if image.mode.startswith("I;16") else 8
    modes = [tile[3] for tile in getattr(image, "tile", ())]  # in the file, such as RGB;16B
    deep_colour = bits == 8 and ";16" in str(modes)
    return Header(height, width, _is_grey(image), (), bits, deep_colour)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation as far as it stands in the header; 1 (upright) where unreadable."""
    try:
        # not image.getexif(): that of PNG decodes the pixels to look behind them
        return int(Image.Image.getexif(image).get(_ORIENTATION, 1))
    except Exception:
        return 1


def _is_grey(image: Image.Image) -> bool:
    if image.mode == "P" and image.palette is not None:
        order, data = image.palette.getdata()
        colours = np.frombuffer(bytes(data), np.uint8).reshape(-1, len(order))[:, :3]
        return bool((colours == colours[:, :1]).all())
    return image.mode in ("1", "L", "LA") or image.mode.startswith("I")


def _without_alpha(image: Image.Image) -> Image.Image:
    """The picture in 8 bits, with what is transparent laid on white."""
    if not image.has_transparency_data:
        return image
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas


def _deep(image: Image.Image) -> tuple[npt.NDArray[np.float64], float | None]:
    """The values of a 16-bit grey picture, and the one that is transparent, if there is one."""
    values = np.asarray(image).astype(np.float64)
    tag, white_is_zero = _WHITE_IS_ZERO
    if getattr(image, "tag_v2", {}).get(tag) == white_is_zero:  # which Pillow ignores here
        values = WHITE - values
    return values, image.info.get("transparency")
