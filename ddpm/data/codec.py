"""Codecs: raw data to model space and back, and to and from files; nothing else rescales."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ddpm.data.arrays import read_arrays
from ddpm.data.class_rows import Rows
from ddpm.data.decoding import quiet_about_size, read_pixels
from ddpm.data.depth import Levels, of_one_file
from ddpm.data.gifs import write_frames
from ddpm.data.pictures import grid, plots
from ddpm.data.scaling import Bytes, Range, Whole
from ddpm.errors import ConfigError, did_you_mean, require
from ddpm.files import replacing

Axes = Literal["NCL", "NLC"]
"""Order of the axes of sequences in files: samples, channels, length, or the length before."""


_UNUSUAL = re.compile(r"[^\w.-]+")  # in file names
_LONGEST_CLASS = 40  # letters of a class name in the name of a file


class Codec(ABC):
    """What has to be known of the data once training is over, saved as JSON in the checkpoint.

    A subclass names its ``kind``; its constructor takes what :meth:`state` gives, less the kind.
    """

    kind: ClassVar[str]
    """The name under which :func:`codec_from_state` finds the class."""
    formats: ClassVar[tuple[str, ...]]
    """The file formats that :meth:`write` knows."""
    default_format: ClassVar[str]
    extra_formats: ClassVar[tuple[str, ...]] = ()
    """Formats that samples are written in beside the default one, where none is asked for."""
    folders: ClassVar[Mapping[str, str]] = {}
    """Formats of one file an item, and the folder of each."""
    has_motion: ClassVar[bool] = False
    """Whether :meth:`write_motion_gif` writes a GIF."""
    unit: ClassVar[str] = "item"
    """What one item is called where a rate is told: ``img``."""
    bounds: tuple[float, float] = (-1.0, 1.0)
    """The range of the data in model space, for clipping."""
    shape: tuple[int, ...]
    """Shape of one item, ``(C, *spatial)``."""
    condition_mask: torch.Tensor | None = None
    """Bool, broadcasts to ``shape``: True where entries are given clean, as a condition, in
    training and in sampling; None where nothing is."""
    condition_channels: tuple[int, ...] = ()
    """The channels that are given whole."""
    _kinds: ClassVar[dict[str, type[Codec]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        kind = cls.__dict__.get("kind")
        if kind is not None:
            taken = Codec._kinds.setdefault(kind, cls)
            if taken.__qualname__ != cls.__qualname__:
                raise TypeError(f"{cls.__qualname__}: {taken.__qualname__} is already '{kind}'")

    @abstractmethod
    def encode(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw ``(B, *shape)`` to model space: float32 within ``bounds``, on the same device."""

    @abstractmethod
    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Model space ``(B, *shape)``, any float type, to raw data on the same device."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What :func:`codec_from_state` needs to make this codec again, as plain JSON."""

    @abstractmethod
    def read(self, path: str) -> torch.Tensor:
        """One raw item ``(C, *spatial)`` from a user's file; raises ConfigError (key ``path``)."""

    def pixels(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw images as uint8; of other data, as they are."""
        return raw

    def read_condition(self, path: str) -> torch.Tensor:
        """Raw items ``(N, *shape)`` from a user's file that holds what is ``given``.

        Entries that are not given have any valid value. Raises ConfigError (key ``path``).
        """
        problem = "nothing is given to this model; it was trained without a condition"
        raise ConfigError("path", str(path), problem)

    def file_warnings(self, path: str) -> tuple[str, ...]:
        """What a user should know of a file that :meth:`read` or :meth:`read_condition` takes.

        Like :attr:`ddpm.data.Dataset.warnings`. Raises ConfigError (key ``path``).
        """
        return ()

    def describe_count(self, count: int) -> str:
        """Return a number of items and the shape of one in words."""
        return f"{count:,} samples of {'x'.join(map(str, self.shape))}"

    @abstractmethod
    def picture(
        self, raw: torch.Tensor, *, columns: int | None = None, rows: Rows = None
    ) -> Image.Image:
        """A picture of the raw batch ``(N, *shape)``, N at least 1.

        Args:
            raw: the batch.
            columns: of the picture; None = what suits the number of items.
            rows: the items of each class; None = in their order.
        """

    @abstractmethod
    def array(self, raw: torch.Tensor) -> npt.NDArray[Any]:
        """The raw batch ``(N, *shape)`` as the array that :meth:`write` puts into files."""

    def write(
        self,
        raw: torch.Tensor,
        folder: Path,
        *,
        format: str,
        labels: torch.Tensor | None = None,
        first: int = 0,
        classes: Sequence[str] | None = None,
    ) -> list[Path]:
        """Write the raw batch ``(N, *shape)`` below ``folder``, and tell which files it became.

        ``npz``: samples.npz with arr_0 and, given labels ``(N,)``, arr_1 in int64. ``npy``:
        samples.npy. Both are replaced if there. ``first`` is the number of the first item in
        formats of one file an item; ``classes``, the names of the classes of all N items, become
        part of the names of these files. Raises ConfigError for an unknown format (key ``format``)
        and for what the file system refuses (key ``path``).
        """
        array = self.array(raw)
        if format == "npz":
            arrays = [array] if labels is None else [array, labels.cpu().numpy().astype(np.int64)]
            return [_save(folder / "samples.npz", lambda file: np.savez(file, *arrays))]
        if format == "npy":
            return [_save(folder / "samples.npy", lambda file: np.save(file, array))]
        raise ConfigError("format", format, f"unknown{did_you_mean(format, self.formats)}")

    def animate(
        self,
        frames: Iterable[torch.Tensor],
        path: Path,
        *,
        duration_ms: int = 100,
        hold_ms: int = 2000,
        columns: int | None = None,
        rows: Rows = None,
    ) -> Path:
        """Write raw batches ``(N, *shape)`` as a GIF of their pictures; the last stays longer."""
        pictures = [self.picture(raw, columns=columns, rows=rows) for raw in frames]
        write_frames(pictures, path, [duration_ms] * (len(pictures) - 1) + [hold_ms])
        return path

    def write_motion_gif(
        self,
        raw: torch.Tensor,
        path: Path,
        *,
        columns: int | None = None,
        rows: Rows = None,
        duration_ms: int = 100,
    ) -> Path | None:
        """Write data that move in time as one GIF of the raw batch ``(N, *shape)`` moving.

        Gives the path; of data that do not move, None, and writes nothing.
        """
        return None

    def file_names(
        self, formats: Iterable[str], count: int, classes: Sequence[str] | None = None
    ) -> list[str]:
        """Names of the files that :meth:`write` makes of ``count`` items in these formats."""
        names = []
        for format in formats:
            several = format in self.folders
            names += self._item_names(format, 0, count, classes) if several else []
            names += [] if several else [f"samples.{format}"]
        return names

    def output_names(self, formats: Iterable[str]) -> list[str]:
        """Names of the folders and files that :meth:`write` makes in these formats."""
        return [self.folders.get(format, f"samples.{format}") for format in formats]

    def _item_names(
        self, format: str, first: int, count: int, classes: Sequence[str] | None
    ) -> list[str]:
        """Names of one file per item: ``images/00003.png``, of class 5 ``images/00003-5.png``."""
        endings = [""] * count
        if classes is not None:
            endings = ["-" + _UNUSUAL.sub("_", name)[:_LONGEST_CLASS] for name in classes]
        place = self.folders[format]
        return [f"{place}/{first + n:05d}{endings[n]}.{format}" for n in range(count)]


def _save(path: Path, save: Callable[[Any], None]) -> Path:
    with replacing(path) as aside, open(aside, "wb") as file:
        save(file)
    return path


def codec_from_state(state: Mapping[str, Any]) -> Codec:
    """The codec whose :meth:`Codec.state` this is; raises ConfigError (key ``codec``)."""
    if not isinstance(state, Mapping) or "kind" not in state:
        raise ConfigError("codec", state, "not the state of a codec: it has no 'kind'")
    options = {name: value for name, value in state.items() if name != "kind"}
    known = Codec._kinds
    kind = known.get(str(state["kind"]))
    if kind is None:
        hint = did_you_mean(str(state["kind"]), known)
        raise ConfigError("codec", state["kind"], f"unknown kind of data{hint}")
    try:
        inspect.signature(kind).bind(**options)
        return kind(**options)
    except (TypeError, ValueError, ConfigError) as error:
        raise ConfigError("codec", dict(state), f"malformed: {error}") from error


def checked_shape(shape: Iterable[int], names: str) -> tuple[int, ...]:
    """``shape`` as a tuple of as many sizes as there are ``names``; raises ConfigError."""
    sizes = tuple(shape)
    whole = all(type(size) is int and size > 0 for size in sizes)
    if not whole or len(sizes) != len(names.split()):
        raise ConfigError("shape", sizes, f"must be positive whole numbers ({names})")
    return sizes


class ImageCodec(Codec):
    """Images: raw uint8 0..255, or 16-bit levels from ``low`` to ``high``, is -1..1 in model space.

    ``shape`` is (channels, height, width); pictures in files have 1 channel (grey) or 3 (RGB).
    Without ``low`` and ``high`` raw data are uint8; with them, they are grey, whole numbers in
    float32, and written as 16-bit PNG or arrays of uint16.
    """

    kind = "images"
    unit = "img"
    formats = ("png", "npz", "npy")
    default_format = "png"
    folders = {"png": "images"}

    def __init__(
        self, shape: Iterable[int], low: float | None = None, high: float | None = None
    ) -> None:
        self.shape = checked_shape(shape, "channels height width")
        require((low is None) == (high is None), "low", low, f"and high={high} go together")
        self._scaling: Bytes | Whole = Bytes()
        self.levels = Levels()
        if low is not None and high is not None:
            require(self.shape[0] == 1, "shape", self.shape, "has 16-bit levels in colour")
            self.levels = Levels.declared(16, low, high)
            self._scaling = Whole(float(low), float(high))

    def encode(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw ``(B, C, H, W)`` to float32 in -1..1."""
        return self._scaling.encode(raw)

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Model space to raw: the nearest of the values, clamped to the range."""
        return self._scaling.decode(x)

    def pixels(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw data as uint8, the range as 0..255: what is shown, and what is compared."""
        return raw if raw.dtype == torch.uint8 else Bytes().decode(self.encode(raw))

    def state(self) -> dict[str, Any]:
        """Kind, shape, and the range of 16-bit levels."""
        levels = self.levels
        limits = {"low": levels.low, "high": levels.high} if levels.bits == 16 else {}
        return {"kind": self.kind, "shape": list(self.shape), **limits}

    def read(self, path: str) -> torch.Tensor:
        """A picture file as raw ``(C, H, W)``, scaled to cover that and cut at the centre."""
        self._need_picture_channels("path", path, "train on grey or RGB images")
        channels, height, width = self.shape
        with quiet_about_size():
            _, pixels = read_pixels(path, channels, (height, width), self.levels)
        return torch.from_numpy(pixels.copy())

    def file_warnings(self, path: str) -> tuple[str, ...]:
        """A line if 16-bit values use a small part of the model's range."""
        with quiet_about_size():
            header, _ = read_pixels(path, 1, None, self.levels)
        return of_one_file(path, header.seen, self.levels)

    def picture(
        self, raw: torch.Tensor, *, columns: int | None = None, rows: Rows = None
    ) -> Image.Image:
        """A grid; see :func:`ddpm.data.pictures.grid`."""
        return grid(self.pixels(raw.detach()).cpu().numpy(), columns, rows)

    def array(self, raw: torch.Tensor) -> npt.NDArray[Any]:
        """Channels last, as programs that evaluate samples expect: ``(N, H, W, C)``."""
        array = np.ascontiguousarray(raw.cpu().numpy().transpose(0, 2, 3, 1))
        return array if self.levels.bits == 8 else array.astype(np.uint16)

    def write(
        self,
        raw: torch.Tensor,
        folder: Path,
        *,
        format: str,
        labels: torch.Tensor | None = None,
        first: int = 0,
        classes: Sequence[str] | None = None,
    ) -> list[Path]:
        """As :meth:`Codec.write`; ``png`` writes images/00000.png and so on, from ``first``."""
        if format != "png":
            return super().write(raw, folder, format=format, labels=labels, first=first)
        self._need_picture_channels("format", format, "use format=npz")
        paths = []
        names = self._item_names(format, first, len(raw), classes)
        for name, pixels in zip(names, self.array(raw), strict=True):
            path = Path(folder, name)
            with replacing(path) as aside:
                image = Image.fromarray(pixels[:, :, 0] if self.shape[0] == 1 else pixels)
                image.save(aside, "PNG")
            paths.append(path)
        return paths

    def _need_picture_channels(self, key: str, value: str, remedy: str) -> None:
        channels = self.shape[0]
        if channels not in (1, 3):
            problem = f"a picture holds 1 or 3 channels, these images have {channels}; {remedy}"
            raise ConfigError(key, value, problem)


class SequenceCodec(Codec):
    """Sequences: raw float32 from ``low`` to ``high`` is -1..1 in model space; never clamped.

    ``shape`` is (channels, length). In files the axes are in the order of the training data,
    ``axes``: (channels, length) for "NCL", (length, channels) for "NLC".
    """

    kind = "sequences"
    unit = "seq"
    formats = ("npy", "npz")
    default_format = "npy"

    def __init__(self, shape: Iterable[int], low: float, high: float, axes: Axes = "NCL") -> None:
        self.shape = checked_shape(shape, "channels length")
        require(axes in get_args(Axes), "axes", axes, "must be NCL or NLC")
        self._last = axes == "NLC"  # channels last
        self.low, self.high = float(low), float(high)
        self._scaling = Range(self.low, self.high)

    def encode(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw ``(B, C, L)`` to float32, ``low`` to -1 and ``high`` to 1."""
        return self._scaling.encode(raw)

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Model space to raw float32 ``(B, C, L)``."""
        return self._scaling.decode(x)

    def state(self) -> dict[str, Any]:
        """Kind, shape and range, and axes other than the usual ones."""
        state = {"kind": self.kind, "shape": list(self.shape), "low": self.low, "high": self.high}
        return {**state, "axes": "NLC"} if self._last else state

    def describe_count(self, count: int) -> str:
        """Return the number of sequences, their channels and their length in words."""
        return f"{count:,} sequences of {named(*self.shape)}"

    def read(self, path: str) -> torch.Tensor:
        """Read an .npy, .npz or .pt file of one sequence as float32 ``(C, L)``.

        Its axes are those of the training data; ``(L,)`` is one channel.
        """
        values, _ = read_arrays(str(path), None, want_labels=False)
        item = values[None] if values.ndim == 1 else values.T if self._last else values
        if item.shape != self.shape:
            own, names = (self.shape, "channels, length")
            if self._last:
                own, names = (self.shape[::-1], "length, channels")
            problem = f"has the shape {values.shape}, but the model's sequences {own} ({names})"
            raise ConfigError("path", str(path), f"{problem}; cut it to that")
        return torch.from_numpy(np.ascontiguousarray(item))

    def picture(
        self, raw: torch.Tensor, *, columns: int | None = None, rows: Rows = None
    ) -> Image.Image:
        """Line plots of the first 16; see :func:`ddpm.data.pictures.plots`."""
        return plots(raw.detach().cpu().numpy(), self.low, self.high, columns, rows)

    def array(self, raw: torch.Tensor) -> npt.NDArray[np.float32]:
        """Return float32 in the axes of the training data: ``(N, C, L)`` or ``(N, L, C)``."""
        array = raw.cpu().numpy()
        return np.ascontiguousarray(array.swapaxes(1, 2)) if self._last else array


def named(channels: int, length: int) -> str:
    """Return the size of a sequence in words: ``2 channels, length 128``."""
    return f"{channels} channel{'s' if channels != 1 else ''}, length {length}"
