"""Base class of codecs, which convert raw data to model space, back, and to and from files.

Data are rescaled nowhere else.
"""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ddpm.data.class_rows import Rows
from ddpm.data.gifs import write_frames
from ddpm.data.scaling import Scaling
from ddpm.errors import ConfigError, did_you_mean
from ddpm.files import replacing

_UNUSUAL = re.compile(r"[^\w.-]+")  # replaced in file names
_MAX_CLASS_LENGTH = 40  # characters of a class name in a file name


class Codec(ABC):
    """Conversion of raw data to model space, back, and to and from files.

    A checkpoint stores its :meth:`state`, so that sampling needs no data set. A subclass defines
    its ``kind``; its constructor accepts the entries of :meth:`state` but the kind.
    """

    kind: ClassVar[str]
    """Name by which :func:`codec_from_state` identifies the class."""
    formats: ClassVar[tuple[str, ...]]
    """File formats that :meth:`write` supports."""
    default_format: ClassVar[str]
    """File format of samples, if the user does not choose one."""
    extra_formats: ClassVar[tuple[str, ...]] = ()
    """Formats written in addition to the default one, if the user does not choose one."""
    folders: ClassVar[Mapping[str, str]] = {}
    """Folder of each format that has one file per item."""
    has_motion: ClassVar[bool] = False
    """Whether :meth:`write_motion_gif` writes a GIF."""
    unit: ClassVar[str] = "item"
    """Name of an item in rates, such as ``img``."""
    bounds: tuple[float, float] = (-1.0, 1.0)
    """Range of the data in model space, for clipping."""
    shape: tuple[int, ...]
    """Shape of an item, ``(C, *spatial)``."""
    condition_mask: torch.Tensor | None = None
    """Bool tensor, broadcast to ``shape``: true for entries that are a condition, which training
    and sampling keep clean; None for data without a condition."""
    condition_channels: tuple[int, ...] = ()
    """Channels that are a condition as a whole."""
    _kinds: ClassVar[dict[str, type[Codec]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        kind = cls.__dict__.get("kind")
        if kind is not None:
            registered = Codec._kinds.setdefault(kind, cls)
            if registered.__qualname__ != cls.__qualname__:
                other = registered.__qualname__
                raise TypeError(f"{cls.__qualname__}: {other} is already '{kind}'")

    @abstractmethod
    def encode(self, raw: torch.Tensor) -> torch.Tensor:
        """Convert raw data to model space.

        Args:
            raw: ``(B, *shape)``.

        Returns:
            ``(B, *shape)``, float32 within ``bounds``, on the same device.
        """

    @abstractmethod
    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Convert model space to raw data.

        Args:
            x: ``(B, *shape)``, of any floating-point type.

        Returns:
            Raw data ``(B, *shape)`` on the same device.
        """

    @property
    def scaling(self) -> Scaling | None:
        """Map of raw values to model space, if it is linear and the same for all entries."""
        return None

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return plain JSON from which :func:`codec_from_state` restores the codec."""

    @abstractmethod
    def read(self, path: str) -> torch.Tensor:
        """Read a raw item ``(C, *spatial)`` from a user's file.

        Raises:
            ConfigError: (key ``path``) the file cannot be read, or does not match the model.
        """

    def pixels(self, raw: torch.Tensor) -> torch.Tensor:
        """Return raw images as uint8, and other data unchanged."""
        return raw

    def read_condition(self, path: str) -> torch.Tensor:
        """Read raw items ``(N, *shape)`` from a user's file that contains the condition.

        Entries outside ``condition_mask`` have an arbitrary valid value.

        Raises:
            ConfigError: (key ``path``) the file cannot be read, or does not match the model.
        """
        problem = "the model was trained without a condition; omit it"
        raise ConfigError("path", str(path), problem)

    def file_warnings(self, path: str) -> tuple[str, ...]:
        """Return warnings about a file for :meth:`read` or :meth:`read_condition`, one per line.

        Raises:
            ConfigError: (key ``path``) the file cannot be read.
        """
        return ()

    def describe_count(self, count: int) -> str:
        """Return a phrase with a number of items and their shape."""
        return f"{count:,} samples of {'x'.join(map(str, self.shape))}"

    @abstractmethod
    def picture(
        self, raw: torch.Tensor, *, columns: int | None = None, rows: Rows = None
    ) -> Image.Image:
        """Return a picture of a raw batch.

        Args:
            raw: ``(N, *shape)`` with N at least 1.
            columns: number of columns; None = chosen by the number of items.
            rows: items per class; None = in the order of the batch.
        """

    @abstractmethod
    def array(self, raw: torch.Tensor) -> npt.NDArray[Any]:
        """Return the raw batch ``(N, *shape)`` as the array that :meth:`write` stores."""

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
        """Write a raw batch below ``folder``, and return the paths of the files.

        Args:
            raw: ``(N, *shape)``.
            folder: created if necessary; existing files of the same names are replaced.
            format: ``npz`` writes samples.npz with arr_0 and, for labels, arr_1 in int64; ``npy``
                writes samples.npy; subclasses support more.
            labels: ``(N,)``, for ``npz``.
            first: number of the first item, for formats with one file per item.
            classes: class name of each item, which becomes a part of the name of its file.

        Raises:
            ConfigError: an unknown format (key ``format``), or a file that cannot be written (key
                ``path``).
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
        """Write a GIF whose frames are the pictures of raw batches, and return its path.

        Args:
            frames: raw batches ``(N, *shape)``.
            path: path of the file.
            duration_ms: duration of each frame but the last, in ms.
            hold_ms: duration of the last frame, in ms.
            columns: see :meth:`picture`.
            rows: see :meth:`picture`.
        """
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
        """Write a GIF in which all items of a raw batch move, if the data have motion.

        Args:
            raw: ``(N, *shape)``.
            path: path of the file.
            columns: see :meth:`picture`.
            rows: see :meth:`picture`.
            duration_ms: duration of each frame in ms, if the codec does not define it.

        Returns:
            The path; None for data without motion, for which nothing is written.
        """
        return None

    def file_names(
        self, formats: Iterable[str], count: int, classes: Sequence[str] | None = None
    ) -> list[str]:
        """Return the names of the files that :meth:`write` creates for ``count`` items."""
        names = []
        for format in formats:
            several = format in self.folders
            names += self._item_names(format, 0, count, classes) if several else []
            names += [] if several else [f"samples.{format}"]
        return names

    def output_names(self, formats: Iterable[str]) -> list[str]:
        """Return the names of the folders and files that :meth:`write` creates at the top level."""
        return [self.folders.get(format, f"samples.{format}") for format in formats]

    def _item_names(
        self, format: str, first: int, count: int, classes: Sequence[str] | None
    ) -> list[str]:
        """Return one name per item: ``images/00003.png``, of class 5 ``images/00003-5.png``."""
        endings = [""] * count
        if classes is not None:
            endings = ["-" + _UNUSUAL.sub("_", name)[:_MAX_CLASS_LENGTH] for name in classes]
        folder = self.folders[format]
        return [f"{folder}/{first + n:05d}{endings[n]}.{format}" for n in range(count)]


def _save(path: Path, save: Callable[[Any], None]) -> Path:
    with replacing(path) as aside, open(aside, "wb") as file:
        save(file)
    return path


def codec_from_state(state: Mapping[str, Any]) -> Codec:
    """Return the codec with this :meth:`Codec.state`.

    Raises:
        ConfigError: (key ``codec``) the kind is unknown, or the entries are invalid.
    """
    if not isinstance(state, Mapping) or "kind" not in state:
        raise ConfigError("codec", state, "is not the state of a codec: 'kind' is missing")
    options = {name: value for name, value in state.items() if name != "kind"}
    kind = Codec._kinds.get(str(state["kind"]))
    if kind is None:
        hint = did_you_mean(str(state["kind"]), Codec._kinds)
        raise ConfigError("codec", state["kind"], f"unknown kind of data{hint}")
    try:
        inspect.signature(kind).bind(**options)
        return kind(**options)
    except (TypeError, ValueError, ConfigError) as error:
        raise ConfigError("codec", dict(state), f"malformed: {error}") from error


def checked_shape(shape: Iterable[int], names: str) -> tuple[int, ...]:
    """Return ``shape`` as a tuple; raise ConfigError unless it has a positive size per name.

    Args:
        shape: sizes of the axes.
        names: names of the axes, separated by blanks.
    """
    sizes = tuple(shape)
    whole = all(type(size) is int and size > 0 for size in sizes)
    if not whole or len(sizes) != len(names.split()):
        raise ConfigError("shape", sizes, f"must be positive whole numbers ({names})")
    return sizes


def check_limits(low: float | None, high: float | None) -> None:
    """Raise ConfigError if only one end of a range is set."""
    if (low is None) != (high is None):
        key, value, other = ("low", low, "high") if high is None else ("high", high, "low")
        raise ConfigError(key, value, f"requires {other}; set both or neither")
