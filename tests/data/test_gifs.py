"""GIFs: durations of frames in reading, and writing of all frames."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from ddpm.config.registry import config_with_defaults
from ddpm.data import ImageCodec, VideoCodec, Videos, codec_from_state
from ddpm.data.gifs import MAX_FRAMES, frame_durations, timeline, write_frames
from ddpm.errors import ConfigError
from ddpm.training.compatibility import check_compatible

CONTROL = b"\x21\xf9\x04"  # precedes the flags and the duration of a frame
RED, BLUE = (200, 0, 0), (0, 0, 90)


def colours(*frames: tuple[int, int, int]) -> list[Image.Image]:
    return [Image.new("RGB", (4, 4), frame) for frame in frames]


def merged(path: Path, frames: list[Image.Image], duration_ms: Any) -> None:
    """Write a GIF with Pillow, which merges equal frames and adds their durations."""
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration_ms)


def written(path: Path) -> list[int]:
    """Return the durations of the frames in a file, in ms."""
    with Image.open(path) as gif:
        return [frame.info["duration"] for frame in ImageSequence.Iterator(gif)]


def red_values(data: Videos) -> list[int]:
    """Return the red value of each frame of a single clip."""
    (clip,) = data.fetch([0], [0])[0]
    return clip[0, :, 0, 0].tolist()


def line(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_merged_frames_are_restored_by_a_frame_rate(tmp_path: Path):
    merged(tmp_path / "a.gif", colours(*[RED] * 4, *[BLUE] * 4), 50)
    assert written(tmp_path / "a.gif") == [200, 200]
    assert red_values(Videos(path=str(tmp_path))) == [200, 0]
    for cache_mb in (0, 2048):
        data = Videos(path=str(tmp_path), fps=20, cache_mb=cache_mb)
        assert (data.shape, red_values(data)) == ((3, 8, 4, 4), [200] * 4 + [0] * 4)
    assert red_values(Videos(path=str(tmp_path), fps=20, frames=4, stride=2)) == [200] * 2 + [0] * 2
    assert len(Videos(path=str(tmp_path), fps=20, frames=2)) == 4
    assert red_values(Videos(path=str(tmp_path), fps=5)) == [200, 0]
    assert red_values(Videos(path=str(tmp_path), fps="stored")) == [200, 0]


def test_the_shortest_duration_of_a_file_is_the_default_interval(tmp_path: Path):
    frames = [Image.new("L", (4, 4), shade) for shade in (10, 20, 30)]
    write_frames(frames, tmp_path / "a.gif", [200, 50, 50])
    assert red_values(Videos(path=str(tmp_path))) == [10, 10, 10, 10, 20, 30]
    assert red_values(Videos(path=str(tmp_path), fps="stored")) == [10, 20, 30]
    assert red_values(Videos(path=str(tmp_path), fps=10)) == [10, 10, 20]  # at 50, 150 and 250 ms


@pytest.mark.parametrize(
    ("durations_ms", "fps", "expected"),
    [
        ([70, 70, 70], None, [0, 1, 2]),
        ([30, 70], None, [0, 1, 1]),
        ([100, 2000], None, [0] + [1] * 20),
        ([100, 50, 50, 100], 20, [0, 0, 1, 2, 3, 3]),
        ([40] * 5, 50, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),
        ([40] * 5, 12.5, [0, 2, 4]),
        ([10], 0.001, [0]),
        ([100, 100], "stored", [0, 1]),
        ([], None, []),
    ],
)
def test_timeline(durations_ms: list[int], fps: Any, expected: list[int]):
    assert timeline(durations_ms, fps, "a.gif") == expected


@pytest.mark.parametrize("fps", [1, 7, 12.5, 20, 24, 29.97, 30, 60, 100])
def test_frames_are_written_and_read_at_the_same_rate(fps: float):
    for count in (1, 2, 8, 97, 1000):
        assert timeline(frame_durations(count, fps), fps, "a.gif") == list(range(count))


def test_frames_without_a_duration_have_that_of_browsers(tmp_path: Path):
    frames = [Image.new("L", (4, 4), shade) for shade in (10, 20)]
    write_frames(frames, tmp_path / "a.gif", [0, 50])
    data = (tmp_path / "a.gif").read_bytes()
    assert data.count(CONTROL) == 1  # of the second frame
    assert red_values(Videos(path=str(tmp_path))) == [10, 10, 20]
    write_frames(frames, tmp_path / "a.gif", [70, 50])
    data = (tmp_path / "a.gif").read_bytes()
    seven, zero = (CONTROL + bytes([0, duration, 0]) for duration in (7, 0))
    assert data.count(seven) == 1
    (tmp_path / "a.gif").write_bytes(data.replace(seven, zero))
    assert red_values(Videos(path=str(tmp_path))) == [10, 10, 20]


def test_the_error_of_too_many_frames(tmp_path: Path):
    frames = [Image.new("L", (4, 4), shade) for shade in (10, 20)]
    write_frames(frames, tmp_path / "a.gif", [655350, 10])
    assert line(Videos, path=str(tmp_path)) == (
        "fps: a.gif has 65536 frames (655.4 s in intervals of 10 ms), and the limit is "
        "10000; set data.fps to a lower number, or to stored"
    )
    assert line(Videos, path=str(tmp_path), fps=1e300).startswith("fps=1e+300: a.gif has ")
    codec = VideoCodec((1, 2, 4, 4), fps=None)
    assert line(codec.read, str(tmp_path / "a.gif")).endswith(
        "65536 frames (655.4 s in intervals of 10 ms), and the limit is 10000; use a shorter one"
    )
    assert Videos(path=str(tmp_path), fps=1).shape[1] == 655
    assert timeline([10] * (MAX_FRAMES + 5), None, "a.gif") == list(range(MAX_FRAMES + 5))


def test_errors_of_invalid_frame_rates(tmp_path: Path):
    for fps in (0, -1, float("inf"), float("nan")):
        assert line(Videos, path=str(tmp_path), fps=fps).endswith(
            "must be positive and finite, such as 20"
        )
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    assert line(Videos, path=str(tmp_path), fps=20) == (
        "fps=20: only applies to GIF, mp4, webm and mov files, but none were found; omit it"
    )
    np.save(tmp_path / "a.npy", np.zeros((1, 1, 2, 4, 4), np.uint8))
    assert line(Videos, path=str(tmp_path / "a.npy"), fps=20) == (
        "fps=20: only applies to pictures; omit it"
    )


# state of the codec


def test_the_codec_stores_the_frame_rate(tmp_path: Path):
    merged(tmp_path / "a.gif", colours(*[RED] * 4, *[BLUE] * 4), 50)
    codec = codec_from_state(Videos(path=str(tmp_path), fps=20).codec.state())
    raw = codec.read(str(tmp_path / "a.gif"))
    assert raw[0, :, 0, 0].tolist() == [200] * 4 + [0] * 4
    (path,) = codec.write(raw[None], tmp_path / "out", format="gif")
    assert written(path) == [50] * 8
    assert torch.equal(codec.read(str(path)), raw)
    assert codec.write_motion_gif(raw[None], tmp_path / "film.gif") is not None
    assert written(tmp_path / "film.gif") == [50] * 8


def test_runs_of_versions_without_frame_rates_can_be_resumed(tmp_path: Path):
    """GIFs with frames of different durations require fps=stored."""
    frames = [Image.new("L", (4, 4), shade) for shade in (10, 20, 30)]

    def metadata(**options: Any) -> dict[str, Any]:
        return {"data": {"codec": Videos(path=str(tmp_path), **options).codec.state()}}

    old = {"data": {"codec": VideoCodec((1, 3, 4, 4)).state()}}
    assert "fps" not in old["data"]["codec"]
    write_frames(frames, tmp_path / "a.gif", 70)
    check_compatible(old, metadata(), "name", tmp_path)
    write_frames(frames, tmp_path / "a.gif", [50, 50, 60])
    check_compatible(old, metadata(fps="stored"), "name", tmp_path)
    assert "data.codec.fps (null there, shortest here)" in line(
        check_compatible, old, metadata(), "name", tmp_path
    )
    node = {"data": {"_target_": "ddpm.data.Videos", "path": "x"}}
    assert config_with_defaults(node)["data"]["fps"] == "stored"
    check_compatible(node, {"data": {**node["data"], "fps": None}}, "name", tmp_path)


# writing


@pytest.mark.parametrize("channels", [1, 3])
def test_equal_frames_are_not_merged(tmp_path: Path, channels: int):
    raw = torch.full((2, channels, 8, 6, 6), 77, dtype=torch.uint8)
    codec = VideoCodec((channels, 8, 6, 6))
    for path in codec.write(raw, tmp_path, format="gif"):
        assert written(path) == [100] * 8
    assert written(codec.write_motion_gif(raw, tmp_path / "film.gif")) == [100] * 8
    codec.animate([raw] * 5, tmp_path / "way.gif")
    assert written(tmp_path / "way.gif") == [100] * 4 + [2000]
    images = ImageCodec((channels, 6, 6))
    images.animate([raw[:, :, 0]] * 8, tmp_path / "images.gif", duration_ms=50, hold_ms=900)
    assert written(tmp_path / "images.gif") == [50] * 7 + [900]
