import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.data import Codec, ImageCodec, SequenceCodec, codec_from_state
from ddpm.errors import ConfigError

ALL_VALUES = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


def noise(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def test_all_256_values_are_restored_and_span_the_bounds():
    codec = ImageCodec((1, 16, 16))
    x = codec.encode(ALL_VALUES)
    assert x.dtype == torch.float32
    assert (float(x.min()), float(x.max())) == codec.bounds == (-1.0, 1.0)
    assert float(x.flatten()[51]) == pytest.approx(-0.6)  # 51 = 255 / 5
    assert torch.equal(codec.decode(x), ALL_VALUES)
    assert codec.decode(x).dtype == torch.uint8


def test_decoding_rounds_and_clamps_for_all_float_types():
    codec = ImageCodec((1, 1, 4))
    step = 2 / 255
    x = torch.tensor([-1 + 0.4 * step, -1 + 0.6 * step, -7.0, 1.3]).reshape(1, 1, 1, 4)
    assert codec.decode(x).flatten().tolist() == [0, 1, 0, 255]
    half = torch.tensor([-1.0, 0.5, 1.0, 40.0]).reshape(1, 1, 1, 4).to(torch.bfloat16)
    assert codec.decode(half).flatten().tolist() == [0, 191, 255, 255]


@pytest.mark.parametrize(
    "codec",
    [ImageCodec((3, 5, 7)), SequenceCodec((2, 9), -0.1, 1e6)],
    ids=["images", "sequences"],
)
def test_the_state_is_plain_json_and_restores_the_codec(codec: Codec):
    again = codec_from_state(json.loads(json.dumps(codec.state())))
    assert type(again) is type(codec)
    assert again.state() == codec.state()
    assert again.shape == codec.shape


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "codec={}: is not the state of a codec: 'kind' is missing"),
        ({"kind": "image", "shape": [1, 2, 2]}, "codec=image: unknown kind of data; did you mean"),
        ({"kind": "images"}, "malformed: missing a required argument: 'shape'"),
        ({"kind": "images", "shape": [1, 2]}, "positive whole numbers (channels height width)"),
        ({"kind": "images", "shape": [1, 0, 2]}, "positive whole numbers"),
        ({"kind": "images", "shape": 5}, "malformed"),
        ({"kind": "sequences", "shape": [1, 2], "low": 3, "high": 3}, "less than high=3.0"),
        ({"kind": "sequences", "shape": [1, 2], "low": "x", "high": 3}, "malformed"),
        ({"kind": "sequences", "shape": [1, 2], "low": 0, "high": 3, "x": 1}, "'x'"),
    ],
)
def test_invalid_states(state: dict, message: str):
    with pytest.raises(ConfigError) as caught:
        codec_from_state(state)
    assert caught.value.key == "codec"
    assert message in str(caught.value)


def test_custom_codecs_are_registered_by_a_unique_kind():
    class Custom(ImageCodec):
        kind = "custom"

    try:
        assert isinstance(codec_from_state({"kind": "custom", "shape": [1, 2, 2]}), Custom)
        with pytest.raises(TypeError, match="ImageCodec is already 'images'"):
            type("Duplicate", (ImageCodec,), {"kind": "images"})
    finally:
        Codec._kinds.pop("custom")


@pytest.mark.parametrize("channels", [1, 3])
def test_png_files_are_exact_and_numbered_consecutively(tmp_path: Path, channels: int):
    raw = noise(3, channels, 4, 6)
    codec = ImageCodec((channels, 4, 6))
    paths = codec.write(raw, tmp_path, format="png", first=7)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "images/00007.png",
        "images/00008.png",
        "images/00009.png",
    ]
    assert len(list(tmp_path.rglob("*.*"))) == 3  # temporary files are removed
    for path, item in zip(paths, raw, strict=True):
        with Image.open(path) as image:
            assert image.mode == {1: "L", 3: "RGB"}[channels]
        assert torch.equal(codec.read(str(path)), item)


def test_class_names_in_file_names_cannot_leave_the_folder(tmp_path: Path):
    codec, classes = ImageCodec((1, 4, 6)), ["5", "../naïve cat", "x" * 60]
    paths = codec.write(noise(3, 1, 4, 6), tmp_path, format="png", first=1, classes=classes)
    names = ["images/00001-5.png", "images/00002-.._naïve_cat.png", f"images/00003-{'x' * 40}.png"]
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == names
    assert codec.file_names(["png"], 2, ["5", "a/b"]) == [
        "images/00000-5.png",
        "images/00001-a_b.png",
    ]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_npz_has_the_layout_of_evaluation_programs(tmp_path: Path, channels: int):
    raw = noise(5, channels, 4, 6)
    labels = torch.tensor([3, 1, 4, 1, 5])
    codec = ImageCodec((channels, 4, 6))
    (path,) = codec.write(raw, tmp_path / "new", format="npz", labels=labels)
    with np.load(path) as arrays:
        assert arrays.files == ["arr_0", "arr_1"]
        assert arrays["arr_0"].dtype == np.uint8
        assert np.array_equal(arrays["arr_0"], np.moveaxis(raw.numpy(), 1, 3))
        assert arrays["arr_1"].dtype == np.int64
        assert arrays["arr_1"].tolist() == [3, 1, 4, 1, 5]
    before = path.read_bytes()
    codec.write(raw, tmp_path / "new", format="npz", labels=labels)
    assert path.read_bytes() == before
    (path,) = codec.write(raw, tmp_path / "new", format="npz")
    with np.load(path) as arrays:
        assert arrays.files == ["arr_0"]


def test_npy_of_images_has_channels_last(tmp_path: Path):
    raw = noise(2, 3, 4, 6)
    (path,) = ImageCodec((3, 4, 6)).write(raw, tmp_path, format="npy")
    assert path.name == "samples.npy"
    assert np.array_equal(np.load(path), np.moveaxis(raw.numpy(), 1, 3))


@pytest.mark.parametrize("format", ["npy", "npz"])
def test_sequences_are_written_unchanged(tmp_path: Path, format: str):
    raw = torch.linspace(-2, 2, 24).reshape(3, 2, 4)
    (path,) = SequenceCodec((2, 4), -2, 2).write(raw, tmp_path, format=format)
    arrays = np.load(path)
    values = arrays if format == "npy" else arrays["arr_0"]
    assert values.dtype == np.float32
    assert np.array_equal(values, raw.numpy())


@pytest.mark.parametrize(
    ("codec", "format", "message"),
    [
        (ImageCodec((2, 4, 4)), "png", "format=png: pictures have 1 or 3 channels, these images "
         "have 2; use format=npz"),
        (ImageCodec((1, 4, 4)), "jpg", "format=jpg: unknown; did you mean 'png'?"),
        (SequenceCodec((1, 4), 0, 1), "png", "format=png: unknown (there are: npy, npz)"),
    ],
)  # fmt: skip
def test_unsupported_formats(tmp_path: Path, codec: Codec, format: str, message: str):
    with pytest.raises(ConfigError) as caught:
        codec.write(torch.zeros(1, *codec.shape), tmp_path, format=format)
    assert str(caught.value) == message


def test_file_system_errors_name_the_path(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        ImageCodec((1, 2, 2)).write(noise(1, 1, 2, 2), tmp_path / "file", format="npz")
    assert str(caught.value).startswith(f"path={tmp_path / 'file' / 'samples.npz'}: cannot be")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    codec = ImageCodec((1, 2, 2))
    (path,) = codec.write(noise(1, 1, 2, 2), tmp_path, format="npy")
    before = path.read_bytes()
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        codec.write(noise(9, 1, 2, 2), tmp_path, format="npy")
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "samples.npy"]


def test_reading_resizes_a_picture_to_the_codec(tmp_path: Path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 5:25] = [200, 100, 50]  # the central square, and the margin that a filter uses
    Image.fromarray(wide).save(tmp_path / "wide.png")
    raw = ImageCodec((3, 10, 10)).read(str(tmp_path / "wide.png"))
    assert raw.shape == (3, 10, 10)
    assert raw.flatten(1).unique(dim=1).flatten().tolist() == [200, 100, 50]
    grey = ImageCodec((1, 5, 5)).read(str(tmp_path / "wide.png"))
    luma = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert grey.unique().tolist() == [luma]


def test_reading_errors(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"^path=nowhere.png: no such file$"):
        ImageCodec((3, 8, 8)).read("nowhere.png")
    with pytest.raises(ConfigError, match="1 or 3 channels, these images have 4"):
        ImageCodec((4, 8, 8)).read("nowhere.png")


def test_sequences_are_restored_and_not_clamped():
    codec = SequenceCodec((1, 5), -2.0, 6.0)
    raw = torch.tensor([[[-2.0, 0.0, 2.0, 6.0, 10.0]]])
    assert codec.encode(raw).flatten().tolist() == [-1.0, -0.5, 0.0, 1.0, 2.0]
    assert torch.equal(codec.decode(codec.encode(raw)), raw)


def test_sequences_are_read_from_files_of_the_same_shape(tmp_path: Path):
    values = np.arange(6, dtype=np.float64)
    np.save(tmp_path / "one.npy", values)
    torch.save(torch.from_numpy(values).reshape(2, 3), tmp_path / "two.pt")
    one = SequenceCodec((1, 6), 0, 5).read(str(tmp_path / "one.npy"))
    assert one.dtype == torch.float32
    assert one.tolist() == [values.tolist()]
    assert SequenceCodec((2, 3), 0, 5).read(str(tmp_path / "two.pt")).tolist() == [
        [0.0, 1.0, 2.0],
        [3.0, 4.0, 5.0],
    ]
    with pytest.raises(ConfigError, match=r"has the shape \(6,\), but the model's.*\(2, 3\)"):
        SequenceCodec((2, 3), 0, 5).read(str(tmp_path / "one.npy"))
