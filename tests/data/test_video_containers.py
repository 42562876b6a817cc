"""mp4, webm and mov files: frames, colours, times, clips and errors."""

import struct
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm.data import VideoCodec, Videos, codec_from_state
from ddpm.data import video_containers as containers
from ddpm.errors import ConfigError

av = pytest.importorskip("av", reason="PyAV is in the extra ddpm[video]")

# suffix, encoder, pixel format, largest error of a pixel
H264 = ("mp4", "libx264", "yuv420p", 8)
VP9 = ("webm", "libvpx-vp9", "yuv420p", 8)
FORMATS = [
    H264,
    VP9,
    ("webm", "libvpx", "yuv420p", 12),
    ("mp4", "mpeg4", "yuv420p", 12),
    ("mov", "libx264", "yuv444p", 8),
    ("mov", "prores_ks", "yuv422p10le", 4),
    ("mov", "png", "rgb24", 0),
]
QUALITY = {
    "libx264": {"crf": "1"},
    "libvpx-vp9": {"crf": "1", "b": "0", "deadline": "realtime", "cpu-used": "8"},
    "libvpx": {"b": "20M", "qmax": "4"},
    "mpeg4": {"b": "20M", "qmax": "2"},
}


def frames_of(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Return frames (count, height, width, 3), each with two colours of its own."""
    frames = np.empty((count, height, width, 3), np.uint8)
    for number, frame in enumerate(frames):
        share = number / max(count - 1, 1)
        frame[:, : width // 2] = [40 + round(160 * share), 60, 200 - round(160 * share)]
        frame[:, width // 2 :] = [30, 40 + round(180 * share), 90]
    return frames


def encode(
    path: Path,
    frames: np.ndarray,
    encoder: str = "png",
    pixel_format: str = "rgb24",
    fps: Any = 25,
    times: list[int] | None = None,
    **options: str,
) -> Path:
    """Write frames (F, H, W, 3 or 4) to a video; ``times`` in ms replace a constant rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=Fraction(fps if times is None else 1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        stream.codec_context.thread_count = (
            1  # ProRes files of several threads differ, and are wrong
        )
        stream.options = {**QUALITY.get(encoder, {}), **options}
        kind = "rgba" if frames.shape[3] == 4 else "rgb24"
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=kind)
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def clips(data: Videos) -> np.ndarray:
    """Return all clips as (N, F, H, W, C)."""
    return data.fetch(range(len(data)), [0] * len(data))[0].permute(0, 2, 3, 4, 1).numpy()


def order(clip: np.ndarray, frames: np.ndarray) -> list[int]:
    """Return the index of the nearest of ``frames`` for each frame of a clip."""
    errors = np.abs(clip[:, None].astype(int) - frames[None]).mean(axis=(2, 3, 4))
    return errors.argmin(axis=1).tolist()


def interior(frames: np.ndarray) -> np.ndarray:
    """Return pixels away from the edge of the colours, where chroma subsampling mixes them."""
    width = frames.shape[-2]
    return np.delete(frames, range(width // 2 - 4, width // 2 + 4), axis=-2).astype(int)


def error_of(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("cache_mb", [0, 2048])
@pytest.mark.parametrize(("suffix", "encoder", "pixel_format", "tolerance"), FORMATS)
def test_frames_of_all_formats(tmp_path, suffix, encoder, pixel_format, tolerance, cache_mb):
    frames = frames_of(11)
    encode(tmp_path / f"a.{suffix}", frames, encoder, pixel_format, "30000/1001")
    data = Videos(path=str(tmp_path), cache_mb=cache_mb)
    assert (len(data), data.shape) == (1, (3, 11, 32, 48))
    (clip,) = clips(data)
    assert order(clip, frames) == list(range(11))
    assert np.abs(interior(clip) - interior(frames)).max() <= tolerance
    assert data.codec.state()["fps"] is None, "the rounded times of webm are a constant rate"


@pytest.mark.parametrize("cache_mb", [0, 2048])
@pytest.mark.parametrize(("suffix", "encoder", "pixel_format", "_"), FORMATS[:3])
def test_clips_with_stride_after_seeking(tmp_path, suffix, encoder, pixel_format, _, cache_mb):
    frames = frames_of(50)
    encode(tmp_path / f"a.{suffix}", frames, encoder, pixel_format, 25, g="12")
    data = Videos(path=str(tmp_path), frames=4, stride=3, cache_mb=cache_mb)
    assert (len(data), data.in_memory) == (4, cache_mb > 0)
    expected = [list(range(start, start + 12, 3)) for start in range(0, 48, 12)]
    assert [order(clip, frames) for clip in clips(data)] == expected
    last, first = data.fetch([3, 0], [0, 0])[0].permute(0, 2, 3, 4, 1).numpy()
    assert order(last, frames) == expected[3] and order(first, frames) == expected[0]


def test_frame_rates(tmp_path: Path):
    frames = frames_of(12)
    encode(tmp_path / "a.mp4", frames, *H264[1:3], 24)
    path = str(tmp_path)
    assert order(clips(Videos(path=path, fps=12))[0], frames) == [0, 2, 4, 6, 8, 10]
    assert order(clips(Videos(path=path, fps=48))[0], frames) == [n // 2 for n in range(24)]
    assert order(clips(Videos(path=path, fps="stored"))[0], frames) == list(range(12))
    assert order(clips(Videos(path=path, fps=12, frames=2, stride=2))[0], frames) == [0, 4]
    codec = codec_from_state(Videos(path=path, fps=12).codec.state())
    raw = codec.read(str(tmp_path / "a.mp4"))
    assert order(raw.permute(1, 2, 3, 0).numpy(), frames) == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize(("suffix", "encoder", "pixel_format"), [VP9[:3], ("mov", "png", "rgb24")])
def test_varying_durations_are_resampled_as_those_of_gifs(tmp_path, suffix, encoder, pixel_format):
    frames = frames_of(4)
    encode(tmp_path / f"a.{suffix}", frames, encoder, pixel_format, times=[0, 200, 250, 300])
    data = Videos(path=str(tmp_path))
    assert order(clips(data)[0], frames) == [0, 0, 0, 0, 1, 2, 3]
    assert data.codec.state()["fps"] == "shortest"
    assert order(clips(Videos(path=str(tmp_path), fps="stored"))[0], frames) == [0, 1, 2, 3]
    assert order(clips(Videos(path=str(tmp_path), fps=10))[0], frames)[:3] == [0, 0, 1]


@pytest.mark.parametrize(
    ("timestamps", "last", "expected"),
    [
        ([0, 33, 67, 100], 33, [100 / 3] * 4),  # rounded to 1 ms
        ([5, 44, 87, 125], 0, [40.0] * 4),  # noise of a camera
        ([0, 40, 80, 200], 40, [40, 40, 120, 40]),
        ([0, 200, 250], 1, [200, 50, 50]),
        ([7], 40, [40]),
        ([7], 0, [100]),
    ],
)
def test_durations(timestamps, last, expected):
    durations_ms = containers._durations_ms(timestamps, last, Fraction(1, 1000))
    assert durations_ms == pytest.approx(expected)
    assert len(set(durations_ms)) == len(set(expected))


def test_files_of_all_kinds_form_one_data_set(tmp_path: Path):
    frames = frames_of(6)
    for name in ("b/2.MP4", "a/1.mp4", "b/1.mp4"):
        encode(tmp_path / name, frames if name[0] == "a" else frames[::-1], *H264[1:3])
    data = Videos(path=str(tmp_path), class_cond=True, frames=3)
    _, labels = data.fetch(range(6), [0] * 6)
    assert labels is not None and labels.tolist() == [0, 0, 1, 1, 1, 1]
    assert [order(clip, frames) for clip in clips(data)[1:3]] == [[3, 4, 5], [5, 4, 3]]
    grey = Videos(path=str(tmp_path), color="grey", image_size=16)
    assert grey.shape == (1, 6, 16, 16)
    encode(tmp_path / "c.mp4", frames[:, :16], *H264[1:3])
    sizes = "a/1.mp4 is 48 wide and 32 high, c.mp4 is 48 wide and 16 high"
    assert sizes in error_of(Videos, path=str(tmp_path))


def test_grey_and_transparent_videos(tmp_path: Path):
    values = np.arange(0, 240, 20, dtype=np.uint8)
    grey = np.broadcast_to(values[:, None, None, None], (12, 16, 16, 3))
    encode(tmp_path / "grey" / "a.mov", grey, "png", "gray")
    data = Videos(path=str(tmp_path / "grey"))
    assert data.shape == (1, 12, 16, 16)
    assert clips(data)[0, :, 8, 8, 0].tolist() == values.tolist()
    clear = np.zeros((2, 16, 16, 4), np.uint8)
    clear[1] = [200, 40, 60, 255]
    encode(tmp_path / "clear" / "a.mov", clear, "png", "rgba")
    colours = clips(Videos(path=str(tmp_path / "clear")))[0, :, 8, 8].tolist()
    assert colours == [[255, 255, 255], [200, 40, 60]]


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (180, 2), (270, 3)])
def test_rotation_is_applied(tmp_path: Path, degrees: int, turns: int):
    frames = frames_of(3)
    path = encode(tmp_path / "a.mov", frames)
    data = path.read_bytes()
    at = data.index(b"tkhd") + 44  # of the matrix
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one = 1 << 16
    matrix = struct.pack(
        ">9i", cosine * one, sine * one, 0, -sine * one, cosine * one, 0, 0, 0, 1 << 30
    )
    path.write_bytes(data[:at] + matrix + data[at + 36 :])
    (clip,) = clips(Videos(path=str(tmp_path)))
    assert np.array_equal(clip, np.rot90(frames, -turns, axes=(1, 2)))  # clockwise


def test_a_model_reads_and_is_conditioned_on_files(tmp_path: Path):
    frames = frames_of(6)
    path = str(encode(tmp_path / "a.mp4", frames, *H264[1:3]))
    codec = VideoCodec((3, 4, 32, 48), fps=None, condition={"cond_frames": 2})
    assert order(codec.read(path).permute(1, 2, 3, 0).numpy(), frames) == [0, 1, 2, 3]
    assert torch.equal(codec.read_condition(path)[0, :, :2], codec.read(path)[:, :2])
    assert error_of(codec.read, "none.mp4") == "path=none.mp4: no such file"
    longer = VideoCodec((3, 7, 32, 48), fps=None)
    assert error_of(longer.read, path).endswith(
        "a.mp4: has 6 frames, but 7 are required; use a longer video"
    )


# errors


@pytest.mark.parametrize(("suffix", "encoder", "pixel_format", "_"), FORMATS)
def test_truncated_files_are_rejected(tmp_path, suffix, encoder, pixel_format, _):
    path = encode(tmp_path / f"a.{suffix}", frames_of(20), encoder, pixel_format)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 3, len(whole) - 20, len(whole) - 1):
        path.write_bytes(whole[:length])
        line = error_of(Videos, path=str(tmp_path))
        assert line.startswith(f"path={path}: is damaged (")
        assert line.endswith("; remove the file or re-encode it")
    path.write_bytes(whole + b"more")
    assert len(Videos(path=str(tmp_path))) == 1


@pytest.mark.parametrize("content", [b"<html>404</html>", b"GIF89a", b"#EXTM3U\n/etc/hosts\n"])
def test_other_content_is_rejected(tmp_path: Path, content: bytes):
    (tmp_path / "a.mp4").write_bytes(content)
    line = error_of(Videos, path=str(tmp_path))
    assert line.startswith(f"path={tmp_path / 'a.mp4'}: is damaged (")


def test_frames_that_cannot_be_decoded_are_an_error(tmp_path: Path):
    path = encode(tmp_path / "a.mov", frames_of(8))
    data = Videos(path=str(tmp_path), cache_mb=0)
    content = bytearray(path.read_bytes())
    at = content.index(b"mdat")
    middle = content.index(b"IDAT", at + 400)
    content[middle : middle + 4] = b"XXXX"
    path.write_bytes(content)
    line = error_of(data.fetch, [0], [0])
    assert line.startswith(f"path={path}: is damaged (")
    path.unlink()
    assert error_of(data.fetch, [0], [0]) == f"path={path}: no such file"


def test_large_frames_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = encode(tmp_path / "a.mp4", frames_of(2), *H264[1:3])
    monkeypatch.setattr(containers, "MAX_PIXELS", 1_000)
    assert error_of(Videos, path=str(tmp_path)).startswith(
        f"path={path}: has 48x32 pixels per frame, the limit is"
    )


def test_missing_pyav_is_an_error_with_the_command(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "av", None)
    assert error_of(Videos, path=str(tmp_path)) == (
        f"path={tmp_path / 'a.mp4'}: mp4, webm and mov files need PyAV, which is not installed; "
        "run: pip install 'ddpm[video]'"
    )


def test_memory_of_a_clip_does_not_depend_on_the_length(tmp_path, monkeypatch):
    frames = frames_of(60)
    encode(tmp_path / "a.mp4", frames, *H264[1:3], g="10")
    data = Videos(path=str(tmp_path), frames=2, cache_mb=0)
    decoded = []
    convert = containers._image
    monkeypatch.setattr(
        containers, "_image", lambda frame: (decoded.append(frame.pts), convert(frame))[1]
    )
    assert order(data.fetch([15], [0])[0][0].permute(1, 2, 3, 0).numpy(), frames) == [30, 31]
    assert len(decoded) == 2
