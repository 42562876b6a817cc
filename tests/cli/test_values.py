"""Values of the command line: names that look like numbers, and ``~`` in paths."""

import inspect
import os
from pathlib import Path

import pytest
from PIL import Image

from ddpm.cli import evaluate, exporting, importing, interpolate, sample, train
from ddpm.config import values
from ddpm.config.registry import PACKAGES
from ddpm.config.schema import _kinds, hints_of
from ddpm.errors import ConfigError
from ddpm.evaluation.options import EvaluationOptions
from ddpm.files import expand

NUMBERS = ["1e-3", "7", "true", "1_000", ".5", "-1", "inf", "nan", "1e400", "FALSE", "1."]


@pytest.mark.parametrize("name", NUMBERS)
def test_text_that_looks_like_a_number_is_quoted(name):
    assert values.literal("name", name, sweep=False) == f'"{name}"'
    assert values.literal("seed", name, sweep=False) == name


def test_null_and_words_are_unchanged():
    for name in ("null", "007", "a-1", "2026-11-27", "1.2.3", "0x10", "''"):
        assert values.literal("name", name, sweep=False) == name


@pytest.mark.slow
def test_numeric_names_of_sweeps_runs_and_outputs(command, tiny):
    quick = ("trainer.max_steps=1", *tiny)
    ended = command("train", "-m", "name=1e-3", "out=007", "seed=0,1", *quick)
    assert ended.status == 0, ended.err
    assert sorted(os.listdir("007/multirun/1e-3")) == [
        ".ddpm-files.json",
        "0",
        "1",
        "multirun.yaml",
        "sweep.csv",
        "sweep.png",
    ]
    os.rename("007/multirun/1e-3/1", "1_000")
    ended = command("train", "resume=1_000", "trainer.max_steps=2")
    assert ended.status == 0 and "from step 1 to step 2" in ended.out
    options = ("steps=1", "num_samples=1")
    ended = command("sample", "-m", "ckpt=1_000", "out=1e-3,1e-4", *options)
    assert ended.status == 0, ended.err
    assert sorted(os.listdir()) == ["007", "1_000", "1e-3", "1e-4", "latest", "outputs"]
    ended = command("interpolate", "ckpt=1_000", "a=1e-3", "b=2")
    assert ended.line.startswith("ddpm-interpolate: a=1e-3: ")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("latest", "is the link to the last run; to resume that run, use resume=o/latest"),
        ("multirun", "is the folder of sweeps; use another name"),
        ("references", "is the folder of reference statistics; use another name"),
    ],
)
def test_reserved_names(command, name, problem):
    ended = command("train", f"name={name}", "out=o")
    assert (ended.status, ended.line) == (1, f"ddpm-train: name={name}: {problem}")
    with pytest.raises(ConfigError) as caught:
        importing._require_free(name, "o")
    assert str(caught.value) == f"name={name}: {problem}"
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("key", "value", "sweep", "read"),
    [
        ("out", "~/a b", False, '"/home/me/a b"'),
        ("out", "a/~/b", False, '"a/~/b"'),
        ("out", "~nobody-of-this-name/a", False, '"~nobody-of-this-name/a"'),
        ("ckpt", "~/a,~/b", True, '"/home/me/a","/home/me/b"'),
        ("ckpt", "~/a,b", False, '"/home/me/a,b"'),
        ("runs", "[~/a, b,~]", False, '["/home/me/a",b,"/home/me"]'),
        ("runs", "[~/a],[1e-3,b]", True, '["/home/me/a"],["1e-3",b]'),
        ("name", "~", False, '"~"'),
        ("name", "null", False, "null"),
        ("a", "7", False, "7"),
        ("a", "1e-3", False, '"1e-3"'),
        ("a", "~/7.png", False, '"/home/me/7.png"'),
        ("version", "2.10", False, '"2.10"'),
        ("trainer.lr", "1e-3", False, "1e-3"),
        ("trainer.lr", "1e-3,1e-4", True, "1e-3,1e-4"),
        ("data.path", "é,b", True, '"é",b'),
        ("seed", "range(1,5)", True, "range(1,5)"),
        ("out", "'a,1',b", True, "'a,1',b"),
    ],
)
def test_values_passed_to_hydra(monkeypatch, key, value, sweep, read):
    monkeypatch.setenv("HOME", "/home/me")
    assert values.literal(key, value, sweep=sweep) == read


def test_an_unknown_home(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(ConfigError) as caught:
        expand("out", "~/a")
    assert str(caught.value) == "out=~/a: the home directory is unknown; set HOME"


@pytest.mark.slow
def test_a_tilde_in_every_command(command, tiny, tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / "pictures").mkdir(parents=True)
    for number in range(4):
        Image.new("L", (8, 8), number * 20).save(home / "pictures" / f"{number}.png")
    monkeypatch.setenv("HOME", str(home))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    folder = ("data=folder", "data.path=~/pictures", "model.dim_mults=[1,2]")
    quick, few = ("trainer.max_steps=1", *tiny), ("num_samples=2", "steps=1")
    calls = [
        ("train", "out=~/runs", "name=a", *folder, *quick),
        ("train", "-m", "out=~/runs", "name=s", "seed=0,1", *folder, *quick),
        ("train", "resume=~/runs/a", "data.path=~/pictures", "trainer.max_steps=2"),
        ("sample", "ckpt=~/runs/a", "out=~/drawn", "format=npz", *few),
        ("interpolate", "ckpt=~/runs/a", "a=~/pictures/0.png", "b=1", "out=~/way", "num_frames=2",
         "steps=1"),
        ("evaluate", "ckpt=~/runs/a", "reference=~/pictures", "cache=~/cache", "out=~/found", *few),
        ("evaluate", "samples=~/drawn/samples.npz", "reference=~/pictures", "cache=null",
         "out=~/other", "num_samples=2"),
        ("evaluate", "runs=[~/runs/multirun/s]", "cache=~/cache", "out=~/both", *few),
        ("export", "ckpt=~/runs/a", "format=denoising-diffusion-pytorch", "out=~/away.pt"),
        ("import", "source=denoising-diffusion-pytorch", "file=~/away.pt", "size=8",
         "out=~/runs", "name=back"),
    ]  # fmt: skip
    for name, *options in calls:
        ended = command(name, *options)
        assert ended.status == 0, (name, options, ended.err)
    assert os.listdir() == []
    made = {"away.json", "away.pt", "both", "cache", "drawn", "found", "other", "runs", "way"}
    visible = {name for name in os.listdir(home) if not name.startswith(".")}  # .cache, .config
    assert visible == made | {"pictures"}
    assert "path: " + str(home / "pictures") in Path(home, "runs/a/config.yaml").read_text()


def text_options():
    """Yield the options of all commands whose annotation allows any text."""
    from ddpm import data, metrics

    functions = [train.train, sample.Sample, interpolate.Interpolate]
    functions += [importing.import_run, exporting.export, evaluate.Evaluate, EvaluationOptions]
    owners = [(each, "") for each in functions] + [(EvaluationOptions, "evaluation.")]
    owners += [(getattr(data, name), "data.") for name in data.__all__]
    for prefix in ("extractor.", "evaluation.extractor."):
        owners += [(getattr(metrics, name), prefix) for name in metrics.__all__]
    for owner, prefix in owners:
        if prefix and not inspect.isclass(owner):
            continue
        hints = hints_of(owner)
        for name, parameter in inspect.signature(owner).parameters.items():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name in hints:
                if str in _kinds(hints[name]):
                    yield f"{prefix}{name}"


def test_options_of_text_are_listed():
    words = {"source", "format", "steps", "extractor.key", "evaluation.extractor.key"}
    words.add("data.disk_cache")  # a folder, or false
    assert set(text_options()) - words <= values.TEXT
    assert "ddpm.data" in PACKAGES.values()
