"""Where images come from that are to be compared: a folder, an .npz, a data set, the memory."""

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

_CHUNK = 256  # images that are hashed at once


class Images(ABC):
    """Finitely many uint8 images of one shape, (C, H, W)."""

    shape: tuple[int, ...]
    """(C, H, W)."""
    warnings: tuple[str, ...] = ()
    """As :attr:`ddpm.data.Dataset.warnings`."""
    shown: bool = True
    """Whether hashing shows a bar; one process of several does."""

    @abstractmethod
    def __len__(self) -> int:
        """How many."""

    @abstractmethod
    def read(self, indices: Sequence[int]) -> Tensor:
        """Those images as uint8 (n, C, H, W) on the CPU."""

    @abstractmethod
    def _named(self) -> dict[str, Any]:
        """Where they come from, in words that a reader can follow."""

    _sha256: str | None = None

    @property
    def sha256(self) -> str:
        """Of count, shape and pixels in their order; names and kinds of files do not enter."""
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
        """Take the hash that another process has computed of the same images."""
        self._sha256 = sha256

    def provenance(self) -> dict[str, Any]:
        """Provenance: where from, count, shape (C, H, W) and hash, as plain JSON."""
        told = {"num_images": len(self), "shape": list(self.shape), "sha256": self.sha256}
        return {**self._named(), **told}


class InMemoryImages(Images):
    """Images in memory, uint8 (N, C, H, W): samples as they were drawn."""

    def __init__(self, pixels: Tensor, source: str = "memory") -> None:
        assert pixels.dtype == torch.uint8 and pixels.ndim == 4, (pixels.dtype, pixels.shape)
        self._pixels, self._source = pixels, source
        self.shape = tuple(pixels.shape[1:])

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, indices: Sequence[int]) -> Tensor:
        """A copy of them."""
        return self._pixels[torch.as_tensor(indices, dtype=torch.int64)].contiguous()

    def _named(self) -> dict[str, Any]:
        return {"source": self._source}


class DatasetImages(Images):
    """The images of a data set, without labels and unmirrored."""

    def __init__(self, data: Dataset, named: dict[str, Any], *, key: str = "data") -> None:
        """Refuse what holds no images.

        Args:
            data: of images (C, H, W); levels of 16 bits become uint8, see
                :meth:`ddpm.data.ImageCodec.pixels`.
            named: what provenance says of it: its class, split, path.
            key: where the config names it.

        Raises:
            ConfigError: sequences, videos.
        """
        self._data, self._names = data, dict(named)
        self.shape = tuple(data.shape)
        kind = data.codec.kind
        problem = f"holds {kind}, and fidelity is of images; leave fid, kid, isc and prc out"
        if not isinstance(data.codec, ImageCodec):
            raise ConfigError(key, None, problem)
        self._codec = data.codec

    def __len__(self) -> int:
        return len(self._data)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Raw items as uint8, with the key at which our own data sets mirror nothing."""
        return self._codec.pixels(self._data.fetch(indices, [UNAUGMENTED_KEY] * len(indices))[0])

    def _named(self) -> dict[str, Any]:
        levels = self._codec.levels
        read = {} if levels.bits == 8 else {"levels_as_uint8": [levels.low, levels.high]}
        return {**self._names, **read}


class RandomSubset(Images):
    """So many of other images, chosen at random: always the same ones."""

    def __init__(self, whole: Images, count: int) -> None:
        """Choose ``count``, at most as many as there are."""
        ranks = mix_array(RandomStream.IMAGE_SUBSET, np.arange(len(whole)))
        self._whole, self._indices = whole, np.sort(np.argsort(ranks, kind="stable")[:count])
        self.shape, self.shown = whole.shape, whole.shown

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Those of the whole."""
        return self._whole.read(self._indices[np.asarray(indices, dtype=np.int64)].tolist())

    def _named(self) -> dict[str, Any]:
        return {**self._whole._named(), "chosen_at_random_from": len(self._whole)}


class _Pictures(Folder):
    """A folder of which a range may be declared for the pictures of another one."""

    _requires_16_bit = False


class FolderImages(DatasetImages):
    """The pictures in a folder and the folders below it; see :class:`ddpm.data.Folder`."""

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
        """Read them, in 8 bits.

        Args:
            path: the folder.
            key: the option that names it.
            image_size: as that of :class:`ddpm.data.Folder`, like the next ones.
            color: grey or colour.
            low: black in 16-bit pictures.
            high: white in 16-bit pictures.

        Raises:
            ConfigError: (key ``key``) what keeps them from becoming one set.
        """
        try:
            options: dict[str, Any] = {"color": color, "low": low, "high": high}
            data = _Pictures(path=path, image_size=image_size, bits=8, **options)
        except ConfigError as error:
            where = str(error.value) if error.key == "path" else path
            raise error.renamed(key, where) from error
        resize = "none" if image_size is None else "scaled to cover, then cut at the centre"
        named: dict[str, Any] = {"source": str(path), "resize": resize}
        named |= {} if image_size is None else {"image_size": image_size}
        named |= {k: v for k, v in options.items() if v not in (None, "auto")}
        super().__init__(data, named, key=key)
        said = data.warnings
        self.warnings = tuple(x.renamed() if isinstance(x, Advice) else x for x in said)


class NpzImages(InMemoryImages):
    """The array ``arr_0`` of an .npz, (N, H, W, C), as programs that sample write it.

    An .npy holds that array alone. It is uint8 with 1 or 3 channels, or the 16-bit levels that
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
        """Read it; labels beside it are ignored.

        Args:
            path: the file.
            key: the option that names it.
            low: black in uint16 images; None = 0.
            high: white in uint16 images; None = 65535.

        Raises:
            ConfigError: (key ``key``) there is no such array, or none of images.
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
        said = range_warnings(path, [seen], levels)
        self.warnings = tuple(each.renamed() for each in said)
        return levels.to_bytes(array.astype(np.float64))


def read_npz(path: str, key: str, *names: str) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays ``names`` of an .npz; pickled objects are refused.

    Raises:
        ConfigError: (key ``key``) it is not there, damaged, or lacks one of them.
    """
    place = Path(path)
    require(place.is_file(), key, path, "there is no such file")
    try:
        if not is_zipfile(place):
            raise ValueError("it is no zip archive")
        with np.load(place, allow_pickle=False) as held:
            there = list(held.keys())
            if set(names) <= set(there):
                return {name: held[name] for name in names}
    except Exception as error:  # damaged zip, header or pickle: each has errors of its own
        reason = str(error).split("\n")[0]
        problem = f"cannot be read as an .npz ({reason}); save it anew"
        raise ConfigError(key, path, problem) from error
    problem = f"holds no {' and '.join(names)} (there are: {', '.join(there) or 'none'})"
    raise ConfigError(key, path, problem)


def read_npy(path: str, key: str) -> np.ndarray[Any, Any]:
    """Return the array of an .npy; pickled objects are refused.

    Raises:
        ConfigError: (key ``key``) it is not there, or damaged.
    """
    place = Path(path).expanduser()
    require(place.is_file(), key, path, "there is no such file")
    try:
        return np.load(place, allow_pickle=False)
    except Exception as error:  # damaged headers or pickles: each has errors of its own
        reason = str(error).split("\n")[0]
        problem = f"cannot be read as an .npy ({reason}); save it again"
        raise ConfigError(key, path, problem) from error


def file_sha256(path: Path, key: str) -> str:
    """The sha256 of a file; raises ConfigError (key ``key``) where it cannot be read."""
    try:
        return files.file_sha256(path)
    except OSError as error:
        problem = f"cannot be read ({error.strerror}); make it readable"
        raise ConfigError(key, str(path), problem) from error


def contains_statistics(path: str) -> bool:
    """Whether a file is one of statistics: ours, or an .npz with ``mu`` and ``sigma``.

    It reads names only; what is damaged or no such file at all gives False.
    """
    place = Path(path)
    if place.suffix == ".safetensors":
        return place.is_file()
    try:
        with np.load(place, allow_pickle=False) as held:
            return {"mu", "sigma"} <= set(held.keys())
    except Exception:
        return False
