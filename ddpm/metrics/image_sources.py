"""Sources of images for metrics: folders, .npz files, data sets and memory."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from zipfile import is_zipfile

import numpy as np
import torch
from torch import Tensor

from ddpm import files
from ddpm.console import progress
from ddpm.data import UNAUGMENTED_KEY, Dataset, Folder, ImageCodec
from ddpm.data.depth import Levels, range_warnings
from ddpm.errors import Advice, ConfigError, require
from ddpm.seeding import RandomStream, mix_array

_CHUNK = 256  # images per update of the hash


class Images(ABC):
    """A finite sequence of uint8 images (C, H, W) of one shape."""

    shape: tuple[int, ...]
    """Shape (C, H, W) of an image."""
    warnings: tuple[str, ...] = ()
    """Warnings about the files, one line each."""
    shown: bool = True
    """True if hashing shows a progress bar, as on the main process."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def read(self, indices: Sequence[int]) -> Tensor:
        """Return the images of these indices as uint8 (n, C, H, W) on the CPU."""

    @abstractmethod
    def _origin(self) -> dict[str, Any]:
        """Return the provenance without count, shape and hash."""

    _sha256: str | None = None

    @property
    def sha256(self) -> str:
        """Hash of count, shape and pixels in their order, whatever the files are."""
        if self._sha256 is not None:
            return self._sha256
        digest = hashlib.sha256(repr((len(self), *self.shape)).encode())
        with progress(len(self), "hashing images", "img", shown=self.shown) as bar:
            for start in range(0, len(self), _CHUNK):
                indices = range(start, min(start + _CHUNK, len(self)))
                digest.update(self.read(indices).contiguous().numpy().data)
                bar.update(len(indices))
        self._sha256 = digest.hexdigest()
        return self._sha256

    def set_sha256(self, sha256: str) -> None:
        """Set the hash that another process has computed."""
        self._sha256 = sha256

    def provenance(self) -> dict[str, Any]:
        """Return source, count, shape (C, H, W) and hash, as plain JSON."""
        content = {"num_images": len(self), "shape": list(self.shape), "sha256": self.sha256}
        return {**self._origin(), **content}


class InMemoryImages(Images):
    """Images in memory.

    Args:
        pixels: uint8 (N, C, H, W).
        source: for the provenance.
    """

    def __init__(self, pixels: Tensor, source: str = "memory") -> None:
        assert pixels.dtype == torch.uint8 and pixels.ndim == 4, (pixels.dtype, pixels.shape)
        self._pixels, self._source = pixels, source
        self.shape = tuple(pixels.shape[1:])

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return a copy of these images."""
        return self._pixels[torch.as_tensor(indices, dtype=torch.int64)].contiguous()

    def _origin(self) -> dict[str, Any]:
        return {"source": self._source}


class DatasetImages(Images):
    """Images of a data set, without labels and without augmentation."""

    def __init__(self, data: Dataset, provenance: dict[str, Any], *, key: str = "data") -> None:
        """Create the source.

        Args:
            data: of images (C, H, W); levels of 16 bits become uint8, see
                :meth:`ddpm.data.ImageCodec.pixels`.
            provenance: class, split and path of the data.
            key: the option that names the data.

        Raises:
            ConfigError: data of sequences or videos.
        """
        self._data, self._provenance = data, dict(provenance)
        self.shape = tuple(data.shape)
        kind = data.codec.kind
        problem = f"contains {kind}, but fid, kid, isc and prc require images; leave them out"
        if not isinstance(data.codec, ImageCodec):
            raise ConfigError(key, None, problem)
        self._codec = data.codec

    def __len__(self) -> int:
        return len(self._data)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return raw items as uint8, without augmentation."""
        return self._codec.pixels(self._data.fetch(indices, [UNAUGMENTED_KEY] * len(indices))[0])

    def _origin(self) -> dict[str, Any]:
        levels = self._codec.levels
        read = {} if levels.bits == 8 else {"levels_as_uint8": [levels.low, levels.high]}
        return {**self._provenance, **read}


class RandomSubset(Images):
    """A fixed random subset of other images.

    Args:
        whole: the other images.
        count: size of the subset, at most ``len(whole)``.
    """

    def __init__(self, whole: Images, count: int) -> None:
        ranks = mix_array(RandomStream.IMAGE_SUBSET, np.arange(len(whole)))
        self._whole, self._indices = whole, np.sort(np.argsort(ranks, kind="stable")[:count])
        self.shape, self.shown = whole.shape, whole.shown

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return these images of the subset."""
        return self._whole.read(self._indices[np.asarray(indices, dtype=np.int64)].tolist())

    def _origin(self) -> dict[str, Any]:
        return {**self._whole._origin(), "chosen_at_random_from": len(self._whole)}


class _Pictures(Folder):
    """A folder whose ``low`` and ``high`` may be set for the images of another folder."""

    _requires_16_bit = False


class FolderImages(DatasetImages):
    """Images of a folder and its subfolders; see :class:`ddpm.data.Folder`."""

    def __init__(
        self,
        path: str,
        *,
        key: str = "samples",
        image_size: int | tuple[int, int] | None = None,
        color: Literal["auto", "rgb", "grey"] = "auto",
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        """Read the images, in 8 bits.

        Args:
            path: the folder.
            key: the option that names it.
            image_size: as that of :class:`ddpm.data.Folder`, like the next ones.
            color: grey or colour.
            low: black in 16-bit pictures.
            high: white in 16-bit pictures.

        Raises:
            ConfigError: (key ``key``) images that differ in size or colour, or that cannot be read.
        """
        try:
            options: dict[str, Any] = {"color": color, "low": low, "high": high}
            data = _Pictures(path=path, image_size=image_size, bits=8, disk_cache=False, **options)
        except ConfigError as error:
            where = str(error.value) if error.key == "path" else path
            raise error.renamed(key, where) from error
        resize = "none" if image_size is None else "scaled to cover, then cut at the centre"
        provenance: dict[str, Any] = {"source": str(path), "resize": resize}
        provenance |= {} if image_size is None else {"image_size": image_size}
        provenance |= {k: v for k, v in options.items() if v not in (None, "auto")}
        super().__init__(data, provenance, key=key)
        self.warnings = tuple(
            each.renamed() if isinstance(each, Advice) else each for each in data.warnings
        )


class NpzImages(InMemoryImages):
    """The array ``arr_0`` of an .npz, (N, H, W, C), the format of other sampling programs.

    An .npy contains only that array. It is uint8 with 1 or 3 channels, or the 16-bit levels that
    :class:`ddpm.data.ImageCodec` writes, uint16 with 1 channel, which become uint8.
    """

    def __init__(
        self,
        path: str,
        *,
        key: str = "samples",
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        """Read the array; labels in the file are ignored.

        Args:
            path: the file.
            key: the option that names it.
            low: black in uint16 images; None = 0.
            high: white in uint16 images; None = 65535.

        Raises:
            ConfigError: (key ``key``) the array is missing, or does not contain images.
        """
        single = path.endswith(".npy")
        array = read_npy(path, key) if single else read_npz(path, key, "arr_0")["arr_0"]
        remedy = "save uint8 images of shape (N, H, W, C) with 1 or 3 channels"
        shape = ", ".join(map(str, array.shape))
        channels = {np.dtype(np.uint8): (1, 3), np.dtype(np.uint16): (1,)}.get(array.dtype, ())
        good = array.ndim == 4 and array.shape[3] in channels
        which = "array" if single else "arr_0"
        problem = f"its {which} is {array.dtype} of shape ({shape}); {remedy}"
        require(good and array.size > 0, key, path, problem)
        if array.dtype == np.uint16:
            try:
                array = self._in_eight_bits(array, path, Levels.from_range(8, low, high))
            except ConfigError as error:
                raise error.renamed(key, path) from error
        super().__init__(torch.from_numpy(array).permute(0, 3, 1, 2), path)

    def _in_eight_bits(
        self, array: np.ndarray[Any, Any], path: str, levels: Levels
    ) -> np.ndarray[Any, Any]:
        seen = levels.measure(array, path)
        self.warnings = tuple(each.renamed() for each in range_warnings(path, [seen], levels))
        return levels.to_bytes(array.astype(np.float64))


def read_npz(path: str, key: str, *names: str) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays ``names`` of an .npz; pickled objects are rejected.

    Raises:
        ConfigError: (key ``key``) the file is missing or damaged, or lacks an array.
    """
    place = Path(path)
    require(place.is_file(), key, path, "file not found")
    try:
        if not is_zipfile(place):
            raise ValueError("it is not a zip archive")
        with np.load(place, allow_pickle=False) as held:
            there = list(held.keys())
            if set(names) <= set(there):
                return {name: held[name] for name in names}
    except Exception as error:  # damaged zip, header or pickle: each has errors of its own
        reason = str(error).split("\n")[0]
        problem = f"cannot be read as an .npz ({reason}); save it again"
        raise ConfigError(key, path, problem) from error
    problem = f"contains no {' and '.join(names)} (there are: {', '.join(there) or 'none'})"
    raise ConfigError(key, path, problem)


def read_npy(path: str, key: str) -> np.ndarray[Any, Any]:
    """Return the array of an .npy; pickled objects are rejected.

    Raises:
        ConfigError: (key ``key``) the file is missing or damaged.
    """
    place = Path(path).expanduser()
    require(place.is_file(), key, path, "file not found")
    try:
        return np.load(place, allow_pickle=False)
    except Exception as error:  # damaged headers or pickles: each has errors of its own
        reason = str(error).split("\n")[0]
        problem = f"cannot be read as an .npy ({reason}); save it again"
        raise ConfigError(key, path, problem) from error


def file_sha256(path: Path, key: str) -> str:
    """Return the sha256 of a file.

    Raises:
        ConfigError: (key ``key``) the file cannot be read.
    """
    try:
        return files.file_sha256(path)
    except OSError as error:
        problem = f"cannot be read ({error.strerror}); make it readable"
        raise ConfigError(key, str(path), problem) from error


def contains_statistics(path: str) -> bool:
    """Return True for a file of statistics: .safetensors, or an .npz with ``mu`` and ``sigma``.

    Only names are read. False for damaged and missing files.
    """
    place = Path(path)
    if place.suffix == ".safetensors":
        return place.is_file()
    try:
        with np.load(place, allow_pickle=False) as held:
            return {"mu", "sigma"} <= set(held.keys())
    except Exception:
        return False
