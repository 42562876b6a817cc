"""16-bit pictures: reading, model space, writing and comparison with all levels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.config.registry import config_with_defaults
from ddpm.data import Folder, ImageCodec, VideoCodec, Videos, codec_from_state
from ddpm.data.decoding import read_header
from ddpm.errors import ConfigError
from ddpm.metrics import DatasetImages, FolderImages, NpzImages
from ddpm.training.compatibility import check_compatible

RAMP = (np.arange(64, dtype=np.uint16) * 65).reshape(8, 8)  # 0 to 4095 in 64 steps: 12 bits


def save(path: Path, values: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values)).save(path, **options)
    return path


def read_single(folder: Path, **options: Any) -> torch.Tensor:
    data = Folder(path=str(folder), **options)
    assert len(data) == 1
    return data.fetch([0], [0])[0][0]


def line(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("cache_mb", [0, 64])
def test_12_bit_pictures_keep_all_levels(tmp_path: Path, name: str, cache_mb: int):
    save(tmp_path / name, RAMP)
    data = Folder(path=str(tmp_path), cache_mb=cache_mb)
    raw = data.fetch([0], [0])[0]
    assert raw.dtype == torch.float32 and np.array_equal(raw[0, 0], RAMP)
    assert data.warnings == (
        f"{tmp_path}: the values of the 16-bit pictures lie between 0 and 4095, a small part of "
        "the range from 0 to 65535; set data.high=4095 to use all of it",
    )
    data = Folder(path=str(tmp_path), high=4095, cache_mb=cache_mb)
    assert data.warnings == ()
    raw = data.fetch([0], [0])[0]
    x = data.codec.encode(raw)
    assert (float(x.min()), float(x.max())) == (-1, 1)
    assert torch.equal(data.codec.decode(x), raw)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_tiffs_of_both_byte_orders(tmp_path: Path, order: str):
    image = Image.fromarray(RAMP)
    if order == ">u2":
        image = Image.frombytes("I;16B", (8, 8), RAMP.astype(">u2").tobytes())
    image.save(tmp_path / "a.tif")
    assert np.array_equal(read_single(tmp_path, high=4095)[0], RAMP)


def test_a_tiff_whose_white_is_zero(tmp_path: Path):
    data = save(tmp_path / "a.tif", RAMP).read_bytes()
    black_is_zero = bytes.fromhex("060103000100000001000000")  # tag 262, one short: 1
    assert data.count(black_is_zero) == 1
    (tmp_path / "a.tif").write_bytes(data.replace(black_is_zero, black_is_zero[:8] + bytes(4)))
    assert np.array_equal(read_single(tmp_path)[0], 65535 - RAMP.astype(int))


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([[0, 16383]], {}, "lie between 0 and 16383, a small part of the range from 0 to 65535; "
         "set data.high=16383 to use all of it"),
        ([[0, 16384]], {}, None),
        ([[1000, 1300]], {}, "set data.low=1000 data.high=1300 to use all of it"),
        ([[1000, 1300]], {"high": 4095}, "the range from 0 to 4095; set data.low=1000 data.high="),
        ([[60000, 65535]], {}, "set data.low=60000 data.high=65535 to use all of it"),
        ([[0, 0]], {}, "lie between 0 and 0, a small part"),
        ([[0, 4095]], {"bits": 8}, "set data.high=4095 to use all of it"),
        ([[0, 4095]], {"color": "rgb"}, "set data.high=4095 to use all of it"),
    ],
)  # fmt: skip
def test_warnings_about_a_small_part_of_the_range(tmp_path: Path, values, options, message):
    save(tmp_path / "a.png", np.array(values, np.uint16))
    warnings = [x for x in Folder(path=str(tmp_path), **options).warnings if "lie between" in x]
    assert len(warnings) == (message is not None)
    assert message is None or message in warnings[0]


def test_16_bit_pictures_read_in_8_bits(tmp_path: Path):
    save(tmp_path / "a.png", RAMP)
    raw = read_single(tmp_path, bits=8, high=4095)
    assert raw.dtype == torch.uint8
    assert np.array_equal(raw[0], np.rint(RAMP / (4095 / 255)))
    data = Folder(path=str(tmp_path), bits=8, high=4095)
    assert data.warnings == (
        f"{tmp_path}: 1 of 1 pictures are 16-bit grey; they are read in 8 bits",
    )
    assert torch.equal(read_single(tmp_path, color="rgb", high=4095), raw.expand(3, 8, 8))


def test_8_bit_pictures(tmp_path: Path):
    values = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    save(tmp_path / "a.png", values)
    data = Folder(path=str(tmp_path))
    raw = data.fetch([0], [0])[0]
    assert raw.dtype == torch.uint8 and np.array_equal(raw[0, 0], values)
    assert data.codec.state() == {"kind": "images", "shape": [1, 8, 8]}
    assert data.warnings == ()


def test_folders_of_both_depths(tmp_path: Path):
    save(tmp_path / "a.png", np.array([[0, 128, 255]], np.uint8))
    save(tmp_path / "b.png", np.array([[0, 2056, 4095]], np.uint16))
    for cache_mb in (0, 64):
        assert line(Folder, path=str(tmp_path), cache_mb=cache_mb) == (
            "bits=auto: a.png has 8 bits, b.png has 16; set data.bits=16 or data.bits=8"
        )
    raw = Folder(path=str(tmp_path), bits=16, high=4095).fetch([0, 1], [0, 0])[0]
    assert raw.flatten(1).tolist() == [[0, 2056, 4095]] * 2  # both have the same white
    raw = Folder(path=str(tmp_path), bits=8, high=4095).fetch([0, 1], [0, 0])[0]
    assert raw.flatten(1).tolist() == [[0, 128, 255]] * 2
    assert (
        FolderImages(str(tmp_path), high=4095).read([0, 1]).flatten(1).tolist()
        == [[0, 128, 255]] * 2
    )


def test_16_bits_per_colour_are_reduced_to_8_with_a_warning(tmp_path: Path):
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)  # 16 bits, RGB
    pixels = zlib.compress(b"\0" + struct.pack(">HHH", 0x1234, 0x8000, 0xFF00))
    body = chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    save(tmp_path / "b.png", np.zeros((1, 1, 3), np.uint8))
    for data in (Folder(path=str(tmp_path)), Videos(path=str(tmp_path))):
        assert data.warnings == (
            f"{tmp_path}: 1 of 2 pictures have 16 bits per colour; they are read in 8 bits",
        )
    assert Folder(path=str(tmp_path)).fetch([0], [0])[0].flatten().tolist() == [0x12, 0x80, 0xFF]
    assert read_header(str(tmp_path / "a.png")).deep_colour


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"high": 4000}, "high=4000: ROOT/a.png contains values up to 4095; set data.high=4095 or "
         "more"),
        ({"low": 1}, "low=1: ROOT/a.png contains values down to 0; set data.low=0 or less"),
        ({"low": 9, "high": 9}, "high=9: white must be greater than black, but black is 9 and "
         "white is 9"),
        ({"high": 7e4}, "high=70000.0: must be a whole number from 0 to 65535, for 16-bit "
         "pictures"),
        ({"low": 0.5}, "low=0.5: must be a whole number from 0 to 65535, for 16-bit pictures"),
        ({"bits": 16, "color": "rgb"}, "bits=16: only applies to grey pictures; those in colour "
         "have 8 bits; set data.color=grey, or omit data.bits"),
    ],
)  # fmt: skip
def test_errors_of_invalid_ranges(tmp_path: Path, options: Any, message: str):
    save(tmp_path / "a.png", RAMP)
    assert line(Folder, path=str(tmp_path), **options) == message.replace("ROOT", str(tmp_path))


def test_a_range_requires_16_bit_pictures(tmp_path: Path):
    save(tmp_path / "a.png", np.zeros((4, 4), np.uint8))
    message = "high=4095: only applies to 16-bit grey pictures, but all have 8 bits; omit it"
    assert line(Folder, path=str(tmp_path), high=4095) == message
    assert line(Videos, path=str(tmp_path), high=4095) == message
    assert FolderImages(str(tmp_path), high=4095).warnings == ()  # may apply to the other folder


def test_resizing_preserves_the_range_of_16_bit_pictures(tmp_path: Path):
    edge = np.zeros((16, 16), np.uint16)
    edge[:, 8:] = 4095
    save(tmp_path / "a.png", edge)
    raw = read_single(tmp_path, high=4095, image_size=5)
    assert (raw.dtype, float(raw.min()), float(raw.max())) == (torch.float32, 0, 4095)
    assert torch.equal(raw, raw.round()) and len(raw.unique()) > 2


def test_transparent_pixels_are_white_and_ignored_in_the_range(tmp_path: Path):
    save(tmp_path / "a.png", np.array([[7, 300, 4000]], np.uint16), transparency=7)
    data = Folder(path=str(tmp_path), low=300, high=4000)
    assert data.fetch([0], [0])[0].tolist() == [[[[4000, 300, 4000]]]]


# codecs


def test_samples_are_written_with_the_levels_of_the_data(tmp_path: Path):
    codec = ImageCodec((1, 8, 8), 0, 4095)
    raw = torch.from_numpy(RAMP.astype(np.float32))[None, None]
    (path,) = codec.write(raw, tmp_path, format="png")
    with Image.open(path) as image:
        assert image.mode == "I;16" and np.array_equal(np.asarray(image), RAMP)
    assert torch.equal(codec.read(str(path)), raw[0])
    for format in ("npz", "npy"):
        (path,) = codec.write(raw, tmp_path, format=format)
        content = np.load(path)
        array = content["arr_0"] if format == "npz" else content
        assert array.dtype == np.uint16 and np.array_equal(array, RAMP[None, :, :, None])
    grid = np.asarray(codec.picture(raw))
    assert (grid.dtype, grid[2, 2], grid[65, 65]) == (np.uint8, 0, 255)


def test_the_state_contains_the_range_only_for_16_bits():
    codec = ImageCodec((1, 8, 8), 10, 4095)
    state = {"kind": "images", "shape": [1, 8, 8], "low": 10, "high": 4095}
    assert codec.state() == state
    x = torch.linspace(-1.5, 1.5, 9)
    again = codec_from_state(state)
    assert torch.equal(again.decode(x), codec.decode(x))
    assert (float(again.decode(x).min()), float(again.decode(x).max())) == (10, 4095)
    old = codec_from_state({"kind": "images", "shape": [1, 8, 8]})
    assert old.decode(x).dtype == torch.uint8
    for wrong in ({"high": None}, {"shape": [3, 8, 8]}, {"high": 10}, {"low": -1}):
        assert "malformed" in line(codec_from_state, {**state, **wrong})


def test_8_bit_pictures_are_read_with_the_white_of_the_model(tmp_path: Path):
    codec = ImageCodec((1, 1, 3), 0, 4095)
    path = str(save(tmp_path / "a.png", np.array([[0, 128, 255]], np.uint8)))
    assert codec.read(path).tolist() == [[[0, 2056, 4095]]]
    dark = str(save(tmp_path / "b.png", np.array([[0, 100, 500]], np.uint16)))
    assert codec.read(dark).tolist() == [[[0, 100, 500]]]
    assert codec.file_warnings(path) == ()
    assert codec.file_warnings(dark) == (
        f"{dark}: the values of the 16-bit pictures lie between 0 and 500, a small part of the "
        "range from 0 to 4095; scale the values to that range if the picture is too dark",
    )
    assert len(ImageCodec((3, 1, 3)).file_warnings(dark)) == 1


def test_runs_of_versions_without_16_bits_can_be_resumed(tmp_path: Path):
    save(tmp_path / "a.png", RAMP)
    old = {"data": {"codec": ImageCodec((1, 8, 8)).state()}}

    def metadata(**options: Any) -> dict[str, Any]:
        return {"data": {"codec": Folder(path=str(tmp_path), **options).codec.state()}}

    node = {"data": {"_target_": "ddpm.data.Folder", "path": str(tmp_path)}}
    assert config_with_defaults(node)["data"]["bits"] == 8
    check_compatible(old, metadata(bits=8), "name", tmp_path)
    message = "data.codec.high (null there, 65535 here), data.codec.low (null there, 0 here)"
    assert message in line(check_compatible, old, metadata(), "name", tmp_path)


def test_evaluation_compares_the_range_in_8_bits(tmp_path: Path):
    save(tmp_path / "a.png", RAMP)
    data = Folder(path=str(tmp_path), high=4095)
    images = DatasetImages(data, {"path": "x"})
    same = FolderImages(str(tmp_path), high=4095)
    assert images.read([0]).dtype == torch.uint8
    assert images.sha256 == same.sha256
    assert images.provenance()["levels_as_uint8"] == [0, 4095]
    assert same.provenance()["high"] == 4095 and "levels_as_uint8" not in same.provenance()


def test_evaluation_reads_written_arrays_in_8_bits(tmp_path: Path):
    codec = ImageCodec((1, 8, 8), 0, 4095)
    raw = torch.from_numpy(RAMP.astype(np.float32))[None, None]
    (path,) = codec.write(raw, tmp_path, format="npz")
    images = NpzImages(str(path), high=4095)
    assert torch.equal(images.read([0]), codec.pixels(raw)) and images.warnings == ()
    assert "set high=4095 to use all of it" in NpzImages(str(path)).warnings[0]
    assert line(NpzImages, str(path), high=4000) == (
        f"samples={path}: {path} contains values up to 4095; set high=4095 or more"
    )


# videos


def test_frames_of_videos_keep_all_levels(tmp_path: Path):
    for number in range(3):
        save(tmp_path / "v" / f"{number}.png", RAMP // (number + 1))
    for cache_mb in (0, 64):
        data = Videos(path=str(tmp_path), high=4095, cache_mb=cache_mb)
        raw = data.fetch([0], [0])[0]
        assert raw.dtype == torch.float32
        assert np.array_equal(raw[0, 0], [RAMP, RAMP // 2, RAMP // 3])
        assert data.warnings == ()
    codec = codec_from_state(data.codec.state())
    assert torch.equal(codec.read(str(tmp_path / "v")), raw[0])
    assert codec.file_warnings(str(tmp_path / "v")) == ()
    (warning,) = Videos(path=str(tmp_path)).warnings
    assert "lie between 0 and 4095" in warning and "set data.high=4095" in warning
    eight = Videos(path=str(tmp_path), bits=8, high=4095).fetch([0], [0])[0]
    assert eight.dtype == torch.uint8 and int(eight.max()) == 255
    assert "levels" not in VideoCodec((1, 3, 8, 8), 0, 4095).state()
    save(tmp_path / "w" / "0.png", np.zeros((8, 8), np.uint8))
    assert "set data.bits=16 or data.bits=8" in line(Videos, path=str(tmp_path))
