import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.data import Codec, Condition, Digits, ImageCodec, VideoCodec, codec_from_state
from ddpm.errors import ConfigError


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.integers(0, 256, shape, dtype=np.uint8))


def floats(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(0, 2, shape).astype(np.float32))


def gif_frames(path: Path, mode: str) -> np.ndarray:
    with Image.open(path) as image:
        frames = []
        for index in range(getattr(image, "n_frames")):  # noqa: B009
            image.seek(index)
            frames.append(np.asarray(image.convert(mode)))
    return np.stack(frames)


CONDITION = Condition(cond_frames=2, channels=(1,))


# model space and state


def test_uint8_is_scaled_like_that_of_images():
    raw = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 4, 8, 8)
    codec = VideoCodec((1, 4, 8, 8))
    x = codec.encode(raw)
    assert torch.equal(x.flatten(), ImageCodec((1, 16, 16)).encode(raw).flatten())
    assert (float(x.min()), float(x.max())) == codec.bounds == (-1.0, 1.0)
    assert torch.equal(codec.decode(x), raw)
    assert codec.decode(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


def test_floats_are_not_clamped():
    codec = VideoCodec((1, 5, 1, 1), -2.0, 6.0)
    raw = torch.tensor([-2.0, 0.0, 2.0, 6.0, 10.0]).reshape(1, 1, 5, 1, 1)
    assert codec.encode(raw).flatten().tolist() == [-1.0, -0.5, 0.0, 1.0, 2.0]
    assert torch.equal(codec.decode(codec.encode(raw)), raw)


@pytest.mark.parametrize("limits", [(), (-0.5, 1e6)])
@pytest.mark.parametrize("condition", [Condition(), CONDITION])
def test_the_state_is_plain_json_and_restores_the_codec(limits, condition):
    codec = VideoCodec((2, 3, 5, 7), *limits, condition=condition)
    again = codec_from_state(json.loads(json.dumps(codec.state())))
    assert isinstance(again, VideoCodec)
    assert (again.state(), again.shape) == (codec.state(), (2, 3, 5, 7))
    assert again.condition == condition
    assert again.condition_channels == codec.condition_channels == condition.channels
    x = floats(1, 2, 3, 5, 7)
    assert torch.equal(again.decode(x), codec.decode(x))
    if condition == CONDITION:
        assert again.condition_mask is not None and codec.condition_mask is not None
        assert torch.equal(again.condition_mask, codec.condition_mask)
    else:
        assert again.condition_mask is None and codec.condition_mask is None


STATE: dict[str, Any] = {
    "kind": "videos", "shape": [2, 3, 4, 4], "low": None, "high": None, "condition": {},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [2, 4, 4]}, "positive whole numbers (channels frames height width)"),
        ({"low": 1.0}, "requires high; set both or neither"),
        ({"low": 1.0, "high": 1.0}, "less than high=1.0"),
        ({"condition": {"cond_frames": 3}}, "less than 3, the frames of a clip"),
        ({"condition": {"cond_frames": "x"}}, "malformed"),
        ({"condition": {"channels": ["x"]}}, "malformed"),
        ({"condition": {"frames": 1}}, "'frames'"),
        ({"condition": 3}, "malformed"),
    ],
)
def test_invalid_states(change: dict[str, Any], message: str):
    assert codec_from_state(STATE).state()["condition"] == {"cond_frames": 0, "channels": []}
    with pytest.raises(ConfigError) as caught:
        codec_from_state({**STATE, **change})
    assert caught.value.key == "codec" and message in str(caught.value)


# conditions


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        (Condition(cond_frames=1), [[1, 0, 0], [1, 0, 0]]),
        (Condition(cond_frames=2), [[1, 1, 0], [1, 1, 0]]),
        (Condition(channels=(1,)), [[0, 0, 0], [1, 1, 1]]),
        (Condition(cond_frames=1, channels=(0,)), [[1, 1, 1], [1, 0, 0]]),
    ],
)
def test_condition_mask(condition: Condition, rows: list[list[int]]):
    mask = VideoCodec((2, 3, 4, 5), condition=condition).condition_mask
    assert mask is not None
    assert (mask.shape, mask.dtype) == ((2, 3, 1, 1), torch.bool)
    assert mask[..., 0, 0].int().tolist() == rows


def test_codecs_without_a_condition():
    for codec in (ImageCodec((1, 4, 4)), VideoCodec((1, 2, 4, 4))):
        assert (codec.condition_mask, codec.condition_channels) == (None, ())
        with pytest.raises(
            ConfigError,
            match=r"path=a\.npz: the model was trained without a "
            r"condition",
        ):
            codec.read_condition("a.npz")


def save(folder: Path, kind: str, raw: torch.Tensor) -> str:
    """Write raw videos ``(N, C, F, H, W)`` to a file, or the first of them as pictures."""
    if kind in ("gif", "frames"):
        codec = VideoCodec(raw.shape[1:])
        (path,) = codec.write(raw[:1], folder, format="gif")
        if kind == "frames":
            (folder / "frames").mkdir()
            mode = "L" if raw.shape[1] == 1 else "RGB"
            for number, frame in enumerate(gif_frames(path, mode)):
                Image.fromarray(frame).save(folder / "frames" / f"{number}.png")
            path = folder / "frames"
        return str(path)
    path = folder / "a.npy"
    np.save(path, raw.swapaxes(1, 2) if kind == "nfchw" else raw)
    return str(path)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("length", [2, 5, 7])
@pytest.mark.parametrize("kind", ["gif", "frames", "ncfhw", "nfchw"])
def test_frames_of_the_condition_are_read_from_files(tmp_path, kind, channels, length):
    raw = noise(3, channels, length, 6, 8)
    codec = VideoCodec((channels, 5, 6, 8), condition=Condition(cond_frames=2))
    read = codec.read_condition(save(tmp_path, kind, raw))
    count = 1 if kind in ("gif", "frames") else 3
    assert (read.shape, read.dtype) == ((count, channels, 5, 6, 8), torch.uint8)
    assert torch.equal(read[:, :, :2], raw[:count, :, :2])
    assert read[:, :, 2:].unique().tolist() == [0]


def test_channels_of_the_condition_are_read_from_files_of_all_or_these_channels(tmp_path: Path):
    raw = floats(2, 3, 5, 4, 4)
    codec = VideoCodec((3, 5, 4, 4), -9.0, 9.0, Condition(channels=(2, 0)))
    expected = raw.clone()
    expected[:, 1] = -9
    np.save(tmp_path / "whole.npy", raw)
    np.save(tmp_path / "alone.npy", raw[:, [2, 0]])
    np.save(tmp_path / "frames_first.npy", raw[:, [2, 0]].swapaxes(1, 2))
    np.save(tmp_path / "one.npy", raw[0])
    for name in ("whole", "alone", "frames_first"):
        assert torch.equal(codec.read_condition(str(tmp_path / f"{name}.npy")), expected)
    assert torch.equal(codec.read_condition(str(tmp_path / "one.npy")), expected[:1])


def test_a_condition_of_frames_and_channels(tmp_path: Path):
    raw = noise(2, 3, 5, 4, 4)
    codec = VideoCodec((3, 5, 4, 4), condition=Condition(cond_frames=1, channels=(1,)))
    read = codec.read_condition(save(tmp_path, "ncfhw", raw))
    assert codec.condition_mask is not None
    assert torch.equal(
        read, torch.where(codec.condition_mask, raw, torch.tensor(0, dtype=torch.uint8))
    )


@pytest.mark.parametrize(
    ("condition", "kind", "shape", "message"),
    [
        ({"cond_frames": 3}, "gif", (1, 3, 2, 4, 4), "has 2 frames, but 3 are required; use a "
         "longer video"),
        ({"channels": (1,)}, "gif", (1, 3, 4, 4, 4), "has 4 frames, but 5 are required"),
        ({"cond_frames": 3}, "ncfhw", (1, 3, 2, 4, 4), "has the shape (1, 3, 2, 4, 4), but the "
         "model's videos (3, 5, 4, 4) (channels, frames, height, width), of which 3 frames are"),
        ({"cond_frames": 1}, "ncfhw", (1, 3, 5, 4, 6), "has the shape (1, 3, 5, 4, 6), but"),
        ({"cond_frames": 1}, "ncfhw", (3, 4, 4), "has the shape (3, 4, 4), but"),
        ({"cond_frames": 1, "channels": (1,)}, "ncfhw", (1, 1, 5, 4, 4), "has the shape (1, 1, 5,"),
    ],
)  # fmt: skip
def test_errors_of_files_without_the_condition(tmp_path, condition, kind, shape, message):
    codec = VideoCodec((3, 5, 4, 4), condition=Condition(**condition))
    path = save(tmp_path, kind, noise(*shape))
    with pytest.raises(ConfigError) as caught:
        codec.read_condition(path)
    assert str(caught.value).startswith(f"path={path}: {message}")


# reading


@pytest.mark.parametrize("kind", ["gif", "frames", "ncfhw", "nfchw"])
def test_the_first_frames_of_a_video_are_read(tmp_path: Path, kind: str):
    raw = noise(1, 1, 7, 4, 6)
    codec = VideoCodec((1, 5, 4, 6))
    read = codec.read(save(tmp_path, kind, raw))
    assert torch.equal(read, raw[0, :, :5])


def test_pictures_are_converted_to_floats_and_resized(tmp_path: Path):
    frames = torch.zeros(1, 1, 2, 10, 30, dtype=torch.uint8)
    frames[..., 5:25] = torch.tensor([51, 204], dtype=torch.uint8).reshape(2, 1, 1)
    path = save(tmp_path, "gif", frames)
    read = VideoCodec((1, 2, 5, 5), -1.0, 4.0).read(path)
    assert read.dtype == torch.float32
    assert torch.allclose(
        read, torch.tensor([0.0, 3.0]).reshape(2, 1, 1).expand(1, 2, 5, 5), atol=1e-6
    )


@pytest.mark.parametrize(
    ("codec", "name", "message"),
    [
        (VideoCodec((1, 5, 4, 6)), "two.npy", "contains 2 videos; save a single one"),
        (VideoCodec((1, 5, 4, 6)), "float.npy", "contains float32, but the model's videos are "
         "uint8; save whole numbers from 0 to 255"),
        (VideoCodec((1, 5, 4, 6)), "large.npy", "contains int64, but the model's videos are uint8"),
        (VideoCodec((1, 6, 4, 6)), "one.npy", "has the shape (1, 5, 4, 6), but the model's"),
        (VideoCodec((2, 5, 4, 6)), "a.gif", "pictures have 1 or 3 channels, the model's videos 2;"),
        (VideoCodec((1, 5, 4, 6)), "none.gif", "no such file"),
        (VideoCodec((1, 5, 4, 6)), "none.npy", "no such file"),
        (VideoCodec((1, 5, 4, 6)), "none", "not found; use a GIF, mp4, webm or mov file, a folder "
         "of frames, or an array (.npy, .npz, .pt)"),
        (VideoCodec((1, 5, 4, 6)), "empty", "contains no frames ("),
        (VideoCodec((1, 5, 4, 6)), "above", "its pictures are in subfolders; use the folder "
         "of a single video"),
    ],
)  # fmt: skip
def test_errors_of_reading(tmp_path: Path, codec: Codec, name, message):
    one = noise(1, 5, 4, 6)
    np.save(tmp_path / "one.npy", one)
    np.save(tmp_path / "two.npy", torch.stack([one, one]))
    np.save(tmp_path / "float.npy", one.float())
    np.save(tmp_path / "large.npy", one.long() + 200)
    (tmp_path / "empty").mkdir()
    (tmp_path / "above" / "a").mkdir(parents=True)
    Image.fromarray(one[0, 0].numpy()).save(tmp_path / "above" / "a" / "0.png")
    with pytest.raises(ConfigError) as caught:
        codec.read(str(tmp_path / name))
    assert str(caught.value).startswith(f"path={tmp_path / name}: {message}")
    assert "\n" not in str(caught.value)


# writing


@pytest.mark.parametrize("channels", [1, 3])
def test_gifs_are_exact_and_numbered_consecutively(tmp_path: Path, channels: int):
    raw = noise(2, channels, 6, 8, 10)
    raw[0, :, 3] = raw[0, :, 2]  # equal frames are kept
    codec = VideoCodec((channels, 6, 8, 10))
    paths = codec.write(raw, tmp_path, format="gif", first=7)
    names = [path.relative_to(tmp_path).as_posix() for path in paths]
    assert names == ["videos/00007.gif", "videos/00008.gif"]
    assert len(list(tmp_path.rglob("*.*"))) == 2  # temporary files are removed
    for path, item in zip(paths, raw, strict=True):
        assert torch.equal(codec.read(str(path)), item)
        frames = gif_frames(path, "L" if channels == 1 else "RGB")  # as read by other programs
        assert np.array_equal(frames.reshape(6, 8, 10, channels), item.permute(1, 2, 3, 0))
        with Image.open(path) as image:
            assert (image.info["loop"], image.info["duration"]) == (0, 100)


def test_gifs_of_floats_and_of_other_numbers_of_channels(tmp_path: Path):
    raw = torch.tensor([-1.0, 4.0, 9.0, -5.0]).reshape(1, 2, 2, 1, 1).expand(1, 2, 2, 3, 3)
    (path,) = VideoCodec((2, 2, 3, 3), -1.0, 4.0).write(raw, tmp_path, format="gif")
    frames = gif_frames(path, "L")
    assert frames.shape == (2, 3, 6)
    assert frames[:, 0].tolist() == [[0, 0, 0, 255, 255, 255], [255, 255, 255, 0, 0, 0]]


@pytest.mark.parametrize("raw", [noise(3, 2, 4, 5, 6), floats(3, 2, 4, 5, 6)], ids=["u8", "f32"])
def test_arrays_are_written_unchanged(tmp_path: Path, raw: torch.Tensor):
    codec = VideoCodec((2, 4, 5, 6), *(() if raw.dtype == torch.uint8 else (-1, 1)))
    (path,) = codec.write(raw, tmp_path, format="npz", labels=torch.tensor([3, 1, 2]))
    with np.load(path) as arrays:
        assert arrays["arr_0"].dtype == raw.numpy().dtype
        assert np.array_equal(arrays["arr_0"], raw)
        assert arrays["arr_1"].tolist() == [3, 1, 2]
    (path,) = codec.write(raw, tmp_path, format="npy")
    assert np.array_equal(np.load(path), raw)
    with pytest.raises(ConfigError, match=r"^format=mp4: unknown"):
        codec.write(raw, tmp_path, format="mp4")


def test_formats_and_folders():
    codec = VideoCodec((1, 4, 5, 6))
    assert (codec.unit, codec.default_format, codec.extra_formats) == ("video", "gif", ("npz",))
    assert codec.formats == ("gif", "npz", "npy") and dict(codec.folders) == {"gif": "videos"}
    images = ImageCodec((1, 4, 4))
    assert (images.extra_formats, dict(images.folders)) == ((), {"png": "images"})


# pictures


@pytest.mark.parametrize(
    ("shape", "columns", "size"),
    [
        ((3, 1, 5, 64, 64), None, (5 * 66 + 2, 3 * 66 + 2)),
        ((12, 1, 5, 64, 64), None, (5 * 66 + 2, 8 * 66 + 2)),  # the first 8 videos
        ((12, 1, 5, 64, 64), 12, (5 * 66 + 2, 12 * 66 + 2)),  # all videos
        ((1, 1, 40, 64, 64), None, (16 * 66 + 2, 68)),  # 16 of 40 frames
        ((1, 2, 3, 64, 64), None, (3 * 130 + 2, 68)),  # channels side by side
    ],
)
def test_the_size_of_a_film_strip(shape, columns, size):
    picture = VideoCodec(shape[1:]).picture(torch.zeros(shape, dtype=torch.uint8), columns=columns)
    assert picture.size == size


def test_a_film_strip_is_a_row_of_frames_of_a_video():
    raw = noise(2, 1, 31, 64, 64)
    pixels = np.asarray(VideoCodec((1, 31, 64, 64)).picture(raw))
    for row in range(2):
        for place in range(16):
            top, left = 2 + 66 * row, 2 + 66 * place
            cell = pixels[top : top + 64, left : left + 64]
            assert np.array_equal(cell, raw[row, 0, 2 * place])


def test_a_motion_gif_shows_all_videos(tmp_path: Path):
    raw, _ = Digits().fetch(range(24), range(24))
    raw = raw.reshape(4, 6, 1, 8, 8).transpose(1, 2)
    codec = VideoCodec((1, 6, 8, 8))
    path = codec.write_motion_gif(raw, tmp_path / "new" / "a.gif", columns=4, duration_ms=50)
    assert path == tmp_path / "new" / "a.gif"
    frames = gif_frames(path, "L")
    assert frames.shape == (6, 68, 4 * 66 + 2)
    for number, frame in enumerate(frames):
        for place in range(4):
            left = 2 + 66 * place
            cell = np.kron(raw[place, 0, number].numpy(), np.ones((8, 8), np.uint8))
            assert np.array_equal(frame[2:66, left : left + 64], cell)
    with Image.open(path) as image:
        assert image.info["duration"] == 50


def test_images_have_no_motion_gif(tmp_path: Path):
    raw = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    assert ImageCodec((1, 4, 4)).write_motion_gif(raw, tmp_path / "a.gif") is None
    assert list(tmp_path.iterdir()) == []


def test_pictures_of_floats_show_the_range():
    raw = torch.tensor([-9.0, -2.0, 0.5, 3.0, 9.0]).reshape(1, 1, 5, 1, 1).expand(1, 1, 5, 64, 64)
    pixels = np.asarray(VideoCodec((1, 5, 64, 64), -2.0, 3.0).picture(raw))
    assert pixels[30, 30::66].tolist() == [0, 0, 128, 255, 255]


def test_animations_consist_of_film_strips(tmp_path: Path):
    codec = VideoCodec((1, 3, 8, 8))
    steps = [torch.full((2, 1, 3, 8, 8), 40 * k, dtype=torch.uint8) for k in range(4)]
    frames = gif_frames(codec.animate(iter(steps), tmp_path / "a.gif"), "L")
    assert frames.shape == (4, 2 * 66 + 2, 3 * 66 + 2)
    assert frames[:, 20, 20].tolist() == [0, 40, 80, 120]
