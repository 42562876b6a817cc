"""Decoded pictures and clips in files: equality, keys, kills, damage, and the size limit."""

import errno
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from ddpm.data import Folder, Videos, decoding, disk_cache, item_file
from ddpm.data.classes import RelabelledDataset
from ddpm.data.item_file import MARKER, ItemFile
from ddpm.data.split import split
from ddpm.errors import ConfigError

COUNT = 12


class Killed(BaseException):
    """Stands for a signal that cannot be caught."""


def age(root: Path) -> Path:
    """Give files a modification time in the past, as recently changed ones are not cached."""
    for number, path in enumerate(sorted(root.rglob("*"))):
        os.utime(path, (1.6e9 + number, 1.6e9 + number))
    return root


def pictures(root: Path, count: int = COUNT, dtype: type = np.uint8, start: int = 0) -> Path:
    """Write pictures of 10x14: 16-bit grey, or RGB in two folders."""
    generator = np.random.default_rng(start)
    for number in range(start, start + count):
        file = root / "ab"[number % 2] / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        shape, limit = ((10, 14, 3), 256) if dtype is np.uint8 else ((10, 14), 65536)
        Image.fromarray(generator.integers(0, limit, shape).astype(dtype)).save(file)
    return age(root)


@pytest.fixture
def imgs(tmp_path: Path) -> Path:
    return pictures(tmp_path / "imgs")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of the pictures that are opened."""
    names, original = [], Image.open

    def count(path: Any, *arguments: Any, **options: Any) -> Image.Image:
        names.append(os.path.basename(path))
        return original(path, *arguments, **options)

    monkeypatch.setattr(decoding.Image, "open", count)
    return names


def contents(data: Any) -> list[torch.Tensor | None]:
    return list(data.fetch(range(len(data)), [n * 7919 for n in range(len(data))]))


def assert_equal(data: Any, other: Any) -> None:
    for one, another in zip(contents(data), contents(other), strict=True):
        assert one is another is None or torch.equal(one, another)  # pyright: ignore
    assert data.warnings == other.warnings


def entries(cache: Path) -> list[Path]:
    return sorted((cache / "decoded").glob("*.items"))


# results and files that are opened


@pytest.mark.parametrize("cache_mb", [0, 2048])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_data_are_equal_with_and_without_the_cache(tmp_path, cache, opened, dtype, cache_mb):
    root = pictures(tmp_path / "x", dtype=dtype)
    options = {
        "path": str(root), "image_size": [6, 8], "class_cond": True, "flip": True,
        "cache_mb": cache_mb,
    }  # fmt: skip
    plain = Folder(**options, disk_cache=False)
    assert not cache.exists()
    for _ in range(2):
        data = Folder(**options, disk_cache=str(cache))
        assert_equal(data, plain)
        assert_equal(data, plain)
    opened.clear()
    data = Folder(**options, disk_cache=str(cache))
    contents(data)
    assert len(opened) == 1  # the first header, which decides on colour and depth
    assert len(entries(cache)) == (1 if cache_mb else 2)
    again = pickle.loads(pickle.dumps(data))
    assert_equal(again, plain)


def test_headers_are_read_once_and_pictures_when_they_are_used(imgs, cache, opened):
    options = {"path": str(imgs), "image_size": 4, "cache_mb": 0, "disk_cache": str(cache)}
    data = Folder(**options)
    assert len(opened) == COUNT + 1
    data.fetch([0, 5], [0, 0])
    data.fetch([5, 0], [0, 0])
    assert len(opened) == COUNT + 3
    opened.clear()
    Folder(**options).fetch([0, 5, 6], [0, 0, 0])
    assert opened == ["00.png", opened[1]]
    opened.clear()
    Folder(**{**options, "image_size": 5})  # the headers do not depend on the size
    assert len(opened) == 1


@pytest.mark.parametrize("cache_mb", [0, 2048])
def test_stored_headers_are_checked_as_those_of_files(imgs, cache, cache_mb):
    Image.new("L", (14, 10)).save(imgs / "b" / "grey.png")
    age(imgs)
    options = {"path": str(imgs), "cache_mb": cache_mb, "disk_cache": str(cache)}
    Folder(**options, color="rgb").fetch(range(COUNT + 1), range(COUNT + 1))
    with pytest.raises(ConfigError, match=r"color=auto: b/grey\.png is grey but a/00\.png is in"):
        Folder(**options)


def change_time(imgs: Path) -> None:
    os.utime(imgs / "a/00.png", (1.5e9, 1.5e9))


def change_name(imgs: Path) -> None:
    (imgs / "a/02.png").rename(imgs / "a/03.png")


def change_content(imgs: Path) -> None:
    """Change a file without a trace in its size and time."""
    path = imgs / "a/00.png"
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
    os.utime(path, (1.6e9 + 1, 1.6e9 + 1))
    age(imgs)


@pytest.mark.parametrize("change", [change_time, change_name, change_content])
def test_the_key_depends_on_the_files(imgs, cache, change):
    def digest():
        files = sorted(str(path.relative_to(imgs)) for path in imgs.rglob("*.png"))
        return disk_cache.FileStates.scan(str(imgs), files).digest()

    before = digest()
    assert digest() == before
    change(imgs)
    assert digest() != before
    moved = shutil.move(imgs, imgs.with_name("moved"))
    after = disk_cache.FileStates.scan(str(moved), ["a/04.png"])
    assert after.digest() == disk_cache.FileStates.scan(str(moved), ["a/04.png"]).digest()


def test_the_key_depends_on_options_and_decoders(imgs, cache, monkeypatch):
    options: dict[str, Any] = {"path": str(imgs), "disk_cache": str(cache)}
    variants: list[dict[str, Any]] = [{}, {"image_size": 4}, {"color": "grey"}, {"fast_jpeg": True}]
    for number, variant in enumerate(variants, 1):
        for _ in range(2):
            Folder(**options, **variant)
        assert len(entries(cache)) == number
    for number, (owner, name) in enumerate([(PIL, "__version__"), (item_file, "_FORMAT")], 1):
        monkeypatch.setattr(owner, name, "another")
        Folder(**options)
        assert len(entries(cache)) == len(variants) + min(number, 1)


def test_files_that_changed_a_moment_ago_are_not_cached(imgs, cache):
    os.utime(imgs / "a/00.png")
    Folder(path=str(imgs), disk_cache=str(cache))
    assert not cache.exists()


def test_by_default_large_folders_are_cached(imgs, cache, monkeypatch):
    monkeypatch.setenv("DDPM_CACHE", str(cache))
    Folder(path=str(imgs))
    assert not cache.exists()
    monkeypatch.setattr(disk_cache, "MIN_BYTES", COUNT * 4096)
    Folder(path=str(imgs), disk_cache=False)
    assert not cache.exists()
    Folder(path=str(imgs))
    assert len(entries(cache)) == 1
    monkeypatch.setenv("DDPM_CACHE_GB", "a lot")
    with pytest.raises(ConfigError, match="DDPM_CACHE_GB=a lot: must be a number of gigabytes"):
        Folder(path=str(imgs))


# sets of which nothing has to be decoded


def test_sets_in_memory_or_in_the_disk_cache_are_decoded(imgs, cache):
    options: dict[str, Any] = {"path": str(imgs), "image_size": 4, "cache_mb": 0}
    assert Folder(path=str(imgs)).is_decoded()
    assert not Folder(**options, disk_cache=False).is_decoded()
    data = Folder(**options, disk_cache=str(cache))
    assert not data.is_decoded()
    data.fetch(range(COUNT - 1), [0] * COUNT)
    assert not data.is_decoded()
    assert data.is_decoded([0, 3]) and not data.is_decoded([3, COUNT - 1])
    data.fetch([COUNT - 1], [0])
    assert data.is_decoded()
    assert Folder(**options, disk_cache=str(cache)).is_decoded()
    assert not Folder(**{**options, "image_size": 5}, disk_cache=str(cache)).is_decoded()
    stored = [path for path in entries(cache) if path.stat().st_size == ItemFile.size(COUNT, 64)]
    flip(-1)(stored[0])
    assert not Folder(**options, disk_cache=str(cache)).is_decoded()


def test_a_part_of_a_set_may_be_decoded(imgs, cache):
    options: dict[str, Any] = {"path": str(imgs), "cache_mb": 0, "disk_cache": str(cache)}
    data = Folder(**options)
    parts = split(data, 0.25)
    assert parts.held_out is not None and len(parts.held_out) == 3
    parts.train.fetch(range(9), [0] * 9)
    assert [each.is_decoded() for each in (parts.train, parts.held_out, data)] == [
        True,
        False,
        False,
    ]
    assert not parts.held_out.is_decoded([0]) and parts.train.is_decoded([8])
    names = ["0", "1", "2"]
    renumbered = RelabelledDataset(parts.train, names)
    assert renumbered.is_decoded() and renumbered.is_decoded([1])


def test_a_set_that_is_too_large_for_the_cache_is_not_decoded(imgs, cache, monkeypatch):
    monkeypatch.setenv("DDPM_CACHE_GB", "0.000008")
    data = Folder(path=str(imgs), cache_mb=0, disk_cache=str(cache))
    contents(data)
    assert len(data.warnings) == 1 and not data.is_decoded()


def test_items_spread_over_a_file_are_probed(items, monkeypatch):
    monkeypatch.setattr(item_file, "MAX_PROBES", 3)
    for index, expected in ((0, False), (2, False), (4, True)):
        items.write(index, b"complete")
        assert items.is_complete() == expected
    assert not items.is_complete([1, 2]) and items.is_complete([0, 1, 2, 3, 4])
    assert not items.is_complete([0, 3, 4])


# kills, damage, several writers


@pytest.fixture
def items(cache: Path) -> ItemFile:
    return ItemFile(cache / "x.items", "key", 5, 8)


def test_a_kill_before_the_rename_leaves_no_file(imgs, cache, monkeypatch):
    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", kill)
        with pytest.raises(Killed):
            Folder(path=str(imgs), disk_cache=str(cache))
    assert os.listdir(cache / "decoded") == ["CACHEDIR.TAG"]
    assert_equal(Folder(path=str(imgs), disk_cache=str(cache)), Folder(path=str(imgs)))


def test_files_of_killed_processes_are_ignored_and_removed_later(imgs, cache):
    Folder(path=str(imgs), disk_cache=str(cache))
    (entry,) = entries(cache)
    stale, recent, foreign = (
        entry.with_name(f".{entry.name}.{number:08x}.tmp") for number in range(3)
    )
    for path in (stale, recent):
        path.write_bytes(MARKER)
    foreign.write_bytes(b"notes")
    for path in (stale, foreign):
        os.utime(path, (1.6e9, 1.6e9))
    Folder(path=str(imgs), disk_cache=str(cache), image_size=4)
    assert not stale.exists()
    assert recent.exists() and foreign.read_bytes() == b"notes"


def test_a_kill_while_an_item_is_written(items, monkeypatch):
    items.write(1, b"complete")
    write = os.pwrite

    def kill(descriptor, data, offset):
        write(descriptor, data[:-3], offset)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", kill)
        with pytest.raises(Killed):
            items.write(2, b"complete")
    assert [items.read(index) for index in (0, 1, 2)] == [None, b"complete", None]
    assert items.read_block(0, 5)[1].tolist() == [False, True, False, False, False]
    items.write(2, b"complete")
    assert items.read(2) == b"complete"


def truncate(length: int):
    return lambda path: os.truncate(path, length)


def flip(offset: int):
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[offset] ^= 255
        path.write_bytes(data)

    return damage


SLOT = 8 + 16 + 3 * 10 * 14


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (truncate(0), COUNT),
        (truncate(100), COUNT),
        (truncate(4096), COUNT),
        (truncate(4096 + 5 * SLOT + 1), COUNT - 5),
        (flip(len(MARKER) + 3), COUNT),
        (flip(4096), 1),
        (flip(4096 + 3 * SLOT + 4), 1),
        (flip(4096 + 3 * SLOT + 9), 1),
        (flip(-1), 1),
        (lambda path: path.write_bytes(path.read_bytes() + b"more"), 0),
    ],
)
@pytest.mark.parametrize("cache_mb", [0, 2048])
def test_damaged_files_are_repaired(imgs, cache, opened, damage, lost, cache_mb):
    options = {"path": str(imgs), "cache_mb": cache_mb, "disk_cache": str(cache)}
    plain = Folder(path=str(imgs), disk_cache=False)
    contents(Folder(**options))
    path = max(entries(cache), key=lambda entry: entry.stat().st_size)
    damage(path)
    opened.clear()
    assert_equal(Folder(**options), plain)
    assert len(opened) == lost + 1
    opened.clear()
    assert_equal(Folder(**options), plain)
    assert len(opened) == 1


def test_two_processes_share_a_file(imgs, cache, opened):
    options = {"path": str(imgs), "cache_mb": 0, "disk_cache": str(cache)}
    data = Folder(**options)
    child = os.fork()
    if child == 0:
        data.fetch(range(0, COUNT, 2), range(0, COUNT, 2))
        os._exit(0)
    data.fetch(range(1, COUNT, 2), range(1, COUNT, 2))
    assert os.waitpid(child, 0)[1] == 0
    opened.clear()
    contents(data)
    assert opened == []
    assert_equal(data, Folder(path=str(imgs), disk_cache=False))


def test_several_creators_get_one_file(cache):
    def write(index: int) -> ItemFile:
        file = ItemFile(cache / "x.items", "key", 8, 1000)
        file.write(index, bytes([index]) * 1000)
        return file

    with ThreadPoolExecutor(8) as pool:
        files = list(pool.map(write, range(8)))
    for file in files:
        assert [file.read(index) for index in range(8)] == [bytes([n]) * 1000 for n in range(8)]
    assert os.listdir(cache) == ["x.items"]


# limits and folders


def test_the_least_recently_used_files_are_removed(tmp_path, cache, monkeypatch):
    size = ItemFile.size(COUNT, SLOT - 8)
    monkeypatch.setenv("DDPM_CACHE_GB", str(3.5 * size / 1e9))
    roots = [pictures(tmp_path / str(number), start=20 * number) for number in range(5)]
    folder = cache / "decoded"
    folder.mkdir(parents=True)
    foreign = [folder / name for name in ("notes.txt", f"{'0' * 64}.items", f"{'1' * 64}.items")]
    foreign[0].write_bytes(MARKER)
    foreign[1].write_bytes(b"of another program" * 10_000)
    foreign[2].symlink_to(foreign[0])
    created = []
    for number, root in enumerate([*roots[:3], roots[0], *roots[3:]]):
        before = entries(cache)
        assert Folder(path=str(root), disk_cache=str(cache)).warnings == ()
        for path in set(entries(cache)) - set(before):
            created.append(path)
        for path in entries(cache):
            if path == created[0 if number == 3 else -1]:
                os.utime(path, (1.7e9 + number, 1.7e9 + number))
    left = set(entries(cache)) - set(foreign)
    assert left == {created[0], created[3], created[4]}
    assert sum(path.stat().st_size for path in left) <= 3.5 * size
    assert foreign[0].read_bytes() == MARKER and foreign[2].is_symlink()
    assert foreign[1].stat().st_size == 180_000


@pytest.mark.parametrize("cache_mb", [0, 2048])
def test_a_set_that_is_too_large_is_not_stored(imgs, cache, monkeypatch, cache_mb):
    monkeypatch.setenv("DDPM_CACHE_GB", "0.000008")
    options = {"path": str(imgs), "disk_cache": str(cache), "cache_mb": cache_mb}
    (line,) = Folder(**options).warnings
    assert line == (
        f"{cache}/decoded: the decoded data take 0.0 MB, more than the limit of the cache, 0.0 MB; "
        "set the variable DDPM_CACHE_GB, or data.disk_cache=false"
    )
    assert len(entries(cache)) == (0 if cache_mb else 1)  # the headers
    monkeypatch.delenv("DDPM_CACHE_GB")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    (line,) = Folder(**options).warnings
    assert "more than half of the free space, 0.0 MB; set data.disk_cache to a folder else" in line


@pytest.mark.parametrize("cache_mb", [0, 2048])
def test_a_full_disk_is_reported_once(imgs, cache, monkeypatch, capsys, cache_mb):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    data = Folder(path=str(imgs), disk_cache=str(cache), cache_mb=cache_mb)
    assert_equal(data, Folder(path=str(imgs), disk_cache=False))
    assert capsys.readouterr().err == (
        f"warning: {cache}/decoded: decoded data cannot be stored (No space left on device); "
        "continuing without\n"
    )


@pytest.mark.parametrize("cache_mb", [0, 2048])
def test_an_unusable_folder_is_reported_once(imgs, tmp_path, cache_mb):
    (tmp_path / "file").touch()
    data = Folder(path=str(imgs), disk_cache=str(tmp_path / "file"), cache_mb=cache_mb)
    assert data.warnings == (
        f"{tmp_path}/file/decoded: decoded data cannot be stored (Not a directory); set "
        "data.disk_cache to another folder or to false",
    )
    assert torch.equal(data.fetch([3], [0])[0], Folder(path=str(imgs)).fetch([3], [0])[0])


def test_a_cache_that_may_only_be_read_is_read(imgs, cache, opened, monkeypatch):
    Folder(path=str(imgs), disk_cache=str(cache))
    original = os.open

    def read_only(path, flags, *arguments):
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(path, flags, *arguments)

    monkeypatch.setattr(os, "open", read_only)
    opened.clear()
    assert Folder(path=str(imgs), disk_cache=str(cache)).warnings == ()
    assert len(opened) == 1


def test_a_file_of_another_program_under_the_same_name_stays(imgs, cache):
    Folder(path=str(imgs), disk_cache=str(cache))
    (path,) = entries(cache)
    path.write_bytes(b"of another program")
    data = Folder(path=str(imgs), disk_cache=str(cache))
    assert data.warnings == (f"{path} belongs to another program; move it away",)
    assert path.read_bytes() == b"of another program"


# videos


@pytest.mark.parametrize("cache_mb", [0, 2048])
def test_clips_are_equal_with_and_without_the_cache(tmp_path, cache, cache_mb, monkeypatch):
    frames = np.random.default_rng(0).integers(0, 256, (7, 6, 5), dtype=np.uint8)
    first, *others = (Image.fromarray(frame) for frame in frames)
    for name in "ab":
        (tmp_path / "v").mkdir(exist_ok=True)
        first.save(tmp_path / f"v/{name}.gif", save_all=True, append_images=others, duration=50)
    options = {"path": str(age(tmp_path / "v")), "frames": 3, "stride": 1, "cache_mb": cache_mb}
    plain = Videos(**{**options, "cache_mb": 64}, disk_cache=False)
    assert len(plain) == 4
    for _ in range(2):
        assert_equal(Videos(**options, disk_cache=str(cache)), plain)
    Videos(**{**options, "frames": 2}, disk_cache=str(cache))
    assert len(entries(cache)) == 3  # the headers, and clips of two lengths
    monkeypatch.setattr("ddpm.data.video_sources.read_gif_frames", None)
    data = Videos(**options, disk_cache=str(cache))
    assert (
        data.is_decoded()
        and not Videos(**{**options, "cache_mb": 0}, disk_cache=False).is_decoded()
    )
    assert_equal(data, plain)


# JPEG


def test_fast_jpeg_changes_large_pictures_slightly(tmp_path):
    down, right = np.mgrid[:480, :640] / 40
    waves = np.stack([np.sin(down + k) + np.cos(right * (k + 1) / 2) for k in range(3)], axis=2)
    noise = np.random.default_rng(0).normal(0, 6, waves.shape)
    image = Image.fromarray((128 + 50 * waves + noise).clip(0, 255).astype(np.uint8))
    image.save(tmp_path / "a.jpg", quality=90)
    for size, limit in ((60, 4), (119, 4), (121, 0), (480, 0)):
        options: dict[str, Any] = {"path": str(tmp_path), "image_size": size}
        exact, fast = (
            Folder(**options, fast_jpeg=each).fetch([0], [0])[0].float() for each in (False, True)
        )
        difference = (exact - fast).abs()
        assert difference.max() <= limit and difference.mean() <= limit / 8, size
        assert (difference.max() > 0) == (limit > 0)
