"""Bit depth of pictures: 16-bit grey keeps all its levels, other pictures have 8 bits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from ddpm.errors import Advice, ConfigError, require

Bits = Literal["auto", 8, 16]
WHITE = 65535  # of 16 bits
MAX_RANGE_SAMPLES = 64
"""Maximum number of pictures decoded to measure the range of data that are not in memory."""
_SMALL = 0.25  # fraction of the range below which a warning is due


@dataclass(frozen=True)
class Levels:
    """Values of pictures: 8 bits, or the levels of 16-bit grey.

    Attributes:
        bits: 8 for uint8 in 0..255; 16 for whole numbers in float32 in ``low``..``high``.
        low: black of 16-bit pictures, from 0 to 65535.
        high: white of 16-bit pictures, from 0 to 65535.
    """

    bits: Literal[8, 16] = 8
    low: float = 0
    high: float = WHITE

    @classmethod
    def from_range(cls, bits: Literal[8, 16], low: float | None, high: float | None) -> Levels:
        """Return levels of a range, by default 0..65535; raise ConfigError for an invalid one."""
        bottom, top = 0 if low is None else low, WHITE if high is None else high
        for key, value in (("low", low), ("high", high)):
            good = value is None or (0 <= value <= WHITE and value == round(value))
            problem = f"must be a whole number from 0 to {WHITE}, for 16-bit pictures"
            require(good, key, value, problem)
        key, value = ("low", low) if high is None else ("high", high)
        problem = f"white must be greater than black, but black is {bottom:g} and white is {top:g}"
        require(bottom < top, key, value, problem)
        return cls(bits, bottom, top)

    @classmethod
    def choose(
        cls, bits: Bits, low: float | None, high: float | None, grey: bool, first: int
    ) -> Levels:
        """Return the levels of a data set.

        Args:
            bits: 8, 16, or "auto" for those of the first picture.
            low: black of 16-bit pictures; None = 0.
            high: white of 16-bit pictures; None = 65535.
            grey: whether the pictures are read in grey.
            first: bits of the first picture.

        Raises:
            ConfigError: 16 bits for pictures in colour, or an invalid range.
        """
        if bits == 16 and not grey:
            problem = "only applies to grey pictures; those in colour have 8 bits"
            raise ConfigError("bits", bits, problem, "set {color}=grey, or omit {bits}")
        deep = grey and (first if bits == "auto" else bits) == 16
        return cls.from_range(16 if deep else 8, low, high)

    def convert_16_bit(
        self, values: npt.NDArray[np.float64], transparent: float | None, path: str
    ) -> tuple[Image.Image, tuple[int, int] | None]:
        """Return a 16-bit grey picture in mode L or F, and the minimum and maximum of its values.

        Args:
            values: ``(H, W)``.
            transparent: value of transparent pixels, which become white; None = opaque.
            path: path of the file, for messages.

        Raises:
            ConfigError: (key ``low`` or ``high``) values outside the range.
        """
        value_range = self.measure(
            values if transparent is None else values[values != transparent], path
        )
        values = (
            values if transparent is None else np.where(values == transparent, self.high, values)
        )
        if self.bits == 16:
            return Image.fromarray(values.astype(np.float32)), value_range
        return Image.fromarray(self.to_bytes(values)), value_range

    def measure(self, values: npt.NDArray[Any], path: str) -> tuple[int, int] | None:
        """Return the minimum and maximum of 16-bit values, None for an empty array.

        Raises:
            ConfigError: (key ``low`` or ``high``) values outside the range.
        """
        if not values.size:
            return None
        value_range = int(values.min()), int(values.max())
        if value_range[0] < self.low:
            problem = f"{path} contains values down to {value_range[0]}"
            raise ConfigError("low", self.low, problem, f"set {{low}}={value_range[0]} or less")
        if value_range[1] > self.high:
            problem = f"{path} contains values up to {value_range[1]}"
            raise ConfigError("high", self.high, problem, f"set {{high}}={value_range[1]} or more")
        return value_range

    def convert_8_bit(self, image: Image.Image) -> Image.Image:
        """Return an 8-bit picture, or for 16-bit levels its conversion to these in mode F."""
        if self.bits == 8:
            return image
        return Image.fromarray(self.bytes_to_levels(np.asarray(image.convert("L"))))

    def bytes_to_levels(self, values: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Convert 8-bit values to 16-bit levels."""
        fraction = values.astype(np.float32) / 255
        return np.rint(self.low + fraction * (self.high - self.low)).astype(np.float32)

    def round_resized(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """Return the values ``(H, W)`` of a resized F image, rounded and clamped to the range."""
        return np.rint(np.asarray(image, np.float32)).clip(self.low, self.high)

    def to_bytes(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
        """Convert 16-bit values to 8 bits, ``low``..``high`` to 0..255."""
        return np.rint((values - self.low) / ((self.high - self.low) / 255)).astype(np.uint8)


def file_range_warnings(
    path: str, value_range: tuple[int, int] | None, levels: Levels
) -> tuple[str, ...]:
    """Return a warning if the 16-bit values of a file use a small part of a model's range."""
    remedy = "scale the values to that range if the picture is too dark"
    warnings = range_warnings(path, [value_range], levels)
    return tuple(f"{each.problem}; {remedy}" for each in warnings)


def range_warnings(
    root: str, value_ranges: Iterable[tuple[int, int] | None], levels: Levels
) -> tuple[Advice, ...]:
    """Return a warning if the values of 16-bit pictures use a small part of the range.

    Args:
        root: path of the data, for the message.
        value_ranges: minimum and maximum of each picture; None for 8-bit pictures.
        levels: levels of the data.
    """
    ranges = [each for each in value_ranges if each is not None]
    if not ranges:
        return ()
    least, most = min(low for low, _ in ranges), max(high for _, high in ranges)
    if most - least >= _SMALL * (levels.high - levels.low):
        return ()
    full = max(1 << most.bit_length(), 2)  # number of levels of the bits in use
    remedy = f"{{high}}={full - 1}"
    if most - least < _SMALL * full:
        remedy = f"{{low}}={least} {{high}}={max(most, least + 1)}"
    problem = f"{root}: the values of the 16-bit pictures lie between {least} and {most}, a small "
    problem += f"part of the range from {levels.low:g} to {levels.high:g}"
    return (Advice(problem, f"set {remedy} to use all of it"),)


def depth_warnings(
    root: str, count: int, deep: int, colours: int, levels: Levels
) -> tuple[str, ...]:
    """Return warnings about 16-bit pictures that are read in 8 bits.

    Args:
        root: path of the data, for the messages.
        count: number of pictures.
        deep: number of pictures in 16-bit grey.
        colours: number of pictures with 16 bits per colour.
        levels: levels of the data.
    """
    lines: list[str] = []
    if colours:
        problem = f"{root}: {colours} of {count} pictures have 16 bits per colour"
        lines.append(f"{problem}; they are read in 8 bits")
    if deep and levels.bits == 8:
        lines.append(f"{root}: {deep} of {count} pictures are 16-bit grey; they are read in 8 bits")
    return tuple(lines)


def reject_range(low: float | None, high: float | None) -> None:
    """Raise ConfigError for a range of 8-bit pictures."""
    for key, value in (("low", low), ("high", high)):
        problem = "only applies to 16-bit grey pictures, but all have 8 bits; omit it"
        require(value is None, key, value, problem)
