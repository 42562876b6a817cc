import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.data import Folder, ImageCodec
from ddpm.errors import ConfigError


def save(path: Path, values: Any, mode: str | None = None, **options: Any) -> Path:
    """Write an image file of ``(H, W)`` or ``(H, W, C)`` values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, np.uint8))
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def read_single(folder: Path, **options: Any) -> torch.Tensor:
    data = Folder(path=str(folder), **options)
    assert len(data) == 1
    return data.fetch([0], [0])[0][0]


def ihdr(width: int, height: int) -> bytes:
    """Return a PNG whose header has this size, and whose pixels are missing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


# files


def test_all_suffixes_in_any_case_and_depth_in_a_fixed_order(tmp_path: Path, capsys):
    names = ["a.JPG", "b.jpeg", "c/d/e.PNG", "c/f.webp", "g.BMP", "h.Jpg", "Z.png", "c.png"]
    for number, name in enumerate(names):
        save(tmp_path / name, np.full((4, 4, 3), 20 * number))
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "k.gif").write_bytes(b"GIF89a")
    data = Folder(path=str(tmp_path))
    raw, labels = data.fetch(range(len(data)), range(len(data)))
    order = ["Z.png", "a.JPG", "b.jpeg", "c/d/e.PNG", "c/f.webp", "c.png", "g.BMP", "h.Jpg"]
    shades = raw.float().mean((1, 2, 3)) / 20  # some of the formats are lossy
    assert shades.round().tolist() == [names.index(name) for name in order]
    assert labels is None
    assert len(data.warnings) == 1
    assert capsys.readouterr() == ("", "")  # no progress bar for short operations


def test_hidden_and_irregular_files_are_ignored(tmp_path: Path):
    save(tmp_path / "good.png", noise(4, 4))
    save(tmp_path / "._z.png", noise(5, 5))
    save(tmp_path / ".cache" / "x.png", noise(5, 5))
    (tmp_path / "y.png").mkdir()
    os.mkfifo(tmp_path / "x.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    (tmp_path / "round").symlink_to(tmp_path)
    assert read_single(tmp_path).shape == (1, 4, 4)


def test_linked_files_and_folders_are_followed(tmp_path: Path):
    save(tmp_path / "store" / "a.png", noise(4, 4))
    data = tmp_path / "data"
    data.mkdir()
    (data / "cats").symlink_to(tmp_path / "store")
    (data / "b.png").symlink_to(tmp_path / "store" / "a.png")
    assert len(Folder(path=str(data))) == 2


# conversion to pixels


def test_palettes_are_converted_to_rgb(tmp_path: Path):
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 250, 10, 20])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png")
    assert read_single(tmp_path).flatten(1).T.tolist() == [[0, 0, 0], [250, 10, 20]]


def test_a_palette_of_greys_is_grey(tmp_path: Path):
    image = Image.new("P", (2, 1))
    image.putpalette([7, 7, 7, 250, 250, 250])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png")
    assert read_single(tmp_path).tolist() == [[[7, 250]]]


def test_transparent_pixels_are_composed_onto_white(tmp_path: Path):
    save(tmp_path / "a" / "a.png", [[[255, 0, 0, 0], [0, 0, 255, 255], [0, 100, 0, 51]]])
    assert read_single(tmp_path / "a").flatten(1).T.tolist() == [
        [255, 255, 255],
        [0, 0, 255],
        [204, 224, 204],  # one fifth of (0, 100, 0), four fifths of white
    ]
    save(tmp_path / "b" / "a.png", [[[0, 0], [9, 255], [0, 51]]])
    assert read_single(tmp_path / "b").tolist() == [[[255, 9, 204]]]
    image = Image.new("P", (2, 1))
    image.putpalette([1, 2, 3, 4, 5, 6])
    image.putdata([0, 1])
    (tmp_path / "c").mkdir()
    image.save(tmp_path / "c" / "a.png", transparency=0)
    assert read_single(tmp_path / "c").flatten(1).T.tolist() == [[255, 255, 255], [4, 5, 6]]
    save(tmp_path / "d" / "a.png", [[3, 4]], transparency=3)
    assert read_single(tmp_path / "d").tolist() == [[[255, 4]]]


def test_cmyk_is_converted(tmp_path: Path):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    image.save(tmp_path / "a.jpg", quality=100)
    red = read_single(tmp_path).flatten(1).float().mean(1)
    assert torch.allclose(red, torch.tensor([255.0, 0, 0]), atol=3)


def test_16_bits_are_kept_or_scaled_but_not_clipped(tmp_path: Path):
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read_single(tmp_path).tolist() == [values.tolist()]
    assert read_single(tmp_path, bits=8).tolist() == [[[0, 0, 1, 1, 128, 255]]]
    Image.fromarray(values).save(tmp_path / "a.png", transparency=257)
    assert read_single(tmp_path).tolist() == [[[0, 128, 129, 65535, 32768, 65535]]]
    assert read_single(tmp_path, bits=8).tolist() == [[[0, 0, 1, 255, 128, 255]]]


def test_1_bit_pictures_are_black_and_white(tmp_path: Path):
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / "a.png")
    assert read_single(tmp_path).tolist() == [[[0, 255]]]


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int):
    upright = np.zeros((16, 24), np.uint8)
    upright[:8, :8], upright[:8, 16:] = 100, 200
    # as stored by the camera, so that the rotated picture is upright
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.T, 6: np.rot90(upright, 1), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / f"a.{suffix}", stored, exif=exif)
    pixels = read_single(tmp_path)
    assert pixels.shape == (1, 16, 24)
    assert torch.allclose(pixels[0].float(), torch.from_numpy(upright).float(), atol=3)


def test_invalid_exif_is_ignored(tmp_path: Path):
    values = noise(4, 6)
    save(tmp_path / "a.png", values, exif=b"Exif\0\0nonsense")
    assert np.array_equal(read_single(tmp_path)[0], values)


def test_a_single_pixel_is_resized(tmp_path: Path):
    save(tmp_path / "a.png", [[77]])
    assert read_single(tmp_path).tolist() == [[[77]]]
    assert read_single(tmp_path, image_size=5).unique().tolist() == [77]


# sizes


def gradient(height: int, width: int) -> np.ndarray:
    """Return an image with red = 2 x, green = 2 y and blue = 9."""
    down, right = np.mgrid[:height, :width] * 2
    return np.stack([right, down, np.full_like(down, 9)], axis=2)


@pytest.mark.parametrize(("height", "width"), [(40, 120), (120, 40), (40, 40), (41, 97)])
@pytest.mark.parametrize("image_size", [10, (20, 10), (10, 20), (30, 30)])
def test_images_are_scaled_to_cover_and_cropped_at_the_centre(
    tmp_path: Path, height: int, width: int, image_size: Any
):
    save(tmp_path / "a.png", gradient(height, width))
    pixels = read_single(tmp_path, image_size=image_size).double()
    out_height, out_width = (10, 10) if image_size == 10 else image_size
    assert pixels.shape == (3, out_height, out_width)
    scale = min(height / out_height, width / out_width)
    x, y = np.arange(out_width), np.arange(out_height)
    red = 2 * (width / 2 + (x + 0.5 - out_width / 2) * scale - 0.5)
    green = 2 * (height / 2 + (y + 0.5 - out_height / 2) * scale - 0.5)
    inner = slice(2, -2)  # filters are truncated at the edge of the picture
    assert np.abs(pixels[0].numpy() - red)[:, inner].max() <= 1
    assert np.abs(pixels[1].numpy().T - green)[:, inner].max() <= 1
    assert pixels[2].unique().tolist() == [9]


def test_downscaling_is_antialiased(tmp_path: Path):
    board = np.indices((64, 64)).sum(0) % 2 * 255
    save(tmp_path / "a.png", board)
    assert set(read_single(tmp_path, image_size=8).flatten().tolist()) <= {126, 127, 128, 129}


def test_images_of_the_requested_size_are_unchanged(tmp_path: Path):
    values = noise(6, 9, 3)
    save(tmp_path / "a.png", values)
    for size in (None, (6, 9)):
        assert np.array_equal(read_single(tmp_path, image_size=size).permute(1, 2, 0), values)


# colour


def test_color_is_that_of_the_files_or_of_the_option(tmp_path: Path):
    save(tmp_path / "grey" / "a.png", [[50, 60]])
    save(tmp_path / "rgb" / "b.png", [[[50, 60, 70], [10, 10, 10]]])
    assert Folder(path=str(tmp_path / "grey")).shape == (1, 1, 2)
    assert Folder(path=str(tmp_path / "rgb")).shape == (3, 1, 2)
    as_rgb = Folder(path=str(tmp_path), color="rgb").fetch([0, 1], [0, 0])[0]
    assert as_rgb[0].tolist() == [[[50, 60]]] * 3
    assert as_rgb[1].tolist() == [[[50, 10]], [[60, 10]], [[70, 10]]]
    as_grey = Folder(path=str(tmp_path), color="grey").fetch([0, 1], [0, 0])[0]
    assert as_grey.tolist() == [[[[50, 60]]], [[[58, 10]]]]


# classes, flips, memory


def test_classes_are_the_first_folders_that_contain_images(tmp_path: Path):
    for name in ("b/1.png", "a/deep/er/2.png", "a/3.png", "c d/4.png"):
        save(tmp_path / name, [[int(Path(name).stem)]])
    (tmp_path / "aa").mkdir()
    data = Folder(path=str(tmp_path), class_cond=True)
    assert (data.num_classes, data.class_names) == (3, ["a", "b", "c d"])
    raw, labels = data.fetch([3, 2, 1, 0], [0] * 4)
    assert labels is not None
    assert labels.dtype == torch.int64
    assert raw.flatten().tolist() == [4, 1, 2, 3]
    assert labels.tolist() == [2, 1, 0, 0]
    assert Folder(path=str(tmp_path)).num_classes is None


def test_data_in_memory_equal_data_decoded_as_needed(tmp_path: Path):
    for number in range(40):
        save(tmp_path / "ab"[number % 2] / f"{number}.jpg", noise(20, 30, 3, seed=number))
    options: dict[str, Any] = {
        "path": str(tmp_path), "image_size": 12, "class_cond": True, "flip": True,
    }  # fmt: skip
    cached = Folder(**options)
    lazy = Folder(**options, cache_mb=0)
    assert (cached.in_memory, lazy.in_memory) == (True, False)
    indices, keys = list(range(39, -1, -1)), [n * 7919 for n in range(40)]
    for cached_value, lazy_value in zip(
        cached.fetch(indices, keys), lazy.fetch(indices, keys), strict=True
    ):
        assert cached_value is not None and lazy_value is not None
        assert torch.equal(cached_value, lazy_value)
    plain = Folder(**{**options, "flip": False}).fetch(indices, keys)[0]
    raw = cached.fetch(indices, keys)[0]
    flipped = sum(torch.equal(a, b.flip(-1)) for a, b in zip(raw, plain, strict=True))
    assert 8 < flipped < 32
    assert sum(torch.equal(a, b) for a, b in zip(raw, plain, strict=True)) == 40 - flipped


def test_the_memory_limit_applies_to_resized_pixels(tmp_path: Path):
    for number in range(3):
        save(tmp_path / f"{number}.png", noise(600, 600, seed=number))
    assert Folder(path=str(tmp_path), cache_mb=2).in_memory
    assert not Folder(path=str(tmp_path), cache_mb=1).in_memory
    assert Folder(path=str(tmp_path), cache_mb=1, image_size=64).in_memory


# errors


def error_of(**options: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        Folder(**options)
    assert "\n" not in str(caught.value)
    return caught.value


SUFFIXES = "(.jpg .jpeg .jpe .jfif .png .webp .bmp .tif .tiff)"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none", "path=ROOT/none: no such folder; set data.path to a folder of images"),
        ("f.png", "path=ROOT/f.png: is a file, not a folder; set data.path to a folder of images"),
        ("f.png/sub", "path=ROOT/f.png/sub: ROOT/f.png is a file, not a folder; set data.path to a "
         "folder of images"),
        ("empty", f"path=ROOT/empty: contains no images {SUFFIXES} at any depth; set "
         "data.path to a folder of images"),
    ],
)  # fmt: skip
def test_errors_of_folders_without_images(tmp_path: Path, path: str, message: str):
    save(tmp_path / "f.png", [[1]])
    (tmp_path / "empty" / "too").mkdir(parents=True)
    error = error_of(path=str(tmp_path / path))
    assert str(error) == message.replace("ROOT", str(tmp_path))


def test_an_empty_path_is_not_the_current_folder():
    assert str(error_of(path="")).startswith("path=: no such folder")


@pytest.mark.parametrize("cache_mb", [0, 2048])
@pytest.mark.parametrize(
    ("other", "options", "message"),
    [
        (noise(9, 12), {}, "image_size: the images differ in size: a/a.png is 6 wide and 8 high, b/"
         "b.png is 12 wide and 9 high; resize them to one size, such as data.image_size=6"),
        (noise(8, 6, 3), {}, "color=auto: a/a.png is grey but b/b.png is in colour; set "
         "data.color=rgb or data.color=grey"),
        (noise(9, 12, 3), {"image_size": 4}, "color=auto: a/a.png is grey but b/b.png is in"),
        (noise(9, 12, 3), {"color": "rgb"}, "image_size: the images differ in size"),
        (noise(8, 6), {"cache_mb": -1}, "cache_mb=-1: must be 0 or more"),
        (noise(8, 6), {"image_size": 0}, "image_size=0: must be a positive number of pixels"),
    ],
)  # fmt: skip
def test_errors_of_inconsistent_images(tmp_path, cache_mb, other, options, message):
    save(tmp_path / "a" / "a.png", noise(8, 6))
    save(tmp_path / "b" / "b.png", other)
    error = error_of(**{"path": str(tmp_path), "cache_mb": cache_mb, **options})
    assert str(error).startswith(message)


def test_the_color_error_names_the_grey_and_the_coloured_file(tmp_path: Path):
    save(tmp_path / "a.png", noise(4, 4, 3))
    save(tmp_path / "b.png", noise(4, 4))
    assert str(error_of(path=str(tmp_path))).startswith("color=auto: b.png is grey but a.png is")


def test_the_error_of_images_outside_class_folders(tmp_path: Path):
    save(tmp_path / "a" / "a.png", noise(4, 4))
    save(tmp_path / "b.png", noise(4, 4))
    assert str(error_of(path=str(tmp_path), class_cond=True)) == (
        "class_cond=true: b.png is not in a class folder; move it to a folder named after its "
        "class, or set data.class_cond=false"
    )


REMEDY = "; remove the file or re-encode it"


@pytest.mark.parametrize(
    ("content", "message", "remedy"),
    [
        (b"", "is not a JPEG, PNG, WebP, BMP or TIFF picture", REMEDY),
        (b"<html>404</html>", "is not a JPEG, PNG, WebP, BMP or TIFF picture", REMEDY),
        ("truncated", "is damaged (image file is truncated", REMEDY),
        ("gif", "is not a JPEG, PNG, WebP, BMP or TIFF picture", REMEDY),
        (ihdr(1, 1)[:40], "", REMEDY),
        (ihdr(9000, 9000), "has 9000x9000 pixels, the limit is 64 million", "or scale it down"),
        (ihdr(11000, 11000), "has 11000x11000 pixels, the limit is 64 million", "or scale it down"),
        (ihdr(60000, 60000), "has too many pixels, the limit is 64 million", "or scale it down"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", ["a.png", "z.png"])
@pytest.mark.filterwarnings("error")
def test_errors_of_invalid_files(
    tmp_path: Path, content: Any, message: str, remedy: str, where: str
):
    good = save(tmp_path / "m.png", noise(50, 50))
    bad = tmp_path / where
    if content == "truncated":
        content = good.read_bytes()[:1500]
    if content == "gif":
        Image.new("L", (50, 50)).save(bad, "GIF")
    else:
        bad.write_bytes(content)
    for error in (error_of(path=str(tmp_path)), read_error(bad)):
        assert str(error).startswith(f"path={bad}: {message}")
        assert str(error).endswith(remedy)


def read_error(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        ImageCodec((1, 50, 50)).read(str(path))
    return caught.value


def test_errors_of_files_that_are_removed_or_damaged_later(tmp_path: Path):
    first, second = (save(tmp_path / name, noise(50, 50)) for name in ("a.png", "b.png"))
    data = Folder(path=str(tmp_path), cache_mb=0)
    first.unlink()
    with pytest.raises(ConfigError, match=r"a\.png: no such file"):
        data.fetch([0], [0])
    second.write_bytes(second.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"b\.png: is damaged"):
        data.fetch([1], [0])


@pytest.mark.skipif(os.geteuid() == 0, reason="root has all permissions")
def test_errors_of_missing_permissions(tmp_path: Path):
    file = save(tmp_path / "a" / "a.png", noise(4, 4))
    file.chmod(0)
    message = "cannot be opened (Permission denied); make it readable or move it away"
    assert str(error_of(path=str(tmp_path))) == f"path={file}: {message}"
    file.parent.chmod(0)
    try:
        assert str(error_of(path=str(tmp_path))).startswith(f"path={file.parent}: cannot be listed")
    finally:
        file.parent.chmod(0o755)
