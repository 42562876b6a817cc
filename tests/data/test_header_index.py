"""Headers of files in the disk cache: files that have not changed are not opened."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.data import Folder, Videos, decoding, header_index, video_containers
from ddpm.data.decoding import Header
from ddpm.data.gifs import write_frames
from ddpm.data.headers import pack, pack_times, unpack
from ddpm.data.item_file import MARKER
from ddpm.errors import ConfigError

COUNT = 5
SECONDS = count()  # no two files have the same modification time
KINDS = [
    "gif",
    "png",
    pytest.param("mp4", marks=pytest.mark.skipif(find_spec("av") is None, reason="needs PyAV")),
]


class Killed(BaseException):
    """Stands for a signal that cannot be caught."""


def age(root: Path) -> None:
    """Give new files modification times in the past, as recently changed ones are not cached."""
    for path in sorted(root.rglob("*")):
        if path.stat().st_mtime > 1.7e9:
            time = 1.6e9 + next(SECONDS)
            os.utime(path, (time, time))


def write_video(path: Path, kind: str, number: int, length: int = 6) -> None:
    """Write ``length`` frames of 16x16: grey in GIFs and folders of pictures, RGB in mp4 files."""
    frames = np.random.default_rng(number).integers(0, 256, (length, 16, 16), dtype=np.uint8)
    if kind == "png":
        path.mkdir(parents=True, exist_ok=True)
        for at, frame in enumerate(frames):
            Image.fromarray(frame).save(path / f"{at}.png")
        return
    path = path.with_suffix(f".{kind}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "gif":
        durations = [50, 50, 100, 50, 70, 50][:length]
        write_frames([Image.fromarray(frame) for frame in frames], path, durations)
        return
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 16
        for frame in frames:
            rgb = np.repeat(frame[..., None], 3, axis=2)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode(None))


def write_videos(root: Path, kind: str) -> Path:
    for number in range(COUNT):
        write_video(root / f"v{number}", kind, number)
    age(root)
    return root


def files_of(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return write_videos(tmp_path / "videos", "gif")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of the names of the pictures and videos that are opened."""
    names: list[str] = []

    def recording(original: Any) -> Any:
        @contextmanager
        def open_file(path: str, *arguments: Any):
            names.append(os.path.basename(path))
            with original(path, *arguments) as content:
                yield content

        return open_file

    for module, function in ((decoding, "_open_image"), (video_containers, "_open_stream")):
        monkeypatch.setattr(module, function, recording(getattr(module, function)))
    return names


def contents(data: Any) -> torch.Tensor:
    return data.fetch(range(len(data)), [0] * len(data))[0]


def equal(data: Any, other: Any) -> bool:
    return torch.equal(contents(data), contents(other)) and data.warnings == other.warnings


def index_of(cache: Path) -> Path:
    """Return the file of headers, which is the smallest one."""
    return min((cache / "decoded").glob("*.items"), key=lambda path: path.stat().st_size)


# files that are opened


@pytest.mark.parametrize("cache_mb", [0, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_the_second_start_opens_no_video(tmp_path, cache, opened, kind, cache_mb):
    root = write_videos(tmp_path / "x", kind)
    options: dict[str, Any] = {"path": str(root), "frames": 2, "cache_mb": cache_mb}
    plain = Videos(**options, disk_cache=False)
    expected = contents(plain)
    opened.clear()
    contents(Videos(**options, disk_cache=str(cache)))
    assert set(opened) == {os.path.basename(name) for name in files_of(root)}
    opened.clear()
    data = Videos(**options, disk_cache=str(cache))
    assert torch.equal(contents(data), expected)
    assert (data.shape, data.codec.state()) == (plain.shape, plain.codec.state())
    assert opened == []


@pytest.mark.parametrize("kind", KINDS)
def test_only_files_that_changed_are_opened(tmp_path, cache, opened, kind):
    root = write_videos(tmp_path / "x", kind)
    options: dict[str, Any] = {"path": str(root), "frames": 2, "cache_mb": 0}

    def start() -> set[str]:
        opened.clear()
        data = Videos(**options, disk_cache=str(cache))
        names = set(opened)
        assert equal(data, Videos(**options, disk_cache=False))
        return names

    assert len(start()) == len({os.path.basename(name) for name in files_of(root)})
    assert start() == set()
    write_video(root / "v3", kind, 33, 4)  # shorter than before
    if kind == "png":
        for name in ("0.png", "1.png", "2.png", "4.png", "5.png"):
            (root / "v3" / name).unlink()
        write_video(root / "v3", kind, 34, 1)
    age(root)
    assert start() == ({"0.png", "3.png"} if kind == "png" else {f"v3.{kind}"})
    assert start() == set()
    write_video(root / "new", kind, 7)
    age(root)
    assert len(start()) == (6 if kind == "png" else 1)
    shutil.rmtree(root / "new") if kind == "png" else (root / f"new.{kind}").unlink()
    assert start() == set()


@pytest.mark.parametrize("change", ["time", "size", "name"])
def test_name_size_and_time_identify_a_file(videos, cache, opened, change):
    options: dict[str, Any] = {"path": str(videos), "cache_mb": 0, "disk_cache": str(cache)}
    Videos(**options)
    path, time = videos / "v2.gif", (videos / "v2.gif").stat().st_mtime
    if change == "time":
        os.utime(path, (1.5e9, 1.5e9))
    elif change == "size":
        path.write_bytes(path.read_bytes() + b"more")
        os.utime(path, (time, time))
    else:
        path = path.rename(videos / "w.gif")
    opened.clear()
    Videos(**options)
    assert opened == [path.name]


def test_options_of_clips_do_not_matter(videos, cache, opened):
    Videos(path=str(videos), cache_mb=0, disk_cache=str(cache))
    variants: list[dict[str, Any]] = [
        {"frames": 3},
        {"fps": 10.0},
        {"image_size": 8},
        {"color": "rgb"},
    ]
    for options in variants:
        opened.clear()
        data = Videos(path=str(videos), cache_mb=0, disk_cache=str(cache), **options)
        assert opened == [], options
        assert data.shape == Videos(path=str(videos), disk_cache=False, **options).shape


def test_a_file_that_changed_a_moment_ago_is_opened_each_time(videos, cache, opened):
    options: dict[str, Any] = {"path": str(videos), "cache_mb": 0, "disk_cache": str(cache)}
    os.utime(videos / "v1.gif")
    Videos(**options)
    for _ in range(2):
        opened.clear()
        os.utime(videos / "v1.gif")
        Videos(**options)
        assert opened == ["v1.gif"]


def test_the_code_that_reads_headers_is_part_of_the_key(videos, cache, opened, monkeypatch):
    options: dict[str, Any] = {"path": str(videos), "cache_mb": 0, "disk_cache": str(cache)}
    Videos(**options)
    monkeypatch.setattr("ddpm.data.video_sources.pyav_version", lambda: "another")
    opened.clear()
    Videos(**options)
    assert len(opened) == COUNT


def test_pictures_of_a_folder_are_opened_if_they_changed(tmp_path, cache, opened):
    write_video(tmp_path / "imgs", "png", 0)
    age(tmp_path)
    options: dict[str, Any] = {"path": str(tmp_path / "imgs"), "cache_mb": 0}
    Folder(**options, disk_cache=str(cache))
    os.utime(tmp_path / "imgs/4.png", (1.5e9, 1.5e9))
    opened.clear()
    data = Folder(**options, disk_cache=str(cache))
    assert opened == ["0.png", "4.png"], "the first one decides on colour and depth"
    opened.clear()
    assert equal(data, Folder(**options, disk_cache=False))


# errors and warnings


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_becomes_damaged_is_reported_by_its_name(tmp_path, cache, opened, kind):
    root = write_videos(tmp_path / "x", kind)
    options: dict[str, Any] = {"path": str(root), "cache_mb": 0}
    Videos(**options, disk_cache=str(cache))
    path = root / ("v2/3.png" if kind == "png" else f"v2.{kind}")
    path.write_bytes(path.read_bytes()[:40])
    age(root)
    for _ in range(2):
        opened.clear()
        with pytest.raises(ConfigError, match=r"is damaged|is not a") as caught:
            Videos(**options, disk_cache=str(cache))
        assert set(opened) <= {path.name}  # a truncated mp4 is detected before it is opened
        assert caught.value.value == str(path)
        with pytest.raises(ConfigError) as plain:
            Videos(**options, disk_cache=False)
        assert str(caught.value) == str(plain.value)


def test_stored_headers_are_checked_as_those_of_files(videos, cache, opened):
    frames = np.zeros((6, 16, 16, 3), np.uint8)
    frames[..., 0] = 200
    write_frames([Image.fromarray(frame) for frame in frames], videos / "w.gif", 50)
    age(videos)
    options: dict[str, Any] = {
        "path": str(videos), "frames": 2, "cache_mb": 0, "disk_cache": str(cache),
    }  # fmt: skip
    Videos(**options, color="rgb")
    opened.clear()
    with pytest.raises(ConfigError, match=r"color=auto: v0\.gif is grey but w\.gif is in colour"):
        Videos(**options)
    assert opened == []


@pytest.mark.parametrize("kind", [Folder, Videos])
def test_ranges_of_16_bit_pictures_are_stored(tmp_path, cache, opened, kind):
    values = np.random.default_rng(0).integers(40, 900, (6, 8, 8)).astype(np.uint16)
    (tmp_path / "x").mkdir()
    for number, frame in enumerate(values):
        Image.fromarray(frame).save(tmp_path / f"x/{number}.png")
    age(tmp_path)
    options: dict[str, Any] = {"path": str(tmp_path / "x"), "cache_mb": 0}
    plain = kind(**options, disk_cache=False)
    assert "the values of the 16-bit pictures lie between" in plain.warnings[0]
    kind(**options, disk_cache=str(cache))
    opened.clear()
    assert kind(**options, disk_cache=str(cache)).warnings == plain.warnings
    assert set(opened) == ({"0.png"} if kind is Folder else set())
    for limits in ({"high": 300}, {"low": 50}):
        with pytest.raises(ConfigError) as expected:
            kind(**options, **limits, disk_cache=False)
        with pytest.raises(ConfigError) as caught:
            kind(**options, **limits, disk_cache=str(cache))
        assert str(caught.value) == str(expected.value)


# kills, damage, several writers


def test_headers_read_before_an_error_are_kept(videos, cache, opened):
    options: dict[str, Any] = {"path": str(videos), "cache_mb": 0, "disk_cache": str(cache)}
    content = (videos / "v4.gif").read_bytes()
    (videos / "v4.gif").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"v4\.gif"):
        Videos(**options)
    (videos / "v4.gif").write_bytes(content)
    age(videos)
    opened.clear()
    Videos(**options)
    assert opened == ["v4.gif"]


def test_long_reading_is_stored_from_time_to_time(videos, cache, opened, monkeypatch):
    options: dict[str, Any] = {"path": str(videos), "cache_mb": 0, "disk_cache": str(cache)}
    monkeypatch.setattr(header_index, "_SAVE_SECONDS", -1.0)
    with monkeypatch.context() as patch:
        read = header_index.HeaderIndex.read

        def kill(self, index):
            if index == 3:
                os._exit(0)
            return read(self, index)

        patch.setattr(header_index.HeaderIndex, "read", kill)
        child = os.fork()
        if child == 0:
            Videos(**options)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
    opened.clear()
    Videos(**options)
    assert opened == ["v3.gif", "v4.gif"]


def test_a_kill_before_the_rename_keeps_the_earlier_file(videos, cache, opened, monkeypatch):
    options: dict[str, Any] = {"path": str(videos), "cache_mb": 0, "disk_cache": str(cache)}
    Videos(**options)
    before = index_of(cache).read_bytes()
    os.utime(videos / "v1.gif", (1.5e9, 1.5e9))

    def kill(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        with pytest.raises(Killed):
            Videos(**options)
    assert index_of(cache).read_bytes() == before
    assert not list((cache / "decoded").glob(".*"))
    opened.clear()
    Videos(**options)
    assert opened == ["v1.gif"]


@pytest.mark.parametrize("offset", [len(MARKER) + 1, len(MARKER) + 30, 250, -1, None, 0, 60])
def test_a_damaged_file_is_written_again(videos, cache, opened, offset):
    options: dict[str, Any] = {"path": str(videos), "cache_mb": 0, "disk_cache": str(cache)}
    Videos(**options)
    path = index_of(cache)
    complete = bytearray(path.read_bytes())
    if offset in (None, 0, 60):
        path.write_bytes(complete[: offset if offset is not None else -1])
    else:
        path.write_bytes(
            complete[:offset] + bytes([complete[offset] ^ 255]) + complete[offset:][1:]
        )
    for names in ({f"v{number}.gif" for number in range(COUNT)}, set()):
        opened.clear()
        Videos(**options)
        assert set(opened) == names
    assert path.read_bytes() == complete


def test_several_processes_write_one_file(videos, cache, opened):
    options: dict[str, Any] = {"path": str(videos), "cache_mb": 0, "disk_cache": str(cache)}
    with ThreadPoolExecutor(4) as pool:
        for data in list(pool.map(lambda _: Videos(**options), range(4))):
            assert data.warnings == ()
    opened.clear()
    Videos(**options)
    assert opened == []


def test_a_file_of_another_program_stays(videos, cache):
    options: dict[str, Any] = {"path": str(videos), "cache_mb": 0, "disk_cache": str(cache)}
    Videos(**options)
    path = index_of(cache)
    path.write_bytes(b"of another program")
    data = Videos(**options)
    assert data.warnings == (f"{path} belongs to another program; move it away",)
    assert path.read_bytes() == b"of another program"
    assert torch.equal(contents(data), contents(Videos(path=str(videos), disk_cache=False)))


def test_a_full_disk_is_reported_once(videos, cache, capsys, monkeypatch):
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    data = Videos(path=str(videos), cache_mb=0, disk_cache=str(cache))
    assert torch.equal(contents(data), contents(Videos(path=str(videos), disk_cache=False)))
    assert capsys.readouterr().err == (
        f"warning: {cache}/decoded: decoded data cannot be stored (No space left on device); "
        "continuing without\n"
    )


# the format


@pytest.mark.parametrize(
    "header",
    [
        Header(1, 64_000_000, True),
        Header(10, 20, False, (), 8, True),
        Header(10, 20, True, (), 16, False, (), (0, 65535)),
        Header(10, 20, False, (50, 100, 70)),
        Header(4, 6, False, (1000 / 29.97,) * 3, timestamps=(-1001, 0, 1001)),
        Header(4, 6, False, (40.0, 1e6, 1e-3), timestamps=(0, 2**40, 2**62)),
    ],
)
def test_packed_headers_are_exact(header):
    assert unpack(pack(header), pack_times(header)) == header


def test_frames_at_a_constant_rate_take_little_space():
    times = tuple(range(0, 51_200_000, 512))
    header = Header(4, 6, False, (1000 / 24,) * len(times), timestamps=times)
    assert len(pack_times(header)) < 2500
