"""Folders of files: supported and skipped files, and classes."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm.data import Folder, Videos
from ddpm.errors import ConfigError
from ddpm.metrics import FolderImages

READ = ".jpg .jpeg .jpe .jfif .png .webp .bmp .tif .tiff"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def pictures(root: Path, *names: str, value: int = 7) -> Path:
    """Write grey 4x4 pictures or GIFs with these names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(root / name)
    return root


def line(call, *arguments, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["tif", "tiff", "jfif", "jpe", "TIF", "Jfif"])
def test_supported_suffixes(tmp_path: Path, suffix: str):
    image = Image.fromarray(np.full((4, 6, 3), 200, np.uint8))
    image.save(tmp_path / f"a.{suffix}", "TIFF" if suffix.lower() in ("tif", "tiff") else "JPEG")
    for data in (Folder(path=str(tmp_path)), Videos(path=str(tmp_path))):
        assert data.fetch([0], [0])[0].unique().tolist() == [200]
        assert data.warnings == ()
    assert FolderImages(str(tmp_path)).read([0]).unique().tolist() == [200]


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.filterwarnings("error")
def test_the_first_page_of_compressed_tiffs_is_read(tmp_path: Path, compression: str | None):
    first = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    pages = [Image.fromarray(page) for page in (first, 255 - first)]
    pages[0].save(
        tmp_path / "a.tif", compression=compression, save_all=True, append_images=pages[1:]
    )
    data = Folder(path=str(tmp_path))
    assert len(data) == 1
    assert np.array_equal(data.fetch([0], [0])[0][0].permute(1, 2, 0), first)


@pytest.mark.parametrize(
    ("dtype", "description"),
    [(np.float32, "32-bit floating-point values"), (np.int32, "32-bit or signed values")],
)
def test_tiffs_without_a_defined_white(tmp_path: Path, dtype: type, description: str):
    Image.fromarray(np.zeros((4, 4), dtype)).save(tmp_path / "a.tif")
    message = (
        f"path={tmp_path / 'a.tif'}: contains {description}, whose black and white are unknown; "
        f"convert it "
        "to a TIFF or PNG with 8 or 16 bits per channel"
    )
    assert line(Folder, path=str(tmp_path)) == message
    assert line(Videos, path=str(tmp_path)).replace("/./", "/") == message
    assert line(FolderImages, str(tmp_path)) == f"samples={message.removeprefix('path=')}"


def test_skipped_files_are_counted_by_suffix(tmp_path: Path):
    pictures(tmp_path, "a.png", "b/c.png")
    touch(tmp_path, "1.GIF", "b/2.gif", "3.heic", "README", "b/notes", ".hidden.gif", "x.tar.gz")
    touch(tmp_path, "Thumbs.db", "b/desktop.ini", ".cache/e.avif", "v1.of this file")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "pipe")
    skipped = (
        "3 without suffix, 2 .gif (data=video reads them), 2 unreadable (broken link, pipe or "
        "device), 1 .gz, 1 .heic"
    )
    assert Folder(path=str(tmp_path)).warnings == (
        f"{tmp_path}: skipped {skipped}; images are read from {READ}",
    )
    assert FolderImages(str(tmp_path)).warnings == Folder(path=str(tmp_path)).warnings
    for name in ("1.GIF", "b/2.gif"):
        (tmp_path / name).unlink()
    assert Videos(path=str(tmp_path)).warnings == (
        f"{tmp_path}: skipped {skipped.replace(' 2 .gif (data=video reads them),', '')}; videos "
        f"are read from .gif .mp4 .webm .mov {READ}",
    )


def test_only_the_most_frequent_kinds_of_skipped_files_are_named(tmp_path: Path):
    pictures(tmp_path, "a.png")
    touch(tmp_path, *(f"{n}.x{n % 12}" for n in range(15)))
    (warning,) = Folder(path=str(tmp_path)).warnings
    assert "skipped 2 .x0, 2 .x1, 2 .x2, 1 .x10, 1 .x11, 1 .x3, 1 .x4, 1 .x5, 4 of other" in warning


def test_the_error_of_a_folder_without_readable_files_counts_skipped_files(tmp_path: Path):
    touch(tmp_path, *(f"{n}.gif" for n in range(11)), "a.heic")
    message = f"contains no images ({READ}) at any depth; skipped 11 .gif (data=video reads "
    assert line(Folder, path=str(tmp_path)) == (
        f"path={tmp_path}: {message}them), 1 .heic; set data.path to a folder of images"
    )
    assert line(FolderImages, str(tmp_path), key="reference") == (
        f"reference={tmp_path}: {message}them), 1 .heic; set reference to a folder of images"
    )
    (tmp_path / "v").mkdir()
    touch(tmp_path / "v", "a.avi")
    assert line(Videos, path=str(tmp_path / "v")) == (
        f"path={tmp_path / 'v'}: contains no videos (.gif .mp4 .webm .mov {READ}) at any depth; "
        "skipped 1 .avi; set data.path to a folder of videos"
    )


# classes


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("train/cat/1 train/dog/1 val/cat/1", "train, val in ROOT are splits of a data set, not "
         "classes; set data.path=ROOT/train"),
        ("Test/cat/1 TRAIN/cat/1", "TRAIN, Test in ROOT are splits of a data set, not classes; set "
         "data.path=ROOT/TRAIN"),
        ("validation/a/1 testing/a/1", "validation, testing in ROOT are splits of a data set, not "
         "classes; set data.path=ROOT/validation"),
        ("train/cat/1", "train in ROOT is a split of a data set, not a class; set "
         "data.path=ROOT/train"),
        ("train/1 extra/1", "train in ROOT is a split of a data set, not a class; set "
         "data.path=ROOT/train and data.class_cond=false"),
        ("cat/1 dog/1 train/cat/1 test/cat/1", "train, test in ROOT are splits of a data set, not "
         "classes; set data.path=ROOT/train"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [Folder, Videos])
def test_splits_of_a_data_set_are_not_classes(tmp_path: Path, names: str, message: str, kind: type):
    suffix = {Folder: ".png", Videos: ".gif"}[kind]
    pictures(tmp_path, *(f"{name}{suffix}" for name in names.split()))
    error = line(kind, path=str(tmp_path), class_cond=True)
    assert error == f"class_cond=true: {message}".replace("ROOT", str(tmp_path))
    assert kind(path=str(tmp_path)).num_classes is None


@pytest.mark.parametrize("kind", [Folder, Videos])
def test_a_single_split_name_among_classes_is_a_class_with_a_warning(tmp_path: Path, kind: type):
    suffix = {Folder: ".png", Videos: ".gif"}[kind]
    pictures(tmp_path, *(f"{name}/1{suffix}" for name in ("bus", "car", "train")))
    data = kind(path=str(tmp_path), class_cond=True)
    assert data.class_names == ["bus", "car", "train"]
    assert data.warnings == (
        f"the folder {tmp_path / 'train'} is one class of 3; if it is a split of the data set "
        "instead, move it elsewhere",
    )


def test_names_that_start_like_those_of_splits_are_classes(tmp_path: Path):
    pictures(tmp_path, "trains/1.png", "tests/1.png", "valve/1.png")
    data = Folder(path=str(tmp_path), class_cond=True)
    assert (data.class_names, data.warnings) == (["tests", "trains", "valve"], ())
