"""Commands with ``out=`` in a folder that contains files of the user."""

from pathlib import Path

import pytest

from ddpm.outputs import RECORD, read_record

QUICK = ("steps=1", "num_samples=2")
REMEDY = "choose another place with out=, or move {} away"


def mine(*names):
    """Write files of the user; return their contents by name."""
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("mine")
    return {name: b"mine" for name in names}


def contents(folder):
    return {str(p): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def test_samples_are_written_beside_files_of_other_names(command, trained):
    before = mine(
        "faces/images/cat.png", "faces/images/00002.png", "faces/samples.npy", "faces/a/b"
    )
    draw = ("sample", f"ckpt={trained}", "out=faces", *QUICK)
    assert command(*draw, "trajectory=true").status == 0
    names = {"images/00000.png", "images/00001.png", "grid.png"}
    written = read_record(Path("faces"))["sample"]
    assert set(written.files) == {*names, "trajectory.gif"}
    assert written.samples == ["images"] and written.complete
    assert command(*draw, "format=npz", "seed=1").status == 0  # the pictures are of another seed
    assert {name: contents("faces")[name] for name in before} == before
    assert set(contents("faces")) - set(before) == {
        f"faces/{name}" for name in ("samples.npz", "grid.png", RECORD)
    }


@pytest.mark.parametrize(
    ("name", "options", "conflict"),
    [
        ("images/00001.png", (), "images/00001.png"),
        ("grid.png", ("format=npz",), "grid.png"),
        ("samples.npz", ("format=npz",), "samples.npz"),
        ("samples.npy", ("format=npy",), "samples.npy"),
        ("trajectory.gif", ("trajectory=true",), "trajectory.gif"),
        ("images", (), "images"),
        ("grid.png/x", (), "grid.png"),
    ],
)
def test_samples_do_not_overwrite(command, trained, name, options, conflict):
    before = mine(f"faces/{name}")
    ended = command("sample", f"ckpt={trained}", "out=faces", *QUICK, *options)
    problem = f"out=faces: faces/{conflict} was not written by ddpm-sample; {REMEDY.format('it')}"
    assert (ended.status, ended.line) == (1, f"ddpm-sample: {problem}")
    assert contents("faces") == before and "drawing" not in ended.out


def test_interpolations_do_not_overwrite(command, trained):
    draw = ("interpolate", f"ckpt={trained}", "a=1", "b=2", "num_frames=2", "steps=1")
    before = mine("mine/strip.png", "mine/images/00000.png")
    problem = f"mine/images/00000.png and 1 more were not written by ddpm-interpolate; {REMEDY}"
    ended = command(*draw, "out=mine")
    assert ended.line == f"ddpm-interpolate: out=mine: {problem.format('them')}"
    assert contents("mine") == before
    assert command("sample", f"ckpt={trained}", "out=s", *QUICK).status == 0
    before = contents("s")
    ended = command(*draw, "out=s")
    problem = f"s/images/00000.png and 1 more were written by ddpm-sample; {REMEDY}"
    assert ended.line == f"ddpm-interpolate: out=s: {problem.format('them')}"
    assert contents("s") == before
    assert command(*draw, "out=i").status == 0
    assert command(*draw, "out=i", "seed=1").status == 0


def test_exports_do_not_overwrite(command, trained):
    export = ("export", f"ckpt={trained}", "format=denoising-diffusion-pytorch")
    before = mine("o/a.pt", "o/b.json", "o/c.json")
    for name, conflict in (("a.pt", "a.pt"), ("b.pt", "b.json")):
        ended = command(*export, f"out=o/{name}")
        problem = (
            f"out=o/{name}: o/{conflict} was not written by ddpm-export; {REMEDY.format('it')}"
        )
        assert (ended.status, ended.line) == (1, f"ddpm-export: {problem}")
        assert contents("o") == before
    ended = command(*export, "out=o")
    assert ended.line == "ddpm-export: out=o: is a folder; set out= to the name of a file"
    for weights in ("ema", "raw"):
        assert command(*export, "out=o/d.pt", f"weights={weights}").status == 0
    assert command("export", f"ckpt={trained}", "out=o/c.safetensors").status == 0
    assert command("export", f"ckpt={trained}").status == 0
    assert command("export", f"ckpt={trained}").status == 0
    assert {name: contents("o")[name] for name in before} == before
    assert set(contents("o")) - set(before) == {
        f"o/{name}" for name in ("d.pt", "d.json", "c.safetensors", RECORD)
    }


def test_evaluations_do_not_overwrite(command, trained):
    measure = ("evaluate", f"ckpt={trained}", "num_images=2", "bound_steps=2")
    before = mine("e/report.html", "e/bound.npz")
    ended = command(*measure, "metrics=[loss,bpd]", "out=e")
    problem = f"e/report.html and 1 more were not written by ddpm-evaluate; {REMEDY}"
    assert ended.line == f"ddpm-evaluate: out=e: {problem.format('them')}"
    assert contents("e") == before
    ended = command("evaluate", f"runs={trained}", "metrics=[loss]", "num_images=2", "out=e")
    problem = f"e/report.html was not written by ddpm-evaluate runs=; {REMEDY}"
    assert ended.line == f"ddpm-evaluate: out=e: {problem.format('it')}"
    assert contents("e") == before and not list(Path(trained).glob("evaluations/*"))
    Path("e/report.html").unlink()
    assert command(*measure, "metrics=[loss]", "out=e").status == 0
    assert contents("e")["e/bound.npz"] == b"mine"
    Path("e/bound.npz").unlink()
    assert command(*measure, "metrics=[bpd]", "out=e").status == 0
    assert {"e/bound.npz", "e/bound.png"} < set(contents("e"))
    assert command(*measure, "metrics=[loss]", "out=e").status == 0
    assert set(contents("e")) == {
        f"e/{name}" for name in ("report.html", "evaluation.json", RECORD)
    }


def test_a_command_that_fails_leaves_no_folder(command, trained, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", fail)
    before = sorted(map(str, Path().rglob("*")))
    ended = command("sample", f"ckpt={trained}", "out=a/b", *QUICK)
    problem = "cannot be written (No space left on device); free space or write elsewhere"
    assert ended.line == f"ddpm-sample: out=a/b/images/00000.png: {problem}"
    assert command("sample", f"ckpt={trained}", *QUICK).status == 1
    assert sorted(map(str, Path().rglob("*"))) == before


def test_a_run_does_not_begin_in_a_folder_of_other_files(command, tiny):
    train = ("train", "trainer.max_steps=1", *tiny)
    for name, conflict in (
        ("metrics.jsonl", "metrics.jsonl"),
        ("loss.png", "loss.png"),
        ("samples/step-00000001.png", "samples/step-00000001.png"),
        ("snapshots/step-00000001.safetensors", "snapshots/step-00000001.safetensors"),
        ("samples", "samples"),
    ):
        folder = f"outputs/{name.partition('.')[0].replace('/', '-')}"
        before = mine(f"{folder}/{name}")
        ended = command(*train, f"name={Path(folder).name}")
        problem = f"{folder}/{conflict} was not written by ddpm-train; choose another folder, or"
        assert ended.line == f"ddpm-train: name={Path(folder).name}: {problem} move it away"
        assert contents(folder) == before
    before = mine("outputs/c/note.txt") | {"outputs/c/config.yaml": b"lr: 1\n"}
    Path("outputs/c/config.yaml").write_text("lr: 1\n")
    ended = command(*train, "name=c")
    problem = "is not the config of a run; choose another folder, or move it away"
    assert ended.line == f"ddpm-train: out=outputs/c/config.yaml: {problem}"
    assert contents("outputs/c") == before
    before = mine("outputs/d/note.txt", "outputs/d/samples/a.png")
    assert command(*train, "name=d").status == 0
    assert {name: contents("outputs/d")[name] for name in before} == before


@pytest.mark.parametrize("kind", ["file", "folder", "absolute", "elsewhere"])
def test_latest_is_replaced_only_if_it_is_a_link_to_a_run(command, tiny, kind):
    latest = Path("outputs/latest")
    latest.parent.mkdir()
    Path("elsewhere").mkdir()
    if kind == "file":
        latest.write_text("mine")
    elif kind == "folder":
        latest.mkdir()
    else:
        latest.symlink_to(Path("elsewhere").resolve() if kind == "absolute" else "../elsewhere")
    before = latest.lstat().st_ino
    ended = command("train", "name=a", "trainer.max_steps=1", *tiny)
    assert ended.status == 0 and latest.lstat().st_ino == before
    message = "outputs/latest is not a link to a run and is left unchanged; use outputs/a instead"
    assert f"warning: {message}" in ended.err.splitlines()


@pytest.mark.slow
def test_a_sweep_does_not_overwrite(command, tiny):
    sweep = ("train", "-m", "name=s", "trainer.max_steps=1", *tiny, "seed=0,1")
    place = "outputs/multirun/s"
    before = mine(f"{place}/sweep.csv", f"{place}/1/job.json")
    ended = command(*sweep)
    assert ended.status == 1
    problem = "is not the record of a job; choose another folder, or move it away"
    assert f"ddpm-train: out={place}/1/job.json: {problem}" in ended.err.splitlines()
    assert {name: contents(place)[name] for name in before} == before
    Path(place, "1/job.json").unlink()
    ended = command(*sweep)
    assert ended.status == 0
    assert f"{place}/sweep-2.csv\n{place}/sweep.png\n" in ended.out
    assert contents(place)[f"{place}/sweep.csv"] == b"mine"
    Path(place, "sweep.csv").unlink()
    mine(f"{place}/sweep.png")
    ended = command(*sweep)
    assert f"{place}/sweep.csv\n{place}/sweep-2.png\n" in ended.out
    assert contents(place)[f"{place}/sweep.png"] == b"mine"


@pytest.mark.slow
def test_the_table_of_a_sweep_of_an_earlier_version_is_replaced(command, tiny):
    sweep = ("train", "-m", "name=s", "trainer.max_steps=1", *tiny, "seed=0")
    assert command(*sweep).status == 0
    Path("outputs/multirun/s", RECORD).unlink()
    assert command(*sweep).status == 0
    names = {path.name for path in Path("outputs/multirun/s").iterdir()}
    assert names == {RECORD, "0", "multirun.yaml", "sweep.csv", "sweep.png"}
