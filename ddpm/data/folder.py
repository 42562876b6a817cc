"""A folder of pictures as a data set."""

from __future__ import annotations

import os
from typing import Literal

import torch

from ddpm.data.codec import ImageCodec
from ddpm.data.decoding import (
    SUFFIXES,
    Header,
    Pixels,
    must_agree,
    quiet_about_size,
    read_header,
    read_pixels,
)
from ddpm.data.depth import LOOKED_AT, Bits, Levels, depth_warnings, range_warnings, refuse_range
from ddpm.data.files import find_files, folder_classes, visit_all
from ddpm.data.images import PixelSet, target_size
from ddpm.data.samples import samples_at
from ddpm.errors import require

_WORK = "reading images"


class Folder(PixelSet):
    """The JPEG, PNG, WebP, BMP and TIFF pictures in a folder and below it, sorted by name.

    Hidden files (``.name``) are ignored, others are counted in :attr:`warnings`. For the conversion
    of pictures to pixels see :mod:`ddpm.data.decoding`. Of a folder that ddpm-sample wrote, the
    samples in ``images`` are read.

    ``image_size``: None takes the size that all pictures share; a number scales the short side to
    it and cuts out the central square; (height, width) covers that size and cuts likewise. Nothing
    is ever stretched. ``color``: "auto" is grey if all pictures are stored in grey, RGB if none is.
    ``class_cond``: the class is the first folder below ``path``, of those that hold pictures.
    ``bits``: 16 keeps the levels of 16-bit grey pictures, as whole numbers in float32; 8 makes all
    of them uint8; "auto" is 16 if all pictures are 16-bit grey, 8 if none is; colour is always 8.
    ``low`` and ``high`` are black and white in 16-bit pictures, 0 and 65535 if None; 4095 is white
    in 12-bit data. White in 8-bit pictures becomes that white.
    ``flip``: mirrors a random half of the items. ``cache_mb``: up to so many MiB, the pixels are
    kept in memory; larger sets are checked by their headers and decoded when fetched.

    Raises ConfigError for whatever keeps the pictures from becoming one set, naming the file.
    """

    legacy_defaults = {"bits": 8}
    _needs_deep = True  # where a range is declared

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
        self._root = samples_at(path, ["images"], SUFFIXES)
        listing = find_files(self._root, SUFFIXES, "images")
        self._files, self.warnings = listing.files, listing.warnings
        with quiet_about_size():
            self._first = read_header(self._absolute(0))
            grey = self._first.grey if color == "auto" else color == "grey"
            self._levels = Levels.chosen(bits, low, high, grey, self._first.bits)
            self._any = {
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
                visit_all(len(self), self._check, _WORK)
                self._look_at_some()
            self._warn_of_depth()
            if self._needs_deep and not any(each.bits == 16 for each in self._headers):
                refuse_range(low, high)
            self._headers = []

    def __len__(self) -> int:
        return len(self._files)

    def _look_up(self, where: torch.Tensor) -> torch.Tensor:
        if self._pixels is not None:
            return super()._look_up(where)
        raw = torch.empty((len(where), *self.shape), dtype=self._dtype)
        for place, index in enumerate(where.tolist()):
            raw.numpy()[place] = self._decode(index)
        return raw

    def _absolute(self, index: int) -> str:
        return os.path.join(self._root, self._files[index])

    def _decode(self, index: int) -> Pixels:
        channels, height, width = self.shape
        size = height, width
        header, pixels = read_pixels(self._absolute(index), channels, size, self._levels)
        self._agree(index, header)
        return pixels

    def _decode_all(self) -> torch.Tensor:
        pixels = torch.empty((len(self), *self.shape), dtype=self._dtype)
        array = pixels.numpy()

        def decode(index: int) -> None:
            array[index] = self._decode(index)

        visit_all(len(self), decode, _WORK)
        return pixels

    def _check(self, index: int) -> None:
        self._agree(index, read_header(self._absolute(index)))

    def _agree(self, index: int, header: Header) -> None:
        """Refuse picture ``index`` if it differs from the first in what has to be the same."""
        first, other = (self._files[0], self._first), (self._files[index], header)
        must_agree(first, other, **self._any)
        if self._headers:
            self._headers[index] = header

    def _look_at_some(self) -> None:
        """Decode a few of the 16-bit pictures for their range."""
        deep = [at for at, header in enumerate(self._headers) if header.bits == 16]
        for at in deep[:: -(-len(deep) // LOOKED_AT) or 1]:
            self._decode(at)

    def _warn_of_depth(self) -> None:
        """Take what is to be said of the depths of all pictures."""
        headers, levels = self._headers, self._levels
        deep = sum(header.bits == 16 for header in headers)
        colours = sum(header.deep_colour for header in headers)
        self.warnings += depth_warnings(self._root, len(self), deep, colours, levels)
        self.warnings += range_warnings(self._root, (each.seen for each in headers), levels)
