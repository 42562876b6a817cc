import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from PIL.GifImagePlugin import getdata

from ddpm.config.registry import build
from ddpm.data import Condition, Videos
from ddpm.data.gifs import write_frames
from ddpm.errors import ConfigError


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def gif(path: Path, frames: np.ndarray) -> Path:
    """Write a GIF of ``(F, H, W)`` or ``(F, H, W, 3)`` values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_frames([Image.fromarray(frame) for frame in frames], path, 100)
    return path


def pictures(folder: Path, frames: np.ndarray, name: str = "{}.png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / name.format(number))
    return folder


def read_all(data: Videos) -> np.ndarray:
    return data.fetch(range(len(data)), [0] * len(data))[0].numpy()


# GIFs


def test_gifs_are_read_exactly_with_equal_frames(tmp_path: Path):
    grey = noise(2, 6, 16, 16)  # all 256 values
    grey[0, 2] = grey[0, 1]
    for number, frames in enumerate(grey):
        gif(tmp_path / "grey" / f"{number}.gif", frames)
    data = Videos(path=str(tmp_path / "grey"))
    assert (len(data), data.shape, data.in_memory) == (2, (1, 6, 16, 16), True)
    assert (data.num_classes, data.class_names) == (None, None)
    assert np.array_equal(read_all(data), grey[:, None])
    colour = noise(3, 5, 4, 6, 3)
    for number, frames in enumerate(colour):
        gif(tmp_path / "colour" / f"{number}.GIF", frames)
    data = Videos(path=str(tmp_path / "colour"))
    assert data.shape == (3, 5, 4, 6)
    assert np.array_equal(read_all(data), colour.transpose(0, 4, 1, 2, 3))


RED, GREEN, BLUE, GREY, WHITE = [200, 0, 0], [0, 150, 0], [0, 0, 90], [50] * 3, [255] * 3


def block(indices: list[list[int]], palette: list[list[int]], x: int, y: int, **control: int):
    image = Image.fromarray(np.array(indices, np.uint8)).convert("P")
    image.putpalette(bytes(np.array(palette, np.uint8)))
    return b"".join(getdata(image, (x, y), include_color_table=True, **control))


def test_partial_frames_disposal_palettes_and_transparency_are_composed(tmp_path: Path):
    colours = [RED, GREEN, BLUE, [1, 2, 3]]
    keep, clear, restore = 1, 2, 3
    blocks = [
        block([[0, 0, 0], [0, 0, 0]], colours, 0, 0, disposal=keep),
        block([[1]], colours, 1, 0, disposal=keep),
        block([[2]], colours, 2, 1, disposal=restore),
        block([[3, 2]], colours, 0, 0, disposal=clear, transparency=3),
        block([[0]], [GREY, RED], 2, 1, disposal=keep),
    ]
    head = b"GIF89a" + struct.pack("<HHBBB", 3, 2, 0x70, 0, 0)
    (tmp_path / "a.gif").write_bytes(head + b"".join(blocks) + b";")
    expected = [
        [[RED, RED, RED], [RED, RED, RED]],
        [[RED, GREEN, RED], [RED, RED, RED]],
        [[RED, GREEN, RED], [RED, RED, BLUE]],
        [[RED, BLUE, RED], [RED, RED, RED]],
        [[WHITE, WHITE, RED], [RED, RED, GREY]],
    ]
    for cache_mb in (0, 2048):
        data = Videos(path=str(tmp_path), cache_mb=cache_mb)
        assert read_all(data)[0].transpose(1, 2, 3, 0).tolist() == expected
    # A late frame can be read on its own.
    assert (
        Videos(path=str(tmp_path), frames=1, cache_mb=0)
        .fetch([4], [0])[0]
        .numpy()[0, :, 0]
        .transpose(1, 2, 0)
        .tolist()
        == expected[4]
    )


def test_a_grey_gif_with_one_coloured_palette_is_coloured(tmp_path: Path):
    blocks = block([[0]], [GREY, WHITE], 0, 0) + block([[1]], [GREY, RED], 0, 0)
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x70, 0, 0)
    (tmp_path / "a.gif").write_bytes(head + blocks + b";")
    assert read_all(Videos(path=str(tmp_path)))[0].reshape(3, 2).T.tolist() == [GREY, RED]
    assert Videos(path=str(tmp_path), color="grey").shape == (1, 2, 1, 1)


# folders of frames


def test_frames_are_in_natural_order(tmp_path: Path):
    frames = noise(12, 4, 4)
    pictures(tmp_path / "a", frames, "frame{}.png")  # alphabetically, frame10 precedes frame2
    assert np.array_equal(read_all(Videos(path=str(tmp_path)))[0, 0], frames)
    assert np.array_equal(read_all(Videos(path=str(tmp_path / "a")))[0, 0], frames)


def test_gifs_and_folders_of_frames_at_any_depth(tmp_path: Path):
    videos = noise(3, 4, 5, 6)
    gif(tmp_path / "b.gif", videos[1])
    pictures(tmp_path / "c" / "deep", videos[2], "{:03}.bmp")
    pictures(tmp_path / "a", videos[0])
    (tmp_path / "a" / "notes.txt").write_text("")
    (tmp_path / "a" / ".hidden.png").write_text("")
    assert np.array_equal(read_all(Videos(path=str(tmp_path)))[:, 0], videos)


def test_classes_are_the_first_folders_of_the_paths(tmp_path: Path):
    videos = noise(3, 6, 4, 4)
    pictures(tmp_path / "walk" / "x", videos[0])
    gif(tmp_path / "run" / "deep" / "er.gif", videos[1])
    gif(tmp_path / "walk" / "y.gif", videos[2])
    data = Videos(path=str(tmp_path), class_cond=True, frames=3)
    assert (data.num_classes, data.class_names) == (2, ["run", "walk"])
    raw, labels = data.fetch(range(6), [0] * 6)
    assert labels is not None and labels.dtype == torch.int64
    assert labels.tolist() == [0, 0, 1, 1, 1, 1]  # each clip has the class of its video
    assert np.array_equal(raw[4:, 0].reshape(6, 4, 4).numpy(), videos[2])


# frames, stride, size


@pytest.mark.parametrize("cache_mb", [0, 2048])
@pytest.mark.parametrize(
    ("frames", "stride", "starts"),
    [
        (None, 1, [0]),
        (None, 3, [0]),
        (4, 1, [0, 4]),
        (5, 1, [0, 5]),
        (11, 1, [0]),
        (1, 1, list(range(11))),
        (3, 2, [0, 6]),  # of the frames 0 2 4 6 8 10
        (2, 4, [0]),  # of 0 4 8
        (1, 5, [0, 5, 10]),
    ],
)
@pytest.mark.parametrize("kind", ["gif", "pictures", "array"])
def test_videos_are_divided_into_consecutive_clips(
    tmp_path: Path, kind: str, frames: int | None, stride: int, starts: list[int], cache_mb: int
):
    videos = noise(2, 11, 3, 4)
    for number, video in enumerate(videos):
        if kind == "gif":
            gif(tmp_path / f"{number}.gif", video)
        elif kind == "pictures":
            pictures(tmp_path / str(number), video)
    if kind == "array":
        np.save(tmp_path / "a.npy", videos[:, None])
    path = str(tmp_path / "a.npy" if kind == "array" else tmp_path)
    data = Videos(path=path, frames=frames, stride=stride, cache_mb=cache_mb)
    count = frames or len(range(0, 11, stride))
    expected = [
        [video[start : start + count * stride : stride]] for video in videos for start in starts
    ]
    assert data.shape == (1, count, 3, 4)
    assert data.in_memory == (cache_mb > 0)
    assert np.array_equal(read_all(data), expected)
    last = data.fetch([len(data) - 1, 0], [0, 0])[0].numpy()
    assert np.array_equal(last, [expected[-1], expected[0]])


def test_frames_are_resized(tmp_path: Path):
    frames = np.zeros((3, 10, 30), np.uint8)
    frames[:, :, 5:25] = np.array([50, 100, 200], np.uint8)[:, None, None]
    gif(tmp_path / "files" / "a.gif", frames)
    np.save(tmp_path / "a.npy", frames[None, None])
    for name, order in (("files", None), ("a.npy", "ncfhw")):
        path: dict[str, Any] = {"path": str(tmp_path / name), "order": order}
        data = Videos(**path, image_size=10)
        assert data.shape == (1, 3, 10, 10)
        assert [np.unique(frame).tolist() for frame in read_all(data)[0, 0]] == [[50], [100], [200]]
        assert Videos(**path, image_size=(5, 15)).shape == (1, 3, 5, 15)


def test_resizing_preserves_the_range_of_floats(tmp_path: Path):
    values = np.zeros((1, 2, 3, 8, 8), np.float32)
    values[..., 4:] = [[[[0.5]]], [[[-2.5]]]]
    np.save(tmp_path / "a.npy", values)
    raw = read_all(Videos(path=str(tmp_path / "a.npy"), image_size=16, order="ncfhw"))
    assert raw.shape == (1, 2, 3, 16, 16)
    assert (raw.min(), raw.max()) == (-2.5, 0.5)  # bicubic interpolation alone would exceed it
    assert np.allclose(raw[0, 0, :, :, 12:], 0.5) and np.allclose(raw[..., :4], 0)


def test_all_frames_of_a_clip_are_mirrored(tmp_path: Path):
    values = noise(20, 1, 6, 3, 4)
    np.save(tmp_path / "a.npy", values)
    data = Videos(path=str(tmp_path / "a.npy"), flip=True)
    raw = data.fetch(range(20), range(20))[0].numpy()
    mirrored = [np.array_equal(a, b[..., ::-1]) for a, b in zip(raw, values, strict=True)]
    unchanged = [np.array_equal(a, b) for a, b in zip(raw, values, strict=True)]
    assert 4 < sum(mirrored) < 16 and sum(unchanged) == 20 - sum(mirrored)


# arrays


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_order_of_axes_is_inferred_from_the_shape(tmp_path: Path, channels: int, suffix: str):
    values = noise(2, channels, 5, 3, 4)
    for name, array in (("ncfhw", values), ("nfchw", values.swapaxes(1, 2))):
        path = tmp_path / f"{name}.{suffix}"
        np.save(path, array) if suffix == "npy" else np.savez(path, array)
        for order in (None, name):
            data = Videos(path=str(path), order=order)  # pyright: ignore[reportArgumentType]
            assert data.shape == (channels, 5, 3, 4)
            assert np.array_equal(read_all(data), values)


def test_the_order_of_axes_can_be_set_for_ambiguous_shapes(tmp_path: Path):
    values = noise(2, 3, 4, 5, 5)
    np.save(tmp_path / "a.npy", values)
    path = str(tmp_path / "a.npy")
    assert np.array_equal(read_all(Videos(path=path, order="ncfhw")), values)
    assert np.array_equal(read_all(Videos(path=path, order="nfchw")), values.swapaxes(1, 2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int64])
def test_other_types_than_uint8_become_float32_with_a_range(tmp_path: Path, dtype: Any):
    values = np.random.default_rng(0).normal(0, 9, (3, 2, 6, 4, 4)).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    raw32 = values.astype(np.float32)
    for cache_mb in (0, 2048):
        data = Videos(path=str(tmp_path / "a.npy"), cache_mb=cache_mb)
        raw = data.fetch([2, 0], [0, 0])[0]
        assert raw.dtype == torch.float32
        assert np.array_equal(raw.numpy(), raw32[[2, 0]])
        state = data.codec.state()
        assert (state["low"], state["high"]) == (float(raw32.min()), float(raw32.max()))
    data = Videos(path=str(tmp_path / "a.npy"), low=-1000, high=2000)
    assert (data.codec.state()["low"], data.codec.state()["high"]) == (-1000.0, 2000.0)


def test_labels_and_keys_of_an_npz(tmp_path: Path):
    values = noise(3, 1, 6, 2, 2)
    path = str(tmp_path / "a.npz")
    np.savez(path, clips=values, more=values, labels=np.array([2, 0, 1]))
    data = Videos(path=path, key="clips", class_cond=True, frames=2)
    assert (len(data), data.num_classes, data.class_names) == (9, 3, ["0", "1", "2"])
    labels = data.fetch(range(9), [0] * 9)[1]
    assert labels is not None and labels.tolist() == [2, 2, 2, 0, 0, 0, 1, 1, 1]


# the config


def test_the_condition_is_built_from_a_group_of_options(tmp_path: Path):
    np.save(tmp_path / "a.npy", noise(2, 3, 8, 4, 4))
    node = yaml.safe_load((Path(__file__).parents[2] / "configs/data/video.yaml").read_text())
    node["path"] = str(tmp_path / "a.npy")
    del node["val_fraction"]  # is not an option of the class
    assert build(node, "data").codec.condition_mask is None
    node["condition"] = {"cond_frames": 1e0, "channels": [1]}
    codec = build(node, "data").codec
    assert codec.condition == Condition(cond_frames=1, channels=(1,))
    assert codec.condition_mask.flatten(1).int().tolist() == [[1] + [0] * 7, [1] * 8, [1] + [0] * 7]
    assert codec.condition_channels == (1,)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"cond_frames": 8}, "condition.cond_frames=8: must be less than 8, the frames of a "
         "clip; at least 1 must be generated"),
        ({"cond_frames": -1}, "condition.cond_frames=-1: must be 0 or more"),
        ({"cond_frames": 1.5}, "condition.cond_frames=1.5: must be a whole number"),
        ({"channels": [3]}, "condition.channels=[3]: the data have channels 0 to 2; use some"),
        ({"channels": [0, -1]}, "condition.channels=[0,-1]: the data have channels 0 to 2"),
        ({"channels": [1, 1]}, "condition.channels=[1,1]: contains a channel twice; use each once"),
        ({"channels": [2, 1, 0]}, "condition.channels=[2,1,0]: at least 1 of the channels 0 to 2 "
         "must be generated; remove one"),
        ({"channels": 1}, "condition.channels=1: must be a list, each a whole number, like [1,2]"),
        ({"frames": 1}, "condition.frames=1: unknown option; did you mean "
         "'data.condition.cond_frames'?"),
        (3, "condition=3: must be a group of options"),
        (None, "condition=null: must be a group of options"),
    ],
)  # fmt: skip
def test_errors_of_invalid_conditions(tmp_path, condition, message):
    np.save(tmp_path / "a.npy", noise(2, 3, 8, 4, 4))
    node = {"_target_": "ddpm.data.Videos", "path": str(tmp_path / "a.npy")}
    with pytest.raises(ConfigError) as caught:
        build({**node, "condition": condition}, "data")
    assert str(caught.value).startswith(f"data.{message}")


# errors


def error_of(**options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        Videos(**options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


KINDS = "use a folder of videos, or an array (.npy, .npz, .pt)"
SHAPE = "it must be (N, channels, frames, height, width), or (N, frames, channels, ...)"
FLOATS = np.linspace(-3, 3, 2 * 5 * 4 * 4, dtype=np.float32).reshape(2, 1, 5, 4, 4)
BROKEN = FLOATS.copy()
BROKEN[1, 0, 0, 0, :3] = [np.nan, np.inf, -np.inf]
BYTES = np.zeros((2, 1, 5, 4, 4), np.uint8)
ONES = np.zeros(3, np.int64)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"a": BYTES[0]}, {}, f"path=FILE: has the shape (1, 5, 4, 4); {SHAPE}"),
        ({"a": BYTES[:0]}, {}, f"path=FILE: has the shape (0, 1, 5, 4, 4); {SHAPE}"),
        ({"a": BYTES * 1j}, {}, "path=FILE: contains values of type complex128; save real numbers"),
        ({"a": BROKEN}, {}, "path=FILE: 3 of its 160 values are NaN or infinite; remove or"),
        ({"a": FLOATS}, {"low": -1.0}, "low=-1.0: FILE contains values down to -3; lower data.low"),
        ({"a": FLOATS}, {"high": 2.0}, "high=2.0: FILE contains values up to 3; raise data.high"),
        ({"a": BYTES * 0.0}, {}, "low: the range from 0 to 0 for the values of FILE is empty"),
        ({"a": BYTES}, {"low": 0.0}, "low=0.0: FILE contains uint8, whose range is 0 to 255; "
         "omit it, or"),
        ({"a": BYTES}, {"high": 1.0}, "high=1.0: FILE contains uint8, whose range is 0 to 255; "
         "omit it"),
        ({"a": BYTES[:, :, :4]}, {}, "order: FILE has the shape (2, 1, 4, 4, 4), in which both "
         "axes 1 and 2 may be 1 to 4 channels; set data.order=ncfhw or data.order=nfchw"),
        ({"a": BYTES.repeat(5, 1)}, {}, "order: FILE has the shape (2, 5, 5, 4, 4), in which "
         "neither of axes 1 and 2 may be 1 to 4 channels; set data.order=ncfhw or"),
        ({"a": BYTES}, {"color": "rgb"}, "color=rgb: only applies to pictures; omit"),
        ({"a": BYTES}, {"frames": 6}, "frames=6: video 0 of FILE has only 5 frames; set "
         "data.frames=5 or less, or remove the video"),
        ({"a": BYTES}, {"frames": 3, "stride": 3}, "frames=3: video 0 of FILE has only 5 "
         "frames with data.stride=3; set data.frames=2 or less, or remove the video"),
        ({"a": BYTES}, {"frames": 0}, "frames=0: must be at least 1, or null for whole videos"),
        ({"a": BYTES}, {"stride": 0}, "stride=0: must be at least 1, which uses every frame"),
        ({"a": BYTES}, {"cache_mb": -1}, "cache_mb=-1: must be 0 or more"),
        ({"a": BYTES}, {"image_size": 0}, "image_size=0: must be a positive number of pixels"),
        ({"a": BYTES}, {"class_cond": True}, "class_cond=true: FILE contains no labels; add an "
         "array"),
        ({"a": BYTES, "labels": ONES}, {"class_cond": True}, "class_cond=true: FILE contains "
         "labels of shape (3,); they must be (2,), one per video"),
        ({"a": BYTES, "b": BYTES}, {}, "key: FILE has neither arr_0 nor a single array; set "
         "data.key to one of: a, b"),
    ],
)  # fmt: skip
def test_errors_of_invalid_arrays(tmp_path, arrays, options, message):
    path = str(tmp_path / "a.npz")
    np.savez(path, **arrays)
    assert error_of(path=path, **options).replace(path, "FILE").startswith(message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none", None, f"not found; {KINDS}"),
        ("", None, "not found; use"),
        ("a.mp4", b"", f"unknown kind of file; {KINDS}"),
        ("a.gif", b"", f"unknown kind of file; {KINDS}"),
        ("a.npy", b"", "cannot be read ("),
        ("a.npz", b"PK\x03\x04 and no more", "cannot be read ("),
        ("none.npy", None, "no such file"),
    ],
)
def test_errors_of_invalid_paths(tmp_path: Path, name, content, message):
    path = str(tmp_path / name) if name else ""
    if content is not None:
        Path(path).write_bytes(content)
    assert error_of(path=path).startswith(f"path={path}: {message}")


def test_the_error_of_a_folder_without_videos(tmp_path: Path):
    (tmp_path / "a.avi").write_bytes(b"")
    assert error_of(path=str(tmp_path)) == (
        f"path={tmp_path}: contains no videos (.gif .mp4 .webm .mov .jpg .jpeg .jpe .jfif .png "
        ".webp .bmp .tif .tiff) at any depth; skipped 1 .avi; set data.path to a folder of videos"
    )


WHOLE = noise(9, 8, 8)


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        (noise(9, 6, 7), {}, "image_size: the images differ in size: a/a.gif is 8 wide and 8 high, "
         "FILE is 7 wide and 6 high; resize them to one size, such as data.image_size=6"),
        (noise(9, 8, 8, 3), {}, "color=auto: a/a.gif is grey but FILE is in colour; set data.color="
         "rgb or data.color=grey"),
        (noise(7, 8, 8), {}, "frames: the videos differ in length with data.stride=1: a/a.gif "
         "has 9, VIDEO has 7; set the frames per clip, such as data.frames=7"),
        (noise(7, 8, 8), {"stride": 2}, "frames: the videos differ in length with data.stride="
         "2: a/a.gif has 5, VIDEO has 4; set the frames per clip, such as data.frames=4"),
        (noise(7, 8, 8), {"frames": 8}, "frames=8: VIDEO has only 7 frames; set "
         "data.frames=7 or less, or remove the video"),
        (WHOLE, {"class_cond": True}, "class_cond=true: VIDEO is not in a class folder; move it"),
        (WHOLE, {"low": 0.0}, "low=0.0: only applies to 16-bit grey pictures, but all have 8 "
         "bits; omit it"),
        (WHOLE, {"high": 0.0}, "high=0.0: white must be greater than black, but black is 0 and "
         "white is 0"),
        (WHOLE, {"key": "a"}, "key=a: only applies to arrays; omit it"),
        (WHOLE, {"order": "ncfhw"}, "order=ncfhw: only applies to arrays; omit it"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["gif", "pictures"])
@pytest.mark.parametrize("cache_mb", [0, 2048])
def test_errors_of_inconsistent_videos(tmp_path, frames, options, message, kind, cache_mb):
    gif(tmp_path / "a" / "a.gif", WHOLE)
    if kind == "gif":
        gif(tmp_path / "b.gif", frames)
        file = video = "b.gif"
    else:
        pictures(tmp_path / "b", frames)
        file, video = "b/0.png", "b"
    line = error_of(path=str(tmp_path), cache_mb=cache_mb, **options)
    assert line.startswith(message.replace("FILE", file).replace("VIDEO", video))


def test_errors_of_truncated_gifs(tmp_path: Path):
    whole = gif(tmp_path / "a.gif", noise(3, 4, 4)).read_bytes()
    for length in [*range(0, len(whole), 9), len(whole) - 1]:
        (tmp_path / "a.gif").write_bytes(whole[:length])
        line = error_of(path=str(tmp_path))
        assert line.startswith(f"path={tmp_path / 'a.gif'}: ")
        assert line.endswith("; remove the file or re-encode it")
    (tmp_path / "a.gif").write_bytes(whole + b"and more")  # is ignored
    assert Videos(path=str(tmp_path)).shape == (1, 3, 4, 4)


@pytest.mark.parametrize("cache_mb", [0, 2048])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("b.gif", b"", "is not a GIF; remove the file or re-encode it"),
        ("b.gif", b"<html>404</html>", "is not a GIF; remove the file or re-encode it"),
        ("b.gif", "png", "is not a GIF; remove the file or re-encode it"),
        ("b.gif", b"GIF89a" + struct.pack("<HHBBB", 9000, 9000, 0, 0, 0) + b",", "is not a GIF"),
        (
            "b/1.png",
            b"",
            "is not a JPEG, PNG, WebP, BMP or TIFF picture; remove the file or re-encode",
        ),
    ],
)
def test_errors_of_invalid_files(
    tmp_path: Path, name: str, content: Any, message: str, cache_mb: int
):
    gif(tmp_path / "a.gif", WHOLE)
    bad = tmp_path / name
    bad.parent.mkdir(exist_ok=True)
    if content == "png":
        Image.fromarray(WHOLE[0]).save(bad, "PNG")
    else:
        bad.write_bytes(content)
    assert error_of(path=str(tmp_path), cache_mb=cache_mb).startswith(f"path={bad}: {message}")


def test_the_error_of_a_gif_that_is_too_large(tmp_path: Path):
    pixel = block([[0]], [RED], 0, 0)
    head = b"GIF89a" + struct.pack("<HHBBB", 9000, 9000, 0x70, 0, 0)
    (tmp_path / "a.gif").write_bytes(head + pixel + b";")
    message = "has 9000x9000 pixels, the limit is 64 million; remove the file or scale it down"
    assert error_of(path=str(tmp_path)) == f"path={tmp_path / 'a.gif'}: {message}"


def test_the_error_of_a_gif_with_damaged_pixels(tmp_path: Path):
    path = gif(tmp_path / "a.gif", noise(2, 16, 16))
    data = Videos(path=str(tmp_path), cache_mb=0)
    head = b"GIF89a" + struct.pack("<HHBBB", 16, 16, 0x70, 0, 0)
    part = struct.pack("<BHHHHB", 0x2C, 0, 0, 16, 16, 0) + b"\x08\x02\x00\x01\0"
    path.write_bytes(head + part + b";")  # complete blocks with missing pixels
    with pytest.raises(ConfigError, match=r"a\.gif: is damaged \("):
        data.fetch([0], [0])
    path.unlink()
    with pytest.raises(ConfigError, match=r"a\.gif: no such file"):
        data.fetch([0], [0])


def test_arrays_accept_the_legacy_defaults(tmp_path: Path):
    """A stored config is completed with legacy defaults, independent of the kind of files."""
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4, 8, 8), np.uint8))
    path = str(tmp_path / "a.npy")
    assert Videos(path=path, order="ncfhw", **Videos.legacy_defaults).shape == (3, 4, 8, 8)
    with pytest.raises(ConfigError) as caught:
        Videos(path=path, order="ncfhw", bits=16)
    assert str(caught.value) == "bits=16: only applies to pictures; omit it"
