"""``ddpm-average``: post-hoc EMA, from training to the commands that read its results."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import ddpm
from ddpm.errors import ConfigError
from ddpm.publication import card
from ddpm.training import checkpoint, snapshots
from ddpm.training.power_profile import Profile, fit

STEPS = ("trainer.max_steps=20", "trainer.posthoc_every=4", "trainer.checkpoint_every=14")
_runs: dict[str, Path] = {}
_tracked: dict[str, torch.Tensor] = {}  # average with sigma_rel 0.08 of that run, at its end


@pytest.fixture
def run(command, tiny, tmp_path_factory):
    """Path of a tiny run with snapshots of two averages, which is trained once, then copied."""
    if "run" not in _runs:
        options = ("name=a", *STEPS, "trainer.posthoc_ema=[0.05,0.08,0.1]", *tiny)
        ended = command("train", *options)
        assert ended.status == 0, ended.err
        line = (
            "post-hoc EMA: 5 snapshots, every 4 steps, of averages with sigma_rel 0.05, 0.08, 0.1: "
        )
        size = ended.out.partition(line)[2].partition(" MB in outputs/a/snapshots (")[0]
        paths = snapshots.listed(Path("outputs/a"))
        files = sum(path.stat().st_size for path in paths.values())
        assert float(size) == pytest.approx(files / 1e6, rel=0.2)
        for step, path in paths.items():  # leaves two of the averages
            averages, rest = snapshots.read(path).tensors()
            profiles = list(snapshots.read(path).profiles)
            assert profiles.pop(1) == Profile(0.08, step)
            _tracked.update(averages.pop(1))
            snapshots.write(path, step, profiles, averages, rest)
        _runs["run"] = tmp_path_factory.mktemp("runs") / "outputs"
        shutil.copytree("outputs", _runs["run"], symlinks=True)
    else:
        shutil.copytree(_runs["run"], "outputs", symlinks=True)
    return "outputs/a"


def weights(folder):
    return checkpoint.find(str(folder), pytest.fail).weights("ema")


def distance(one, other):
    return sum(float((one[name] - other[name]).square().sum()) for name in one) ** 0.5


def test_averages_are_those_that_training_would_have_tracked(command, run):
    """A stored profile is exact, another one as close as the error of its profile says."""
    ended = command("average", f"ckpt={run}", "sigma_rel=[0.05,0.08]")
    assert ended.status == 0, ended.err
    folders = [Path(run, "averages", f"sigma-{s}-step-00000020") for s in ("0.05", "0.08")]
    assert sorted(Path(run, "averages").iterdir()) == folders
    assert all(f"done: {folder}\n" in ended.out for folder in folders)
    line = "sigma_rel=0.05 at step 20: error of the profile 0, from 5 snapshots\n"
    assert line in ended.out
    (exact, wide), rest = snapshots.read(snapshots.place(Path(run), 20)).tensors()
    result = weights(folders[0])
    assert all(torch.equal(result[name], value) for name, value in {**exact, **rest}.items())
    error = distance(_tracked, weights(folders[1]))
    assert error < 0.05 * min(distance(_tracked, exact), distance(_tracked, wide))
    profiles = [Profile(s, t) for t in range(4, 21, 4) for s in (0.05, 0.1)]
    record = checkpoint.find(str(folders[1]), pytest.fail).metadata
    assert record.step == 20 and record.average is not None
    assert record.average["error"] == fit(Profile(0.08, 20), profiles).error
    assert record.average["sigma_rel"] == 0.08 and record.average["run"] == "a"
    assert [name for name, _ in record.average["snapshots"]] == [
        f"step-{step:08d}.safetensors" for step in range(4, 21, 4)
    ]


def test_commands_and_python_read_an_average(command, run, tiny):
    model = ddpm.average(run, 0.1, step=16)
    folder = f"{run}/averages/sigma-0.1-step-00000016"
    assert model.checkpoint is not None and model.checkpoint.step == 16
    assert str(model.checkpoint.run) == folder
    options = (f"ckpt={folder}", "num_samples=2", "steps=2", "seed=3", "out=s")
    ended = command("sample", *options)
    assert ended.status == 0, ended.err
    assert "drawing 2 samples of step 16" in ended.out and model.sample(2, steps=2).data.any()
    loss = ("metrics=[loss]", "num_images=4", "out=e")
    assert command("evaluate", f"ckpt={folder}", *loss).status == 0
    assert command("export", f"ckpt={folder}", "out=x.safetensors").status == 0
    ended = command("train", f"init={folder}", "name=n", "trainer.max_steps=1", *tiny)
    assert ended.status == 0 and f"are the averages of {folder}/" in ended.out, ended.err
    line = "- weights averaged after the training by a power function, sigma_rel=0.1"
    assert line in card(model.checkpoint, "me/a", pipeline=False)
    ended = command("average", f"ckpt={folder}", "sigma_rel=0.1")
    assert ended.line.startswith(f"ddpm-average: ckpt={folder}: has no snapshots of averages; ")


def test_an_average_is_written_once_and_replaces_nothing(command, run):
    average = ("average", f"ckpt={run}", "sigma_rel=0.1", "out=kept")
    assert command(*average).status == 0
    folder = Path("kept/sigma-0.1-step-00000020")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    ended = command(*average)
    assert ended.status == 0 and f"done: {folder}\n" in ended.out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    content = json.loads((folder / "checkpoints/step-00000020/config.json").read_text())
    assert content["average"]["error"] == 0.0
    path = snapshots.place(Path(run), 12)
    step, (averages, rest) = snapshots.read(path), snapshots.read(path).tensors()
    averages[0]["init_conv.weight"] += 1
    snapshots.write(path, 12, list(step.profiles), averages, rest)
    (Path("kept") / "sigma-0.05-step-00000020").mkdir()
    for options in (average, (*average[:2], "sigma_rel=0.05", "out=kept")):
        ended = command(*options)
        assert ended.status == 1
        assert "exists and is not the average of these snapshots; move it away" in ended.line
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert sorted(each.name for each in Path("kept").iterdir()) == [
        "sigma-0.05-step-00000020", folder.name
    ]  # fmt: skip


def test_an_average_ends_at_the_checkpoint_or_at_the_step(command, run):
    for options, step in (
        ([f"ckpt={run}", "step=8"], 8),
        ([f"ckpt={run}/checkpoints/step-00000014"], 12),
    ):
        ended = command("average", *options, "sigma_rel=0.05", "out=o")
        assert ended.status == 0 and f"o/sigma-0.05-step-{step:08d}\n" in ended.out, ended.err
    expected = snapshots.read(snapshots.place(Path(run), 8)).tensors()[0][0]
    assert distance(expected, weights("o/sigma-0.05-step-00000008")) == 0


RANGE = "must be above 0 and below 0.289, which averages all steps equally"
ERRORS = [
    ("sigma_rel=0.3", f"sigma_rel=0.3: {RANGE}"),
    ("sigma_rel=[0.1,-1]", f"sigma_rel=-1.0: {RANGE}"),
    ("sigma_rel=wide", "sigma_rel=wide: must be a number or a list, each a number, like [1,2]"),
    ("sigma_rel=0.1 step=7", "step=7: has no snapshot; use one of 4, 8, 12, 16, 20"),
]


@pytest.mark.parametrize(("options", "line"), ERRORS, ids=[options for options, _ in ERRORS])
def test_errors(command, run, options, line):
    ended = command("average", f"ckpt={run}", *options.split())
    assert (ended.status, ended.line) == (1, f"ddpm-average: {line}")
    assert not Path(run, "averages").exists()


def test_profiles_that_the_snapshots_do_not_approximate(command, run):
    ended = command("average", f"ckpt={run}", "sigma_rel=0.01")
    assert ended.status == 1
    assert ended.line.startswith("ddpm-average: sigma_rel=0.01: differs by ")
    assert " from all combinations of 10 averages with sigma_rel=[0.05,0.1]; use " in ended.line
    limit = ended.line.partition("max_error=")[2].partition(",")[0]
    assert command("average", f"ckpt={run}", "sigma_rel=0.01", f"max_error={limit}").status == 0


def test_a_damaged_snapshot_and_a_run_without_snapshots(command, run):
    path = snapshots.place(Path(run), 12)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    ended = command("average", f"ckpt={run}", "sigma_rel=0.08")
    assert ended.line.startswith(f"ddpm-average: ckpt={path}: is damaged: it is not what was")
    assert not Path(run, "averages").exists()
    path.unlink()
    assert command("average", f"ckpt={run}", "sigma_rel=0.05").status == 0
    shutil.rmtree(Path(run, "snapshots"))
    ended = command("average", f"ckpt={run}", "sigma_rel=0.05")
    assert ended.line == (
        f"ddpm-average: ckpt={run}: has no snapshots of averages; train with "
        "trainer.posthoc_ema=[0.05,0.1]; a run can also be resumed with it"
    )
    with pytest.raises(ConfigError, match="has no snapshots"):
        ddpm.average(run, 0.1)
