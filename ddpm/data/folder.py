"""A folder of pictures as a data set."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch

from ddpm.data.decoding import SUFFIXES, Header, Pixels, quiet_about_size, read_header, read_pixels
from ddpm.data.images import ImageSet, target_size
from ddpm.errors import ConfigError, require

_CHUNK = 16  # files a task: less bookkeeping, still prompt errors


class Folder(ImageSet):
    """The JPEG, PNG, WebP and BMP pictures in a folder and the folders below it, sorted by name.

    What is hidden (``.name``) or no regular file is left out. How a picture becomes pixels is told
    in :mod:`ddpm.data.decoding`.

    ``image_size``: None takes the size that all pictures share; a number scales the short side to
    it and cuts out the central square; (height, width) covers that size and cuts likewise. Nothing
    is ever stretched. ``color``: "auto" is grey if all pictures are stored in grey, RGB if none is.
    ``class_cond``: the class is the first folder below ``path``, of those that hold pictures.
    ``flip``: mirrors a random half of the items. ``cache_mb``: up to so many MiB, the pixels are
    kept in memory; larger sets are checked by their headers and decoded when fetched.

    Raises ConfigError for whatever keeps the pictures from becoming one set, naming the file.
    """

    def __init__(
        self,
        *,
        path: str,
        image_size: int | tuple[int, int] | None = None,
        class_cond: bool = False,
        color: Literal["auto", "rgb", "grey"] = "auto",
        flip: bool = False,
        cache_mb: int = 2048,
    ) -> None:
        require(cache_mb >= 0, "cache_mb", cache_mb, "must be 0 or more")
        size = target_size(image_size)
        self._root = os.path.expanduser(path)
        self._files = find_images(self._root)
        with quiet_about_size():
            self._first = read_header(self._absolute(0))
            self._any_size, self._any_color = size is not None, color != "auto"
            grey = self._first.grey if color == "auto" else color == "grey"
            shape = (1 if grey else 3, *(size or self._first[:2]))
            self._set_up(shape, flip=flip)
            if class_cond:
                self._set_labels(*_classes(self._files))
            numel = len(self._files) * shape[0] * shape[1] * shape[2]
            if numel <= cache_mb * 2**20:
                self._set_pixels(self._decode_all())
            else:
                self._for_each(self._check)

    def __len__(self) -> int:
        return len(self._files)

    def _look_up(self, where: torch.Tensor) -> torch.Tensor:
        if self._pixels is not None:
            return super()._look_up(where)
        raw = torch.empty((len(where), *self.shape), dtype=torch.uint8)
        for place, index in enumerate(where.tolist()):
            raw.numpy()[place] = self._decode(index)
        return raw

    def _absolute(self, index: int) -> str:
        return os.path.join(self._root, self._files[index])

    def _decode(self, index: int) -> Pixels:
        channels, height, width = self.shape
        header, pixels = read_pixels(self._absolute(index), channels, (height, width))
        self._agree(index, header)
        return pixels

    def _decode_all(self) -> torch.Tensor:
        pixels = torch.empty((len(self), *self.shape), dtype=torch.uint8)
        array = pixels.numpy()

        def decode(index: int) -> None:
            array[index] = self._decode(index)

        self._for_each(decode)
        return pixels

    def _check(self, index: int) -> None:
        self._agree(index, read_header(self._absolute(index)))

    def _agree(self, index: int, header: Header) -> None:
        """Refuse picture ``index`` if it differs from the first in what has to be the same."""
        first, name, other = self._first, self._files[0], self._files[index]
        if not self._any_size and header[:2] != first[:2]:
            side = min(*first[:2], *header[:2])
            sizes = f"{name} is {_size(first)}, {other} is {_size(header)}"
            remedy = f"resize them to one size, such as data.image_size={side}"
            raise ConfigError("image_size", None, f"the images differ in size: {sizes}; {remedy}")
        if not self._any_color and header.grey != first.grey:
            grey, rgb = (name, other) if first.grey else (other, name)
            problem = f"{grey} is grey but {rgb} is in colour"
            raise ConfigError("color", "auto", f"{problem}; set data.color=rgb or data.color=grey")

    def _for_each(self, visit: Callable[[int], None]) -> None:
        """Visit every index on a few threads, with a progress bar; raises what the first raises."""
        from tqdm import tqdm

        def visit_chunk(start: int) -> int:
            chunk = range(start, min(start + _CHUNK, len(self)))
            for index in chunk:
                visit(index)
            return len(chunk)

        pool = ThreadPoolExecutor(min(os.cpu_count() or 1, 16))
        bar = tqdm(
            total=len(self),
            desc="reading images",
            delay=1,
            mininterval=0.5,
            leave=False,
            file=sys.stderr,
        )
        try:
            for done in pool.map(visit_chunk, range(0, len(self), _CHUNK)):
                bar.update(done)
        finally:
            bar.close()
            pool.shutdown(cancel_futures=True)


def find_images(root: str) -> list[str]:
    """The picture files below ``root``, relative to it, in an order that depends on names alone.

    Raises ConfigError (key ``path``) if there is no such folder, or no picture in it.
    """
    if not os.path.isdir(root):
        problem = "is a file, not a folder" if os.path.exists(root) else "no such folder"
        raise ConfigError("path", root, f"{problem}; set data.path to a folder of images")
    files = list(_walk(root, "", (os.path.realpath(root),)))
    if not files:
        suffixes = " ".join(SUFFIXES)
        problem = f"holds no images ({suffixes}), nor do the folders in it"
        raise ConfigError("path", root, f"{problem}; set data.path to a folder of images")
    return files


def _walk(root: str, below: str, above: tuple[str, ...]) -> Iterator[str]:
    """Files in ``root/below`` and deeper; links to a folder ``above`` are not followed again."""
    folder = os.path.join(root, below)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        problem = f"cannot be listed ({error.strerror}); make it readable or move it away"
        raise ConfigError("path", folder, problem) from error
    for entry in entries:
        relative = os.path.join(below, entry.name)
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry.path):
            real = os.path.realpath(entry.path)
            if real not in above:
                yield from _walk(root, relative, (*above, real))
        elif entry.name.lower().endswith(SUFFIXES) and os.path.isfile(entry.path):
            yield relative


def _classes(files: list[str]) -> tuple[list[int], list[str]]:
    """The label of each file, and the names of the classes."""
    names = [os.path.dirname(file).split(os.sep)[0] for file in files]
    if "" in names:
        problem = f"{files[names.index('')]} is in no class folder; put it into one, named after"
        raise ConfigError("class_cond", True, f"{problem} its class, or set data.class_cond=false")
    classes = sorted(set(names))
    numbers = {name: number for number, name in enumerate(classes)}
    return [numbers[name] for name in names], classes


def _size(header: Header) -> str:
    return f"{header.width} wide and {header.height} high"
