"""Data set of the pictures in a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from ddpm.data.decoded import DecodedItems
from ddpm.data.decoding import (
    SUFFIXES,
    Header,
    Pixels,
    read_header,
    read_pixels,
    suppress_pillow_warnings,
)
from ddpm.data.depth import Bits, Levels, reject_range
from ddpm.data.disk_cache import DiskCache
from ddpm.data.files import find_files, folder_classes
from ddpm.data.header_index import HeaderIndex
from ddpm.data.headers import HeaderTable
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
            are read by each :meth:`fetch`.
        disk_cache: keep decoded pictures in files, which later runs and epochs read instead of
            decoding: None = for folders of 16 MiB or more, in the user's cache; False = not at all;
            True = always; or always, in this folder. See :mod:`ddpm.data.disk_cache`.
        fast_jpeg: decode JPEGs at a half, a quarter or an eighth of their size where that is at
            least twice ``image_size``. Pixels differ slightly.

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
        disk_cache: bool | str | None = None,
        fast_jpeg: bool = False,
    ) -> None:
        require(cache_mb >= 0, "cache_mb", cache_mb, "must be 0 or more")
        size = target_size(image_size)
        self._root = find_samples(path, ["images"], SUFFIXES)
        listing = find_files(self._root, SUFFIXES, "images")
        self._files, self.warnings = listing.files, listing.warnings
        with suppress_pillow_warnings():
            first = read_header(self._absolute(0))
            grey = first.grey if color == "auto" else color == "grey"
            self._levels = Levels.choose(bits, low, high, grey, first.bits)
            self._fast_jpeg = fast_jpeg
            self._headers = HeaderTable(
                self._files,
                first,
                any_size=size is not None,
                any_color=color != "auto",
                any_bits=bits != "auto" or not grey,
            )
            shape = (1 if grey else 3, *(size or first[:2]))
            deep = self._levels.bits == 16
            limits = (self._levels.low, self._levels.high) if deep else (None, None)
            self._dtype = torch.float32 if deep else torch.uint8
            self._set_up(ImageCodec(shape, *limits), flip=flip)
            if class_cond:
                labels, names, warnings = folder_classes(self._files, self._root)
                self._set_labels(labels, names)
                self.warnings += warnings
            numel = len(self._files) * shape[0] * shape[1] * shape[2]
            fits = numel * self._dtype.itemsize <= cache_mb * 2**20
            cache = DiskCache.choose(disk_cache, self._root, self._files)
            self._read_all(cache, keep=fits)
            self.warnings += self._headers.warnings(self._root, self._levels)
            if self._requires_16_bit and not self._headers.deep():
                reject_range(low, high)
            self._headers.free()

    def __len__(self) -> int:
        return len(self._files)

    def is_decoded(self, indices: Sequence[int] | None = None) -> bool:
        """Return True if the items are in memory or in the disk cache."""
        return self.in_memory or self._items.is_complete(indices)

    def _read_items_at(self, positions: torch.Tensor) -> torch.Tensor:
        if self._pixels is not None:
            return super()._read_items_at(positions)
        raw = torch.empty((len(positions), *self.shape), dtype=self._dtype)
        for place, index in enumerate(positions.tolist()):
            header, raw.numpy()[place] = self._items.read(index)
            self._headers.add(index, header)
        return raw

    def _absolute(self, index: int) -> str:
        return os.path.join(self._root, self._files[index])

    def _decode(self, index: int) -> tuple[Header, Pixels]:
        channels, height, width = self.shape
        size, fast = (height, width), self._fast_jpeg
        return read_pixels(self._absolute(index), channels, size, self._levels, fast_jpeg=fast)

    def _read_all(self, cache: DiskCache | None, *, keep: bool) -> None:
        """Read the pixels of all pictures into memory, or their headers only.

        Args:
            cache: the files of decoded pictures and of headers.
            keep: read the pixels.
        """
        count, dtype = len(self), np.float32 if self._levels.bits == 16 else np.uint8
        header_file = file = None
        if cache is not None:
            options = ("pixels", self.shape, self._levels, self._fast_jpeg)
            header_file = None if keep else cache.open_headers()
            file = cache.open(options, count, DecodedItems.content_bytes(self.shape, dtype))
            self.warnings += cache.warnings
        self._items = DecodedItems(self._decode, self.shape, dtype, file)
        self._headers.allocate()
        if keep:
            pixels = torch.empty((count, *self.shape), dtype=self._dtype)
            self._items.read_all(count, self._headers, pixels.numpy(), _WORK)
            self._set_pixels(pixels)
            self._items = DecodedItems(self._decode, self.shape, dtype)  # closes the file
        else:
            index = HeaderIndex(self._root, self._files, read_header, header_file)
            index.read_all(self._headers, _WORK)
            index.measure_ranges(self._headers, self._levels, lambda at: self._items.read(at)[0])
