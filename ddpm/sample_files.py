"""Files of samples: data in their formats, and pictures of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ddpm.data import Codec
from ddpm.data.class_rows import Rows, cyclic_class_rows
from ddpm.data.spec import DataSpec
from ddpm.errors import ConfigError, require
from ddpm.outputs import OutputFolder
from ddpm.trajectory import Trajectory


@dataclass(frozen=True)
class SampleFiles:
    """Files of samples.

    Attributes:
        spec: of the data.
        num_samples: number of samples.
        classes: numbers of the classes, sample i is of ``classes[i % len(classes)]``; or None.
        format: of the files; None = the formats that suit the data and keep their exact values.
        has_film: also an animation of the sampling.
    """

    spec: DataSpec
    num_samples: int
    classes: Sequence[int] | None
    format: str | None
    has_film: bool

    def __post_init__(self) -> None:
        formats = self.codec.formats
        problem = f"these samples can be written as {', '.join(formats)}"
        require(self.format is None or self.format in formats, "format", self.format, problem)

    @property
    def codec(self) -> Codec:
        """Writer of the files."""
        return self.spec.codec

    @property
    def formats(self) -> list[str]:
        """Formats with a file per sample, then formats with one file of all samples."""
        both = [self.codec.default_format, *self.codec.extra_formats]
        formats = both if self.format is None else [self.format]
        return sorted(formats, key=lambda each: each not in self.codec.folders)

    @property
    def joint_formats(self) -> list[str]:
        """Formats with one file of all samples."""
        return [each for each in self.formats if each not in self.codec.folders]

    @property
    def preview(self) -> str:
        """Name of the picture to look at first."""
        return "grid.gif" if self.codec.has_motion else "grid.png"

    def names(self) -> list[str]:
        """Return the names of all files."""
        film = ["trajectory.gif"] if self.has_film else []
        labels = self._labels(0, self.num_samples)
        files = self.codec.file_names(self.formats, self.num_samples, labels)
        return [*files, "grid.png", self.preview, *film]

    def write_batch(self, raw: Tensor, first: int, folder: Path) -> None:
        """Write a file per sample.

        Args:
            raw: raw data (B, C, *spatial).
            first: number of the first sample.
            folder: of the files.
        """
        labels = self._labels(first, len(raw))
        for format in self.formats:
            if format in self.codec.folders:
                self.codec.write(raw, folder, format=format, first=first, classes=labels)

    def write_all(self, raw: Tensor, labels: Tensor | None, folder: Path) -> None:
        """Write the files of all samples, raw data (N, C, *spatial) with labels (N,)."""
        for format in self.joint_formats:
            self.codec.write(raw, folder, format=format, labels=labels)

    def write_pictures(self, raw: Tensor, film: Trajectory | None, folder: Path) -> None:
        """Write the grid of some samples (N, C, *spatial), and the animation of the sampling."""
        rows = self._rows(len(raw))
        self.codec.picture(raw, rows=rows).save(folder / "grid.png")
        self.codec.write_motion_gif(raw, folder / "grid.gif", rows=rows)
        if film is not None:
            rows = self._rows(len(film.frames[0]))
            self.codec.animate(film.frames, folder / "trajectory.gif", rows=rows)

    def _rows(self, count: int) -> Rows:
        """Return the rows of a picture, one per class."""
        return cyclic_class_rows(count, self.classes, self.spec.names)

    def _labels(self, first: int, count: int) -> list[str] | None:
        """Return the class names of samples; None for an unconditional model."""
        names, classes = self.spec.names, self.classes
        if names is None or classes is None:
            return None
        return [names[classes[i % len(classes)]] for i in range(first, first + count)]


def save_samples(codec: Codec, data: Tensor, folder: Path) -> Path:
    """Write raw data in their default format, with a grid; return the path of the grid.

    Args:
        codec: of the data.
        data: raw data (N, C, *spatial).
        folder: output folder; files that ``ddpm-sample`` wrote there are replaced.

    Raises:
        ConfigError: (key ``folder``) a folder that cannot be written, or files in the way that were
            not written by ddpm.
    """
    formats, output = [codec.default_format], OutputFolder(folder, "sample")
    try:
        output.check([*codec.file_names(formats, len(data)), "grid.png"])
        output.prepare(codec.output_names(formats))
        output.open()
        codec.write(data, output.aside, format=formats[0])
        codec.picture(data).save(output.aside / "grid.png")
        output.publish()
        output.finish()
    except ConfigError as error:
        raise error.renamed("folder", str(folder)) from error
    except OSError as error:
        problem = f"cannot be written: {error.strerror}; choose another folder"
        raise ConfigError("folder", str(folder), problem) from error
    finally:
        output.close()
    return folder / "grid.png"
