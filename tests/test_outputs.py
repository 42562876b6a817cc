"""Record of the files that a command wrote to a folder."""

import json
import os
import shutil

import pytest

from ddpm.errors import ConfigError
from ddpm.outputs import RECORD, OutputFolder, read_record


def write(path, files, *, command="sample", samples=(), keep=False):
    """Write files by name, as a command with one process does."""
    folder = OutputFolder(path, command)
    try:
        folder.check(files)
        folder.prepare(samples)
        folder.open()
        put(folder, files)
        folder.publish()
        folder.finish(keep=keep)
    finally:
        folder.close()


def put(folder, files):
    for name, content in files.items():
        (folder.aside / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.aside / name).write_text(content)


def tree(path):
    """Return the content of each file by name, without the record."""
    files = (each for each in path.rglob("*") if each.is_file() and each.name != RECORD)
    return {each.relative_to(path).as_posix(): each.read_text() for each in files}


def error_of(path, files, **options):
    before = tree(path)
    with pytest.raises(ConfigError) as caught:
        write(path, files, **options)
    assert tree(path) == before
    return str(caught.value).removeprefix(f"out={path}: {path}/")


def test_only_recorded_files_are_replaced_or_removed(tmp_path):
    write(tmp_path, {"images/0.png": "a", "images/1.png": "b", "grid.png": "g"})
    (tmp_path / "images/mine.png").write_text("mine")
    (tmp_path / "notes").write_text("mine")
    write(tmp_path, {"images/0.png": "c", "more/0.npz": "d"})
    user_files = {"images/mine.png": "mine", "notes": "mine"}
    assert tree(tmp_path) == {"images/0.png": "c", "more/0.npz": "d", **user_files}
    write(tmp_path, {"grid.png": "h"})
    assert tree(tmp_path) == {"grid.png": "h", **user_files}
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        RECORD, "grid.png", "images", "notes",
    ]  # fmt: skip


def test_files_that_are_not_recorded_cause_an_error(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("images/0.png", "images/1.png", "grid.png"):
        (tmp_path / name).write_text("mine")
    remedy = "choose another place with out=, or move {} away"
    new = {"images/0.png": "a", "images/1.png": "b"}
    assert error_of(tmp_path, new) == (
        "images/0.png and 1 more were not written by ddpm-sample; " + remedy.format("them")
    )
    assert error_of(tmp_path, {"grid.png/x": "a"}) == (
        "grid.png was not written by ddpm-sample; " + remedy.format("it")
    )
    assert error_of(tmp_path, {"images": "a"}).startswith("images was not written by")
    assert not (tmp_path / RECORD).exists()
    write(tmp_path, {"strip.png": "s"}, command="interpolate")
    assert error_of(tmp_path, {"strip.png": "a"}).startswith(
        "strip.png was written by ddpm-interpolate; "
    )


def test_changed_or_linked_files_are_not_replaced_or_removed(tmp_path):
    write(tmp_path, {"a": "1", "b": "2", "c": "3"})
    (tmp_path / "a").write_text("mine")
    (tmp_path / "b").unlink()
    (tmp_path / "b").symlink_to("nowhere")
    assert error_of(tmp_path, {"a": "4"}).startswith("a was changed since ddpm-sample wrote it; ")
    assert error_of(tmp_path, {"b": "4"}).startswith("b was changed since ddpm-sample wrote it; ")
    write(tmp_path, {"d": "4"})  # changed files are not removed either
    assert tree(tmp_path) == {"a": "mine", "d": "4"}
    assert os.readlink(tmp_path / "b") == "nowhere"


def test_a_copy_of_the_folder_has_the_same_record(tmp_path):
    write(tmp_path / "a", {"images/0.png": "a"})
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    write(tmp_path / "b", {"images/0.png": "b"})
    assert tree(tmp_path / "b") == {"images/0.png": "b"}


def test_each_command_replaces_its_own_files_only(tmp_path):
    write(tmp_path, {"grid.png": "g"})
    write(tmp_path, {"report.html": "r"}, command="evaluate")
    write(tmp_path, {"one.pt": "1"}, command="export", keep=True)
    write(tmp_path, {"two.pt": "2"}, command="export", keep=True)
    write(tmp_path, {"one.pt": "3"}, command="export", keep=True)
    assert tree(tmp_path) == {"grid.png": "g", "report.html": "r", "one.pt": "3", "two.pt": "2"}


def test_the_record_is_correct_after_a_crash(tmp_path):
    write(tmp_path, {"images/0.png": "a", "images/1.png": "b"}, samples=["images"])
    folder = OutputFolder(tmp_path, "sample")
    folder.prepare(["images"])
    folder.open()
    put(folder, {"images/0.png": "c"})
    folder.publish()
    put(folder, {"images/1.png": "half"})  # killed before the move
    folder.aside.rename(tmp_path / ".ddpm-part-999999999-0")
    assert not read_record(tmp_path)["sample"].complete
    (tmp_path / "images/2.png").write_text("mine")
    assert error_of(tmp_path, {"images/2.png": "d"}).startswith("images/2.png was not written by")
    (journal,) = tmp_path.glob(".ddpm-files-*.jsonl")
    journal = journal.rename(tmp_path / ".ddpm-files-999999999-0.jsonl")
    with journal.open("a") as file:
        file.write('["sample", "images/3')  # disk full
    write(tmp_path, {"images/0.png": "e", "images/1.png": "f"})
    assert tree(tmp_path) == {"images/0.png": "e", "images/1.png": "f", "images/2.png": "mine"}
    assert sorted(each.name for each in tmp_path.iterdir()) == [RECORD, "images"]


def test_concurrent_commands_merge_their_records(tmp_path):
    folders = [OutputFolder(tmp_path, "export", owner=pid) for pid in (os.getpid(), os.getppid())]
    for folder in folders:
        folder.prepare()
        folder.open()
    for name, folder in zip("ab", folders, strict=True):
        put(folder, {name: name})
        folder.publish()
    for folder in folders:
        folder.finish(keep=True)
        folder.close()
    assert set(read_record(tmp_path)["export"].files) == {"a", "b"}
    assert sorted(each.name for each in tmp_path.iterdir()) == [RECORD, "a", "b"]


def test_a_file_created_during_the_command_is_not_overwritten(tmp_path):
    folder = OutputFolder(tmp_path, "sample")
    folder.prepare()
    folder.open()
    put(folder, {"a": "1", "b": "2"})
    (tmp_path / "b").write_text("mine")
    with pytest.raises(ConfigError, match="/b was not written by ddpm-sample; "):
        folder.publish()
    folder.close()
    assert tree(tmp_path) == {"b": "mine"}


def test_empty_folders_are_removed(tmp_path):
    folder = OutputFolder(tmp_path / "a/b", "sample")
    folder.prepare()
    folder.open()
    put(folder, {"a": "1"})
    folder.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[" * 100_000,
        '{"format": 2, "commands": {}}',
        '{"format": 1, "commands": {"sample": 3}}',
        json.dumps({"format": 1, "commands": {"sample": {
            "files": {"../victim": ["x"]}, "samples": [], "complete": True}}}),
        json.dumps({"format": 1, "commands": {"sample": {
            "files": {}, "samples": ["/etc"], "complete": True}}}),
    ],
)  # fmt: skip
def test_a_damaged_or_malicious_record_is_ignored(tmp_path, content):
    (tmp_path / RECORD).write_text(content)
    (tmp_path / "a").write_text("mine")
    assert read_record(tmp_path) == {}
    assert error_of(tmp_path, {"a": "1"}).startswith("a was not written by ddpm-sample; ")
