"""Decoding of picture files to arrays; no other module opens pictures.

The formats are JPEG, PNG, WebP, BMP and TIFF, independent of the suffix. Of animations the first
frame is read, of documents the first page. The EXIF orientation is applied if it is stored before
the pixels; invalid EXIF is ignored. Transparent pixels are composed onto white. CMYK and palettes
are converted to RGB or grey. 16-bit grey is converted by :class:`ddpm.data.depth.Levels`, 16 bits
per colour are reduced to 8. Colour profiles are ignored.

All frames of GIFs can be read. They are composed as the file specifies, with partial frames,
disposal and local palettes; for their durations see :func:`ddpm.data.gifs.timeline`.
"""

from __future__ import annotations

import math
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
from ddpm.files import check_is_file

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
    """Properties of a picture file, known without decoding pixels."""

    height: int
    """Height in pixels, after EXIF orientation."""
    width: int
    """Width in pixels, after EXIF orientation."""
    grey: bool
    """Whether the picture is stored without colour; WebP always stores colour."""
    durations_ms: tuple[float, ...] = ()
    """Duration of each frame of a GIF, mp4, webm or mov file, in ms."""
    bits: int = 8
    """16 for 16-bit grey, 8 otherwise."""
    deep_colour: bool = False
    """Whether the file has 16 bits per colour, which are reduced to 8."""
    timestamps: tuple[int, ...] = ()
    """Presentation timestamps of the frames of an mp4, webm or mov file."""
    value_range: tuple[int, int] | None = None
    """Minimum and maximum of 16-bit grey, once decoded."""


def check_consistent(
    first: tuple[str, Header],
    other: tuple[str, Header],
    *,
    any_size: bool,
    any_color: bool,
    any_bits: bool,
) -> None:
    """Raise ConfigError if two files differ in a property that a data set must share.

    Args:
        first: name and header of a file.
        other: name and header of another file.
        any_size: accept different sizes.
        any_color: accept both grey and colour.
        any_bits: accept both 8 and 16 bits.
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
    """Return the header of the picture at ``path`` without decoding pixels.

    Raises:
        ConfigError: (key ``path``) the file is not a picture, is damaged or too large.
    """
    with _open_image(path) as image:
        return _header(image)


def read_pixels(
    path: str,
    channels: int,
    size: tuple[int, int] | None = None,
    levels: Levels = _BYTES,
    *,
    fast_jpeg: bool = False,
) -> tuple[Header, Pixels]:
    """Return the header and the pixels of the picture at ``path``.

    Args:
        path: path of the file.
        channels: 1 (grey) or 3 (RGB, for 8-bit ``levels``).
        size: (height, width) to cover and crop to, see :func:`fit`; None = that of the picture.
        levels: range of 16-bit grey.
        fast_jpeg: decode JPEGs at a fraction of their size if that is at least twice ``size``.

    Returns:
        Header, and pixels ``(channels, height, width)``: uint8, or float32 for 16-bit levels.

    Raises:
        ConfigError: the file is not a picture, is damaged or too large (key ``path``), or has
            values outside the levels (key ``low`` or ``high``).
    """
    with _open_image(path) as image:
        header = _header(image)
        turn = _TURNS.get(_orientation(image))
        if fast_jpeg and size is not None:
            upright = image.size == (header.width, header.height)
            _reduce_jpeg(image, size if upright else (size[1], size[0]))
        if header.bits == 16:
            values, transparent = _read_16_bit(image)
            converted, value_range = levels.convert_16_bit(values, transparent, path)
            converted = converted.convert("RGB") if channels == 3 else converted
            header = header._replace(value_range=value_range)
        else:
            converted = levels.convert_8_bit(_read_8_bit(image, channels))
        if turn is not None:
            converted = converted.transpose(turn)
        size = size or (header.height, header.width)
        if levels.bits == 16:
            return header, levels.round_resized(fit(converted, size))[None]
        pixels = _pixels(converted, size)
    return header, pixels


def read_gif_header(path: str) -> Header:
    """Return the header of the GIF at ``path``, with durations, without decoding pixels.

    Raises:
        ConfigError: (key ``path``) the file is not a GIF, is truncated or too large.
    """
    with _open_image(path, _GIFS) as image:
        frames = read_layout(Path(path).read_bytes())
        grey = all(frame.grey for frame in frames)
        durations_ms = tuple(frame.duration_ms for frame in frames)
        return Header(image.height, image.width, grey, durations_ms)


def read_gif_frames(
    path: str, channels: int, indices: Sequence[int], size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """Return stored frames of the GIF at ``path``: uint8 ``(channels, F, height, width)``.

    Each frame is composed, converted and resized like a picture of :func:`read_pixels`.

    Args:
        path: path of the file.
        channels: 1 (grey) or 3 (RGB).
        indices: positions of the F frames in the file, with repetition.
        size: (height, width) to cover and crop to.

    Raises:
        ConfigError: (key ``path``) the file is not a GIF, is damaged or too large.
    """
    with _open_image(path, _GIFS) as image:
        frames = read_layout(Path(path).read_bytes())[: max(indices) + 1]
        composed = enumerate(compose(frames, image.size))
        needed = set(indices)
        pixels = {
            at: _pixels(_read_8_bit(each, channels), size) for at, each in composed if at in needed
        }
        return np.stack([pixels[index] for index in indices], axis=1)


def image_pixels(image: Image.Image, channels: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return an 8-bit image, resized by :func:`fit`, as ``(channels, *size)``.

    Transparent pixels are composed onto white; ``channels`` is 1 (grey) or 3 (RGB).
    """
    return _pixels(_read_8_bit(image, channels), size)


def _reduce_jpeg(image: Image.Image, size: tuple[int, int]) -> None:
    """Have a JPEG decoded at 1/2, 1/4 or 1/8 of its size if that covers twice ``size``."""
    height, width = size
    scale = min(image.width / width, image.height / height)
    if scale >= 4:  # draft does nothing below, and for other formats
        image.draft(None, (math.ceil(2 * image.width / scale), math.ceil(2 * image.height / scale)))


def _read_8_bit(image: Image.Image, channels: int) -> Image.Image:
    return _without_alpha(image).convert("L" if channels == 1 else "RGB")


def _pixels(image: Image.Image, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return an L or RGB image, resized by :func:`fit`, as ``(channels, height, width)``."""
    pixels = np.asarray(fit(image, size))
    return pixels[None] if image.mode == "L" else pixels.transpose(2, 0, 1)


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale an image (L, RGB or F) to cover ``size`` (height, width), and crop it at the centre.

    The aspect ratio is preserved; interpolation is bicubic and antialiased.
    """
    height, width = size
    if image.size == (width, height):
        return image
    scale = min(image.width / width, image.height / height)
    left = (image.width - scale * width) / 2
    top = (image.height - scale * height) / 2
    # Rounding must not move the box beyond the edge.
    box = (
        max(left, 0.0),
        max(top, 0.0),
        min(left + scale * width, float(image.width)),
        min(top + scale * height, float(image.height)),
    )
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


@contextmanager
def suppress_pillow_warnings() -> Iterator[None]:
    """Suppress warnings of Pillow.

    Large pictures are rejected here anyway, and unusual TIFF metadata are harmless. The context
    changes a filter of the process: enter it in the main thread, around the threads that decode.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@contextmanager
def _open_image(path: str, kind: tuple[tuple[str, ...], str] = _PICTURES) -> Iterator[Image.Image]:
    """Open an image file; convert errors within the context to ConfigError (key ``path``)."""
    formats, description = kind
    remedy = "remove the file or re-encode it"
    try:
        check_is_file(path)
        with Image.open(path, formats=formats) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(path, f"{image.width}x{image.height} pixels")
            _reject_unscaled(path, image)
            yield image
    except ConfigError:
        raise
    except UnidentifiedImageError as error:
        raise ConfigError("path", path, f"is not a {description}; {remedy}") from error
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


def _reject_unscaled(path: str, image: Image.Image) -> None:
    """Raise ConfigError for types of values without a defined black and white."""
    if image.mode in ("I", "F"):
        description = {"F": "32-bit floating-point values"}.get(
            image.mode, "32-bit or signed values"
        )
        problem = f"contains {description}, whose black and white are unknown"
        remedy = "convert it to a TIFF or PNG with 8 or 16 bits per channel"
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
    """Return the EXIF orientation in the header; 1 (upright) if it is missing or invalid."""
    try:
        # Not image.getexif(): for PNG it decodes the pixels to search for EXIF after them.
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
    """Return the picture in 8 bits, with transparent pixels composed onto white."""
    if not image.has_transparency_data:
        return image
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas


def _read_16_bit(image: Image.Image) -> tuple[npt.NDArray[np.float64], float | None]:
    """Return the values of a 16-bit grey picture, and the value of transparent pixels, if any."""
    values = np.asarray(image).astype(np.float64)
    tag, white_is_zero = _WHITE_IS_ZERO
    if (
        getattr(image, "tag_v2", {}).get(tag) == white_is_zero
    ):  # Pillow ignores this tag for 16 bits
        values = WHITE - values
    return values, image.info.get("transparency")
