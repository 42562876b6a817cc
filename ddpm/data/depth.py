"""Depth of pictures: 16-bit grey is read at all its levels, everything else in 8 bits."""

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
LOOKED_AT = 64
"""Pictures of a set that does not stay in memory that are decoded for their range."""
_SMALL = 0.25  # of the range: values in less than that deserve a warning


@dataclass(frozen=True)
class Levels:
    """Values of pictures: 8 bits, or the levels of 16-bit grey.

    Attributes:
        bits: 8 for uint8 from 0 to 255, 16 for whole float32 numbers from ``low`` to ``high``.
        low: black in 16-bit pictures.
        high: white in 16-bit pictures.
    """

    bits: Literal[8, 16] = 8
    low: float = 0
    high: float = WHITE

    @classmethod
    def declared(cls, bits: Literal[8, 16], low: float | None, high: float | None) -> Levels:
        """Levels of a range of which None is black or white in 16 bits; raises ConfigError."""
        bottom, top = 0 if low is None else low, WHITE if high is None else high
        for key, value in (("low", low), ("high", high)):
            good = value is None or (0 <= value <= WHITE and value == round(value))
            problem = f"must be a whole number from 0 to {WHITE}, for 16-bit pictures"
            require(good, key, value, problem)
        key, value = ("low", low) if high is None else ("high", high)
        problem = f"black is {bottom:g} and white {top:g}, which must be greater"
        require(bottom < top, key, value, problem)
        return cls(bits, bottom, top)

    @classmethod
    def chosen(
        cls, bits: Bits, low: float | None, high: float | None, grey: bool, first: int
    ) -> Levels:
        """Levels of a set whose ``first`` picture has so many bits; raises ConfigError."""
        if bits == 16 and not grey:
            problem = "is for grey pictures; those in colour have 8"
            raise ConfigError("bits", bits, problem, "set {color}=grey, or omit {bits}")
        deep = grey and (first if bits == "auto" else bits) == 16
        return cls.declared(16 if deep else 8, low, high)

    def of_deep(self, values: npt.NDArray[np.float64], clear: float | None, path: str) -> _Read:
        """A 16-bit grey picture, which becomes L or F, with its least and greatest value.

        ``clear`` is the value of transparent pixels, which become white. Raises ConfigError for
        values outside the range.
        """
        seen = self.seen_in(values if clear is None else values[values != clear], path)
        values = values if clear is None else np.where(values == clear, self.high, values)
        if self.bits == 16:
            return Image.fromarray(values.astype(np.float32)), seen
        return Image.fromarray(self.to_bytes(values)), seen

    def seen_in(self, values: npt.NDArray[Any], path: str) -> tuple[int, int] | None:
        """The least and greatest of 16-bit values; raises ConfigError outside the range."""
        if not values.size:
            return None
        seen = int(values.min()), int(values.max())
        if seen[0] < self.low:
            problem = f"{path} holds values down to {seen[0]}"
            raise ConfigError("low", self.low, problem, f"set {{low}}={seen[0]} or less")
        if seen[1] > self.high:
            problem = f"{path} holds values up to {seen[1]}"
            raise ConfigError("high", self.high, problem, f"set {{high}}={seen[1]} or more")
        return seen

    def of_plain(self, image: Image.Image) -> Image.Image:
        """An 8-bit picture, whose white becomes that of the range where the levels are 16-bit."""
        if self.bits == 8:
            return image
        return Image.fromarray(self.of_bytes(np.asarray(image.convert("L"))))

    def of_bytes(self, values: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """8-bit values as 16-bit levels."""
        share = values.astype(np.float32) / 255
        return np.rint(self.low + share * (self.high - self.low)).astype(np.float32)

    def fitted(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """The values (H, W) of an F image that was resized: whole, and within the range."""
        return np.rint(np.asarray(image, np.float32)).clip(self.low, self.high)

    def to_bytes(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
        """Values of 16-bit pictures as the nearest of 256."""
        return np.rint((values - self.low) / ((self.high - self.low) / 255)).astype(np.uint8)


_Read = tuple[Image.Image, tuple[int, int] | None]


def of_one_file(path: str, seen: tuple[int, int] | None, levels: Levels) -> tuple[str, ...]:
    """A line if its 16-bit values use a small part of a model's range."""
    remedy = "scale them to that range if it is to be brighter"
    return tuple(f"{each.problem}; {remedy}" for each in range_warnings(path, [seen], levels))


def range_warnings(
    root: str, seen: Iterable[tuple[int, int] | None], levels: Levels
) -> tuple[Advice, ...]:
    """A line if the values of 16-bit pictures use a small part of the range."""
    ranges = [each for each in seen if each is not None]
    if not ranges:
        return ()
    least, most = min(low for low, _ in ranges), max(high for _, high in ranges)
    if most - least >= _SMALL * (levels.high - levels.low):
        return ()
    full = max(1 << most.bit_length(), 2)  # the levels of so many bits
    remedy = f"{{high}}={full - 1}"
    if most - least < _SMALL * full:
        remedy = f"{{low}}={least} {{high}}={max(most, least + 1)}"
    problem = f"{root}: the values of the 16-bit pictures lie between {least} and {most}, a small "
    problem += f"part of the range from {levels.low:g} to {levels.high:g}"
    return (Advice(problem, f"set {remedy} to use all of it"),)


def depth_warnings(
    root: str, count: int, deep: int, colours: int, levels: Levels
) -> tuple[str, ...]:
    """Lines on pictures of 16 bits that are read in 8.

    Args:
        root: the folder.
        count: pictures in it.
        deep: of these, in 16-bit grey.
        colours: of these, with 16 bits per colour.
        levels: what they become.
    """
    lines: list[str] = []
    if colours:
        problem = f"{root}: {colours} of {count} pictures have 16 bits per colour"
        lines.append(f"{problem}; they are read in 8 bits")
    if deep and levels.bits == 8:
        lines.append(f"{root}: {deep} of {count} pictures are 16-bit grey, and read in 8 bits")
    return tuple(lines)


def refuse_range(low: float | None, high: float | None) -> None:
    """Raise ConfigError if a range was declared, which pictures of 8 bits do not have."""
    for key, value in (("low", low), ("high", high)):
        problem = "is for 16-bit grey pictures, and there are none; omit it"
        require(value is None, key, value, problem)
