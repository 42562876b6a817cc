"""Data set of the pictures in a folder."""

from __future__ import annotations

import os
from typing import Literal

import torch

from ddpm.data.decoding import (
    SUFFIXES,
    Header,
    Pixels,
    check_consistent,
    read_header,
    read_pixels,
    suppress_pillow_warnings,
)
from ddpm.data.depth import (
    MAX_RANGE_SAMPLES,
    Bits,
    Levels,
    depth_warnings,
    range_warnings,
    reject_range,
)
from ddpm.data.files import find_files, folder_classes, parallel_for
from ddpm.data.image_codec import ImageCodec
from ddpm.data.images import PixelSet, target_size
from ddpm.data.samples import find_samples
from ddpm.errors import require

_WORK = "reading images"


class Folder(PixelSet):
    """JPEG, PNG, WebP, BMP and TIFF pictures in a folder at any depth, sorted by name.

    Items are ``(C, H, W)`` with C = 1 (grey) or 3 (RGB): uint8 in 0..255, or for 16-bit grey whole
    numbers in float32. For the conversion of pictures see :mod:`ddpm.data.decoding`. Hidden files
    (``.name``) are ignored, other files are counted in :attr:`warnings`. In a folder that
    ddpm-sample wrote, the samples in ``images`` are read.

    Args:
        path: path of the folder.
        image_size: None = the size that all pictures share; a number scales the shorter side to it
            and crops the central square; (height, width) is covered and cropped likewise. The
            aspect ratio is preserved.
        class_cond: return labels; the class is the first folder below ``path``.
        color: "rgb", "grey", or "auto": grey if all pictures are stored in grey, RGB if none is.
        bits: 16 keeps the levels of 16-bit grey pictures; 8 converts them to uint8; "auto" is 16 if
            all pictures are 16-bit grey, 8 if none is. Colour is always 8.
        low: black of 16-bit pictures; None = 0.
        high: white of 16-bit pictures; None = 65535. 12-bit data have 4095. With ``bits=16``, white
            of 8-bit pictures is converted to this value.
        flip: mirror a random half of the items, left to right.
        cache_mb: limit in MiB up to which the pixels are kept in memory. Pictures of larger sets
            are decoded by each :meth:`fetch`.

    Raises:
        ConfigError: a file is unreadable, or differs from others in a property that must be shared.
    """

    legacy_defaults = {"bits": 8}
    _requires_16_bit = True  # for a declared range

    def __init__(
        self,
        *,
        path: str,
        image_size: int | tuple[int, int] | None = None,
        class_cond: bool = False,
        color: Literal["auto", "rgb", "grey"] = "auto",
        bits: Bits = "auto",
        low: float | None = None,
        high: float | None = None,
        flip: bool = False,
        cache_mb: int = 2048,
    ) -> None:
        require(cache_mb >= 0, "cache_mb", cache_mb, "must be 0 or more")
        size = target_size(image_size)
        self._root = find_samples(path, ["images"], SUFFIXES)
        listing = find_files(self._root, SUFFIXES, "images")
        self._files, self.warnings = listing.files, listing.warnings
        with suppress_pillow_warnings():
            self._first = read_header(self._absolute(0))
            grey = self._first.grey if color == "auto" else color == "grey"
            self._levels = Levels.choose(bits, low, high, grey, self._first.bits)
            self._tolerances = {
                "any_size": size is not None,
                "any_color": color != "auto",
                "any_bits": bits != "auto" or not grey,
            }
            shape = (1 if grey else 3, *(size or self._first[:2]))
            deep = self._levels.bits == 16
            limits = (self._levels.low, self._levels.high) if deep else (None, None)
            self._dtype = torch.float32 if deep else torch.uint8
            self._set_up(ImageCodec(shape, *limits), flip=flip)
            if class_cond:
                labels, names, warnings = folder_classes(self._files, self._root)
                self._set_labels(labels, names)
                self.warnings += warnings
            self._headers: list[Header] = [self._first] * len(self)
            numel = len(self._files) * shape[0] * shape[1] * shape[2]
            if numel * self._dtype.itemsize <= cache_mb * 2**20:
                self._set_pixels(self._decode_all())
            else:
                parallel_for(len(self), self._read_header, _WORK)
                self._sample_range()
            self._add_depth_warnings()
            if self._requires_16_bit and not any(each.bits == 16 for each in self._headers):
                reject_range(low, high)
            self._headers = []

    def __len__(self) -> int:
        return len(self._files)

    def _read_items_at(self, positions: torch.Tensor) -> torch.Tensor:
        if self._pixels is not None:
            return super()._read_items_at(positions)
        raw = torch.empty((len(positions), *self.shape), dtype=self._dtype)
        for place, index in enumerate(positions.tolist()):
            raw.numpy()[place] = self._decode(index)
        return raw

    def _absolute(self, index: int) -> str:
        return os.path.join(self._root, self._files[index])

    def _decode(self, index: int) -> Pixels:
        channels, height, width = self.shape
        size = height, width
        header, pixels = read_pixels(self._absolute(index), channels, size, self._levels)
        self._check_header(index, header)
        return pixels

    def _decode_all(self) -> torch.Tensor:
        pixels = torch.empty((len(self), *self.shape), dtype=self._dtype)
        array = pixels.numpy()

        def decode(index: int) -> None:
            array[index] = self._decode(index)

        parallel_for(len(self), decode, _WORK)
        return pixels

    def _read_header(self, index: int) -> None:
        self._check_header(index, read_header(self._absolute(index)))

    def _check_header(self, index: int, header: Header) -> None:
        """Store the header of picture ``index``; raise ConfigError if it is inconsistent."""
        first, other = (self._files[0], self._first), (self._files[index], header)
        check_consistent(first, other, **self._tolerances)
        if self._headers:
            self._headers[index] = header

    def _sample_range(self) -> None:
        """Decode some of the 16-bit pictures to measure their range."""
        deep = [at for at, header in enumerate(self._headers) if header.bits == 16]
        for at in deep[:: -(-len(deep) // MAX_RANGE_SAMPLES) or 1]:
            self._decode(at)

    def _add_depth_warnings(self) -> None:
        """Add warnings about the bit depths and ranges of the pictures."""
        headers, levels = self._headers, self._levels
        deep = sum(header.bits == 16 for header in headers)
        colours = sum(header.deep_colour for header in headers)
        self.warnings += depth_warnings(self._root, len(self), deep, colours, levels)
        self.warnings += range_warnings(self._root, (each.value_range for each in headers), levels)
