"""Comparison of several runs: one sorted table, with samples side by side."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

OPTIONS = ("metrics=[fid,loss]", "num_samples=8", "num_images=4", "batch_size=4", "steps=2")


@pytest.fixture(scope="module")
def trained_sweep(tmp_path_factory):
    """Folder to which the first test copies the outputs of its sweep."""
    return tmp_path_factory.mktemp("sweep") / "outputs"


@pytest.fixture
def sweep(command, tiny, trained_sweep):
    """Folder of a sweep of two jobs."""
    if trained_sweep.exists():
        shutil.copytree(trained_sweep, "outputs", symlinks=True)
        return "outputs/multirun/s"
    options = ("name=s", "trainer.lr=0.001,0.01", "trainer.max_steps=3", *tiny)
    ended = command("train", "-m", *options)
    assert ended.status == 0, ended.err
    shutil.copytree("outputs", trained_sweep, symlinks=True)
    return "outputs/multirun/s"


def rows(out):
    """Return the printed table as dictionaries."""
    lines = [line.split() for line in out.splitlines()]
    head = next(n for n, line in enumerate(lines) if line[:2] == ["run", "step"])
    return [dict(zip(lines[head], line, strict=True)) for line in lines[head + 1 : -1]]


def evaluated(run):
    return [
        json.loads(path.read_text()) for path in Path(run).glob("evaluations/*/evaluation.json")
    ]


def test_the_jobs_of_a_sweep_are_ranked_and_evaluated_once(command, sweep):
    ended = command("evaluate", f"runs={sweep}", "out=c", *OPTIONS)
    assert ended.status == 0, ended.err
    table = rows(ended.out)
    assert sorted(row["run"] for row in table) == ["0", "1"]
    values = [float(row["fid_8"]) for row in table]
    assert values == sorted(values)
    for row in table:
        (content,) = evaluated(f"{sweep}/{row['run']}")
        assert float(row["fid_8"]) == pytest.approx(content["metrics"][0]["value"], rel=1e-4)
    page = Path("c/report.html").read_text()
    assert "trainer.lr" in page and "Samples side by side" in page and "All with seed 0" in page
    assert "model.dim" not in re.search(r"<thead>.*?</thead>", page, re.S)[0]
    again = command("evaluate", f"runs={sweep}", *OPTIONS)
    assert again.status == 0 and rows(again.out) == table
    assert again.out.count("was evaluated with these options") == 2
    assert Path("outputs/comparison/report.html").is_file()
    assert [len(evaluated(f"{sweep}/{n}")) for n in (0, 1)] == [1, 1]


@pytest.mark.slow
def test_different_options_are_evaluated_again(command, sweep):
    assert command("evaluate", f"runs={sweep}", *OPTIONS).status == 0
    for more in ("seed=1", "num_samples=9", "weights=raw"):
        ended = command("evaluate", f"runs=[{sweep}/0]", *OPTIONS, more)
        assert ended.status == 0 and "was evaluated" not in ended.out
    assert [len(evaluated(f"{sweep}/{n}")) for n in (0, 1)] == [4, 1]


def test_a_list_of_runs_has_unique_names_without_duplicates(command, sweep):
    shutil.copytree(f"{sweep}/0", "elsewhere/0")
    options = (f"runs=[{sweep}/0,{sweep}/1,elsewhere,{sweep}/0]", *OPTIONS)
    ended = command("evaluate", *options)
    assert ended.status == 0, ended.err
    table = {row["run"]: float(row["fid_8"]) for row in rows(ended.out)}
    assert set(table) == {f"{sweep}/0", "1", "elsewhere/0"}
    assert table[f"{sweep}/0"] == table["elsewhere/0"]


def test_a_job_without_a_checkpoint_is_omitted_with_a_warning(command, sweep):
    shutil.rmtree(f"{sweep}/0/checkpoints")
    ended = command("evaluate", f"runs={sweep}", *OPTIONS)
    assert ended.status == 0, ended.err
    assert [row["run"] for row in rows(ended.out)] == ["1"]
    assert f"{sweep}/0 has no checkpoint; it is left out" in ended.err


ERRORS = [
    ("runs=nowhere", "runs=nowhere: folder not found; name runs, or the folder of a sweep"),
    ("runs=empty", "runs=empty: contains no run with a checkpoint; name runs, or the folder of a sweep"),
    ("runs=[]", "runs=[]: is empty; name at least one run"),
    ("runs=empty ckpt=empty", "ckpt=empty: set exactly one of ckpt= (a model), samples= (images) and runs= (several models)"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "line"), ERRORS, ids=[options for options, _ in ERRORS])
def test_errors(command, options, line):
    Path("empty").mkdir()
    ended = command("evaluate", *OPTIONS, *options.split())
    assert ended.status == 1 and ended.line == f"ddpm-evaluate: {line}"


def test_metrics_that_are_not_comparable_are_reported(command, tiny):
    for name, more in (("a", "data.val_fraction=0"), ("b", "data.val_fraction=0.1")):
        options = (f"name={name}", "trainer.max_steps=1", *tiny, more)
        assert command("train", *options).status == 0
    ended = command("evaluate", "runs=outputs", *OPTIONS)
    assert ended.status == 0, ended.err
    assert "Not comparable: fid_8. The runs differ in reference." in ended.err
    assert "Not comparable with one another: loss, val_loss." in ended.err
    assert ended.err.count("Not comparable") == 2


def test_changed_reference_images_are_evaluated_again(command, sweep):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1)).astype(np.uint8)
    options = (f"runs=[{sweep}/0]", "reference=r.npz", "metrics=[fid]", *OPTIONS[1:])
    np.savez("r.npz", arr_0=pixels)
    assert "was evaluated" not in command("evaluate", *options).out
    assert "was evaluated" in command("evaluate", *options).out
    np.savez("r.npz", arr_0=pixels[:19])
    assert "was evaluated" not in command("evaluate", *options).out
