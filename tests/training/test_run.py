"""Run folders."""

import json
import os

import pytest
from PIL import Image

from ddpm.errors import ConfigError
from ddpm.nested import flat
from ddpm.outputs import new_folder
from ddpm.streams import plot_text
from ddpm.training.compatibility import FREE_KEYS, check_compatible
from ddpm.training.run import Run


def logged(run, *steps):
    for step in steps:
        run.log({"step": step, "loss": 1 / step, "loss_q0": None, "loss_q1": 0.5})


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path / "outputs/a")
    made.create("seed: 0\n", tmp_path / "outputs/latest")
    return made


def test_create_writes_the_folder_and_the_link(run):
    latest = run.path.parent / "latest"
    assert latest.is_symlink() and latest.readlink().name == "a"
    assert run.config_file.read_text() == "seed: 0\n" and run.samples.is_dir()
    other = Run(run.path.parent / "b")
    other.create("seed: 1\n", latest)
    assert latest.readlink().name == "b"
    run.create("seed: 2\n", latest)
    assert latest.readlink().name == "a" and run.config_file.read_text() == "seed: 2\n"
    assert sorted(path.name for path in run.path.parent.iterdir()) == ["a", "b", "latest"]
    assert sorted(path.name for path in run.path.iterdir()) == ["config.yaml", "samples"]


def test_create_in_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written \(Not a directory\)"):
        Run(tmp_path / "file/a").create("")


def test_rewind_removes_later_records(run):
    logged(run, 2, 4, 6, 8)
    run.rewind(5)
    assert [record["step"] for record in run.metrics()] == [2, 4]
    logged(run, 6)
    assert [record["step"] for record in run.metrics()] == [2, 4, 6]
    run.rewind(6)
    assert [record["step"] for record in run.metrics()] == [2, 4, 6]
    run.rewind(0)
    assert run.metrics_file.read_text() == ""
    assert not run.metrics_file.with_suffix(".tmp").exists()


@pytest.mark.parametrize("lost", range(1, 20))
def test_incomplete_last_line_is_ignored(run, lost):
    logged(run, 2, 4)
    text = run.metrics_file.read_text()
    run.metrics_file.write_text(text[:-lost])
    complete = [2, 4] if lost == 1 else [2]  # without its newline a line is still complete
    assert [record["step"] for record in run.metrics()] == complete
    run.rewind(100)
    logged(run, 6)
    lines = run.metrics_file.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [*complete, 6]


def test_flat():
    nested = {"seed": 1, "model": {"dim": 8, "dim_mults": (1, 2)}, "none": None, "empty": {}}
    assert flat(nested) == {"seed": 1, "model.dim": 8, "model.dim_mults": [1, 2], "none": None}


def test_error_has_every_differing_key(run):
    stored = {"seed": 0, "model": {"dim": 8, "full_attn": None}, "trainer": {"lr": 1e-3}}
    requested = {"seed": 1, "model": {"dim": 8, "dropout": 0.1}, "trainer": {"lr": 0.5}}
    requested["model"]["full_attn"] = [True, False]
    with pytest.raises(ConfigError) as caught:
        check_compatible(stored, requested, "name", run.path)
    assert str(caught.value) == (
        "name=a: was trained with different options: model.dropout (null there, 0.1 here), "
        "model.full_attn (null there, [true,false] here), seed (0 there, 1 here), "
        f"trainer.lr (0.001 there, 0.5 here); use resume={run.path} to continue with the run's own "
        "options, or another name"
    )
    with pytest.raises(ConfigError, match=r"; remove these overrides or start a new run$"):
        check_compatible(stored, requested, "resume", run.path)


@pytest.mark.parametrize("key", sorted(FREE_KEYS))
def test_free_keys_may_differ(run, key):
    def config(value):
        made = {"seed": 0, "data": {"split": "train"}, "trainer": {"lr": 1.0}}
        group, _, option = key.rpartition(".")
        (made[group] if group else made)[option] = value
        return made

    check_compatible(config(1), config(2), "name", run.path)
    check_compatible({**config(1), "seed": 0.0}, config(None), "name", run.path)


def test_lists_equal_tuples_and_missing_keys_equal_null(run):
    check_compatible({"a": {"b": (1, 2), "c": None}}, {"a": {"b": [1, 2]}}, "name", run.path)


def test_new_folders_get_unique_names(tmp_path):
    for expected in ("a", "a-2", "a-3"):
        assert new_folder(tmp_path / "runs", "a") == tmp_path / "runs" / expected
        assert (tmp_path / "runs" / expected).is_dir()
    (tmp_path / "runs/a-2").rmdir()
    assert new_folder(tmp_path / "runs", "a").name == "a-2"
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="choose another folder with out="):
        new_folder(tmp_path / "file", "a")


def test_the_plot(run):
    assert run.plot() is None and not (run.path / "loss.png").exists()
    logged(run, 1, 2, 3)
    assert run.plot() == run.path / "loss.png"
    picture = Image.open(run.path / "loss.png").convert("RGB")
    assert picture.size == (840, 480)
    assert len(picture.getcolors(1 << 20)) > 10, "nothing was drawn"


def test_the_plot_of_a_run_whose_name_cannot_be_decoded(tmp_path):
    """Bytes that are not UTF-8, and dollars, of which matplotlib would make a formula."""
    run = Run(tmp_path / os.fsdecode(b"na\xc3ve $a_{$"))
    run.create("seed: 0\n")
    logged(run, 1, 2)
    assert Image.open(run.plot()).size == (840, 480)


def test_text_of_plots():
    assert plot_text("na\udcc3ve $x$") == "na\ufffdve \\$x\\$"
