"""Sweeps: one folder per job, failing jobs, resuming, and the table at the end."""

import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from ddpm.cli import invocation, sweeps
from ddpm.errors import Stopped
from ddpm.runs import sweep_table
from ddpm.training.loop import TrainingLoop
from ddpm.training.run import Run

NAMED = Path("outputs/multirun/lr")
STAMP = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")
FAILS = "model.dim=12"  # not divisible by its eight groups


def rows(place=NAMED):
    with Path(place, "sweep.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbered(place=NAMED):
    return sorted(path.name for path in Path(place).iterdir() if path.is_dir())


@pytest.fixture
def sweep(command, tiny):
    """Return a function: ``sweep(...)`` runs a sweep ``lr`` of two learning rates."""

    def run(*more, lr="0.001,0.002", steps=2):
        options = ("name=lr", f"trainer.lr={lr}", f"trainer.max_steps={steps}", *tiny)
        return command("train", "-m", *options, *more)

    return run


def failing(monkeypatch, error, lr=0.002):
    """Make the job with learning rate ``lr`` raise ``error`` instead of training."""
    train = TrainingLoop.train

    def raise_or_train(self):
        if self.options.lr == lr:
            raise error
        return train(self)

    monkeypatch.setattr(TrainingLoop, "train", raise_or_train)


def test_a_sweep_ends_with_a_table_of_all_jobs_and_survives_one_that_fails(sweep):
    ended = sweep("model.dim=8,12")
    assert ended.status == 1
    why = (
        "model.dim=12: a level has 12 channels, not divisible into 8 groups; make dim a multiple "
        "of 8, lower resnet_block_groups or set block_norm=rms"
    )
    assert ended.err.strip().splitlines() == [f"ddpm-train: {why}"] * 2
    assert numbered() == ["0", "1", "2", "3"]
    assert os.listdir("outputs/multirun") == ["lr"]
    assert not [path for path in Path("outputs").rglob("*") if "=" in path.name]

    table = rows()
    differ = [(row["trainer.lr"], row["model.dim"]) for row in table]
    assert differ == [("0.001", "8"), ("0.001", "12"), ("0.002", "8"), ("0.002", "12")]
    assert [row["status"] for row in table] == ["done", "failed", "done", "failed"]
    assert [row["error"] for row in table] == ["", why, "", why]
    assert [row["steps"] for row in table] == ["2", "0", "2", "0"]
    assert [row["folder"] for row in table] == [str(NAMED / str(n)) for n in range(4)]
    for row in (table[0], table[2]):
        losses = [record["loss"] for record in Run(Path(row["folder"])).metrics()]
        assert len(losses) == 2 and float(row["loss"]) == losses[-1]
        assert float(row["best_loss"]) == min(losses)
        assert int(row["best_step"]) == 1 + losses.index(min(losses))
    assert table[1]["loss"] == table[1]["best_loss"] == table[1]["best_step"] == ""

    printed = ended.out.splitlines()[-7:]
    assert printed[0].split() == "job trainer.lr model.dim status steps loss best at step".split()
    loss = f"{float(table[2]['loss']):.4g}"
    assert printed[3].split()[:6] == ["2", "0.002", "8", "done", "2", loss]
    assert printed[4].split()[:8] == ["3", "0.002", "12", "failed", "0", "-", "-", "-"]
    assert printed[5:] == [str(NAMED / "sweep.csv"), str(NAMED / "sweep.png")]
    assert Image.open(NAMED / "sweep.png").size == (1320, 600)


@pytest.mark.slow
def test_the_same_command_resumes_every_job(sweep):
    assert sweep().status == 0
    before = rows()
    ended = sweep()
    assert ended.status == 0
    done = [f"{NAMED / str(n)} is done: 2 steps; add trainer.max_steps=..." for n in (0, 1)]
    assert [line for line in ended.out.splitlines() if " is done: " in line] == done
    assert rows() == before
    ended = sweep(steps=3)
    assert ended.status == 0 and ended.out.count("training from step 2 to step 3") == 2
    assert [row["steps"] for row in rows()] == ["3", "3"]
    # Jobs with different options are rejected; the table contains the jobs of the last call only.
    ended = sweep(lr="0.005", steps=3)
    assert ended.status == 1 and "trainer.lr (0.001 there, 0.005 here)" in ended.line
    assert [(row["job"], row["status"], row["steps"]) for row in rows()] == [("0", "failed", "3")]


@pytest.mark.slow
def test_without_a_name_each_sweep_has_a_folder_of_its_own(command, tiny):
    for _ in range(2):
        ended = command("train", "-m", "trainer.max_steps=1", "seed=0,1", *tiny)
        assert ended.status == 0, ended.err
    first, second = sorted(Path("outputs/multirun").iterdir())
    assert STAMP.fullmatch(first.name) and STAMP.fullmatch(second.name)
    for place in (first, second):
        assert numbered(place)[:2] == ["0", "1"]
        assert [(row["seed"], row["status"]) for row in rows(place)] == [
            ("0", "done"),
            ("1", "done"),
        ]


def test_an_unforeseen_error_has_its_traceback_and_the_others_run(sweep, monkeypatch):
    failing(monkeypatch, RuntimeError("broken\nin two"), lr=0.001)
    ended = sweep()
    assert ended.status == 1
    assert ended.err.count("Traceback (most recent call last)") == 1
    assert "RuntimeError: broken\nin two" in ended.err
    assert [(row["status"], row["error"]) for row in rows()] == [
        ("failed", "RuntimeError: broken in two"),
        ("done", ""),
    ]


def test_a_signal_ends_the_sweep(sweep, monkeypatch):
    failing(monkeypatch, Stopped("stopped by SIGTERM"))
    ended = sweep(lr="0.001,0.002,0.003")
    assert ended.status == 75
    ends = [("done", ""), ("stopped", "stopped by SIGTERM; to resume:")]
    assert [(row["status"], row["error"][:30]) for row in rows()] == ends
    assert not (NAMED / "2").exists()


@pytest.mark.slow
def test_a_job_stopped_in_another_process_prevents_later_jobs(sweep, monkeypatch):
    failing(monkeypatch, Stopped("stopped by SIGTERM"))
    real, starter = sweeps.record_job, os.getpid() + 1
    monkeypatch.setattr(
        sweeps, "record_job", lambda name, config, _, work: real(name, config, starter, work)
    )
    ended = sweep(lr="0.001,0.002,0.003")
    assert ended.status == 75
    assert [row["status"] for row in rows()] == ["done", "stopped", "stopped"]
    message = "another job of the sweep was stopped: this one is not started"
    assert rows()[2]["error"] == message and numbered(NAMED / "2") == []


def test_another_command_that_fails_in_another_process_is_not_lost(command, trained, monkeypatch):
    monkeypatch.setattr("ddpm.cli.sweeps.table.records", lambda _: [])
    pids = iter([1, 2, 2, 2])
    monkeypatch.setattr("ddpm.cli.app.os.getpid", lambda: next(pids, 2))
    ended = command("sample", "-m", f"ckpt={trained}", "steps=0", "num_samples=1")
    assert ended.status == 1 and ended.err.startswith("ddpm-sample: steps=0: ")
    assert "Traceback" not in ended.err


REJECTED = {
    "out=a,b": "out=a,b: is the parent folder of the whole sweep; set one value",
    "name=a,b": "name=a,b: names the whole sweep, whose jobs are numbered below it; set one value",
    "hydra.sweep.subdir=a": "hydra.sweep.subdir: the folder of a job is its number; leave it out, "
    "or set hydra.sweep.dir=",
}


@pytest.mark.parametrize("argument", REJECTED)
def test_one_sweep_has_one_folder(command, argument):
    ended = command("train", "-m", argument)
    assert ended.status == 1 and ended.line == f"ddpm-train: {REJECTED[argument]}"
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("name", ["../far", "a/b", "''", "..", "latest"])
def test_an_invalid_name_is_rejected_by_the_jobs(command, tmp_path, name):
    ended = command("train", "-m", f"name={name}", "seed=0,1")
    assert ended.status == 1
    assert all(line.startswith("ddpm-train: name=") for line in ended.err.strip().splitlines())
    (place,) = Path("outputs/multirun").iterdir()
    assert name == "latest" or STAMP.fullmatch(place.name)
    assert [path.name for path in tmp_path.parent.glob("far*")] == []


@pytest.mark.parametrize(
    ("typed", "place"),
    [
        (["-m", "name=lr"], "${out}/multirun/${name}"),
        (["name='a b'", "--multirun"], "${out}/multirun/${name}"),
        (["hydra.mode=MULTIRUN", "name=null"], "${out}/multirun/STAMP"),
        (["--multi", "out=x"], "${out}/multirun/STAMP"),
        (["-m", "hydra.sweep.dir=mine"], None),
        (["-m", "name=["], "${out}/multirun/STAMP"),  # Hydra reports the error
        (["name=lr"], None),
    ],
)
def test_the_folder_of_a_sweep_is_fixed_on_the_command_line(typed, place):
    more = [STAMP.sub("STAMP", one) for one in sweeps.with_sweep_dir("train", typed)[len(typed) :]]
    assert more == ([] if place is None else [f"hydra.sweep.dir={place}"])
    assert sweeps.with_sweep_dir("sample", typed) == typed


NETWORKS = ("model=unet,simple_unet", "model.width=8", "trainer.max_steps=1")


def jobs_of(monkeypatch):
    """Replace the work of jobs; return a list for the overrides of each started job."""
    from ddpm.cli import app

    started = []
    monkeypatch.setattr(app, "_run", lambda *_: started.append(invocation.overrides()))
    return started


@pytest.mark.slow
def test_an_option_applies_to_the_jobs_whose_choice_has_it(command, tiny):
    small = [option for option in tiny if not option.startswith("model.")]
    options = ("name=lr", *NETWORKS, "model.dim=8,16", *small)
    ended = command("train", "-m", *options)
    assert ended.status == 0, ended.err
    assert ended.out.splitlines()[:3] == [
        "model.dim: not an option of model=simple_unet; left out there",
        "model.width: not an option of model=unet; left out there",
        "4 combinations are 3 jobs: the others differ in such options alone",
    ]
    table = [(r["job"], r["model"], r["model.width"], r["model.dim"], r["steps"]) for r in rows()]
    assert table == [
        ("0", "unet", "-", "8", "1"), ("1", "unet", "-", "16", "1"),
        ("2", "simple_unet", "8", "-", "1"),
    ]  # fmt: skip
    assert numbered() == ["0", "1", "2"]
    printed = ended.out.splitlines()[-5:-2]
    assert [line.split()[:5] for line in printed] == [
        ["0", "unet", "8", "-", "done"], ["1", "unet", "16", "-", "done"],
        ["2", "simple_unet", "-", "8", "done"],
    ]  # fmt: skip
    ended = command("train", "-m", *options)
    assert ended.status == 0 and ended.out.count(" is done: 1 steps;") == 3


SPREAD = {
    ("data=folder,digits", "data.path=p", "seed=1"): [
        ["data=folder", "data.path=p", "seed=1"], ["data=digits", "seed=1"],
    ],
    ("data.path='a, b',c", "data=digits,folder"): [
        ["data=digits"], ["data.path='a, b'", "data=folder"], ["data.path=c", "data=folder"],
    ],
    ("schedule=linear,sigmoid", "schedule.start=-3,-2", "model=simple_unet", "model.width=8"): [
        ["schedule=linear", "model=simple_unet", "model.width=8"],
        ["schedule=sigmoid", "schedule.start=-3", "model=simple_unet", "model.width=8"],
        ["schedule=sigmoid", "schedule.start=-2", "model=simple_unet", "model.width=8"],
    ],
    ("seed=0,1", "model=unet,simple_unet", "model.dim_mults=[1,2]", "model.width=8"): [
        ["seed=0", "model=unet", "model.dim_mults=[1,2]"],
        ["seed=0", "model=simple_unet", "model.width=8"],
        ["seed=1", "model=unet", "model.dim_mults=[1,2]"],
        ["seed=1", "model=simple_unet", "model.width=8"],
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "typed", [next(iter(SPREAD)), *(pytest.param(t, marks=pytest.mark.slow) for t in [*SPREAD][1:])]
)
def test_the_jobs_of_a_sweep_over_a_group(command, monkeypatch, typed):
    started = jobs_of(monkeypatch)
    ended = command("train", "-m", "name=lr", *typed)
    assert ended.status == 0, ended.err
    assert [[one for one in job if one != "name=lr"] for job in started] == SPREAD[typed]


def test_the_samplers_of_a_sweep_have_their_own_options(command, monkeypatch):
    started = jobs_of(monkeypatch)
    ended = command("sample", "-m", "ckpt=x", "sampler=ddpm,ddim", "sampler.eta=0.5", "out=g")
    assert ended.status == 0, ended.err
    assert ended.out.splitlines() == [
        "out=g is the same for several jobs of the sweep; each has its own, with its number",
        "sampler.eta: not an option of sampler=ddpm; left out there",
    ]
    assert started == [
        ["ckpt=x", "sampler=ddpm", 'out="g/0"'],
        ["ckpt=x", "sampler=ddim", "sampler.eta=0.5", 'out="g/1"'],
    ]


NOWHERE = {
    ("model=iddpm_unet,simple_unet", "model.model_chanels=32"): (
        "model.model_chanels=32: unknown option; did you mean 'model.model_channels'?"
    ),
    ("model=unet,simple_unet", "model.model_channels=32,64"): None,
    ("model=unet,simple_unet", "model.width=8", "trainer.lrr=1"): (
        "trainer.lrr=1: unknown option; did you mean 'trainer.lr'?"
    ),
    ("model=unet,nosuch", "model.width=8"): None,
    ("hydra/sweeper=basic", "model=unet,simple_unet", "model.width=8"): None,
}


@pytest.mark.parametrize("typed", NOWHERE)
def test_an_option_of_no_choice_is_rejected_before_any_job(command, monkeypatch, typed):
    started = jobs_of(monkeypatch)
    ended = command("train", "-m", *typed)
    assert (ended.status, started) == (1, [])
    assert ended.line.startswith("ddpm-train: ")
    if NOWHERE[typed] is not None:
        assert ended.line == f"ddpm-train: {NOWHERE[typed]}"
        assert not Path("outputs").exists()


def test_a_single_run_is_not_a_sweep(command, tiny):
    assert command("train", "name=one", "trainer.max_steps=1", *tiny).status == 0
    assert sorted(os.listdir("outputs")) == ["latest", "one"]
    assert not list(Path("outputs").rglob("job.json"))


def write_job(place, number, overrides, losses=(), **more):
    """Write the folder of a finished job with ``losses`` by step; return it."""
    folder = place / str(number)
    folder.mkdir(parents=True)
    record = {"overrides": overrides, "status": "done", "error": None, "folder": str(folder)}
    (folder / "job.json").write_text(json.dumps(record | more))
    lines = [json.dumps({"step": step, "loss": loss}) for step, loss in enumerate(losses, start=1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    return folder


def test_the_table_is_by_number_and_shows_what_differs(tmp_path):
    write_job(tmp_path, 10, ["seed=0", "+model.dim=8", "plugins='a b'"], [3.0, 1.0, 2.0])
    write_job(tmp_path, 9, ["seed=0", "+model.dim=16", "plugins='c'"], [2.0, float("nan"), None])
    (write_job(tmp_path, 11, ["seed=0"], status="running") / "checkpoints/step-00000007").mkdir(
        parents=True
    )
    (write_job(tmp_path, 12, []) / "job.json").write_text("{")
    write_job(tmp_path, "other", [])
    nine, ten, eleven, broken = sweep_table.jobs(tmp_path)
    assert ten.options == {"seed": "0", "model.dim": "8", "plugins": "a b"}
    assert (nine.number, nine.loss != nine.loss, nine.best, nine.steps) == (9, True, (1, 2.0), 3)
    assert (ten.number, ten.loss, ten.best, ten.steps) == (10, 2.0, (2, 1.0), 3)
    assert (eleven.status, eleven.steps, eleven.loss) == ("failed", 7, None)
    assert eleven.error == "killed or still running: it recorded no result"
    assert (broken.status, broken.folder, broken.best) == ("failed", tmp_path / "12", (None, None))


def test_only_options_that_differ_have_a_column(tmp_path):
    for number in (0, 1):
        write_job(tmp_path, number, ["seed=0", f"trainer.lr={number}"])
    assert [job.options for job in sweep_table.jobs(tmp_path)] == [{"trainer.lr": x} for x in "01"]


@pytest.fixture
def drawn(monkeypatch):
    """Return a list of the figures that are saved."""
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))
    )
    return figures


def test_the_legend_lists_the_best_twenty_in_order(tmp_path, drawn):
    for number in range(25):
        losses = [] if number == 3 else [2.0, float("nan") if number == 4 else 1 / (1 + number)]
        write_job(tmp_path, number, [f"trainer.lr={number}", "plugins=[$a$]"], losses)
    assert sweep_table.draw(sweep_table.jobs(tmp_path), tmp_path / "sweep.png")
    (figure,) = drawn
    (axes,), (legend,) = figure.axes, figure.legends
    assert len(axes.lines) == 24  # all but the one that logged nothing
    names = [text.get_text() for text in legend.get_texts()]
    order = [n for n in range(24, -1, -1) if n not in (3, 4)][:20]
    assert names == [f"{1 / (1 + n):.4g}  job {n}: trainer.lr={n}" for n in order]
    assert legend.get_title().get_text() == "last loss; 4 worse ones omitted"
    assert axes.lines[0].get_ydata().tolist() == [2.0, 1 / 25]
    assert Image.open(tmp_path / "sweep.png").format == "PNG"


def test_losses_that_are_not_comparable_carry_a_warning(tmp_path, drawn):
    for number, name in enumerate(("PredNoise", "PredV", "PredNoise")):
        folder = write_job(tmp_path, number, [f"objective={name}"], [2.0, 1.0 / (1 + number)])
        config = f"objective: {{_target_: ddpm.diffusion.{name}}}\nmodel: {{_target_: none.Own}}\n"
        (folder / "config.yaml").write_text(config)
    jobs = sweep_table.jobs(tmp_path)
    warning = (
        "Losses are not comparable: the jobs differ in objective (pred_noise, pred_v); compare fid "
        "or bpd (ddpm-evaluate runs=... metrics=[fid,bpd])."
    )
    assert sweep_table.summary(jobs).splitlines()[-1] == warning
    assert warning not in sweep_table.summary([jobs[0], jobs[2]])
    assert sweep_table.write_csv(jobs, tmp_path / "sweep.csv")
    with (tmp_path / "sweep.csv").open() as file:
        assert [row["loss_group"] for row in csv.DictReader(file)] == ["1", "2", "1"]
    assert sweep_table.write_csv([jobs[0], jobs[2]], tmp_path / "same.csv")
    assert "loss_group" not in (tmp_path / "same.csv").read_text()
    assert len(sweep_table.write(jobs, tmp_path)) == 2
    (figure,) = drawn
    message = f"{warning} Those with the same line style are."
    assert figure.get_supxlabel().replace("\n", " ") == message
    (axes,) = figure.axes
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--", "-"]  # best first
    assert axes.get_title() == tmp_path.name


def test_dollars_in_the_legend_are_escaped(tmp_path, drawn):
    for number in (0, 1):
        write_job(tmp_path, number, [f"data.path=$x^{number}$"], [1.0 + number])
    assert sweep_table.draw(sweep_table.jobs(tmp_path), tmp_path / "sweep.png")
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert names == [rf"{1 + n}  job {n}: data.path=\$x^{n}\$" for n in (0, 1)]


def test_curves_are_running_means_of_a_twentieth():
    assert sweep_table._smooth(range(39)) == list(range(39))
    assert sweep_table._smooth(range(40)) == [0, *(n + 0.5 for n in range(39))]


def test_no_figure_without_curves(tmp_path):
    write_job(tmp_path, 0, [])
    assert not sweep_table.draw(sweep_table.jobs(tmp_path), tmp_path / "sweep.png")
    assert not (tmp_path / "sweep.png").exists()


def launcher_options(launcher):
    """Return options of a sweep in other processes; skip if the launcher is not installed."""
    extra = launcher.partition("_")[0]
    plugin = f"hydra_plugins.hydra_{extra}_launcher"
    pytest.importorskip(plugin, reason=f"the launcher is in the extra ddpm[{extra}]")
    return ["-m", "name=lr", f"hydra/launcher={launcher}", "trainer.lr=0.001,0.002"]


def started(place, options):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    return subprocess.Popen(
        [sys.executable, "-c", "from ddpm.cli.train import main; main()", *options],
        cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_jobs_of_several_processes(tmp_path, tiny):
    options = ["-m", "name=lr", "seed=0,1", "launch.processes=2", "device=cpu"]
    process = started(tmp_path, [*options, "trainer.max_steps=2", *tiny])
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    table = rows(tmp_path / NAMED)
    assert [(row["seed"], row["status"], row["steps"]) for row in table] == [
        ("0", "done", "2"),
        ("1", "done", "2"),
    ]
    assert [row["folder"] for row in table] == [str(NAMED / "0"), str(NAMED / "1")]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_launchers_that_run_the_jobs_in_other_processes(launcher, tmp_path, tiny):
    options = [*launcher_options(launcher), "model.dim=8,12", "trainer.max_steps=2", *tiny[1:]]
    process = started(tmp_path, options)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 1, err
    table = rows(tmp_path / NAMED)
    assert [row["status"] for row in table] == ["done", "failed"] * 2
    assert [row["steps"] for row in table] == ["2", "0"] * 2
    assert all(row["error"].startswith("model.dim=12: ") for row in (table[1], table[3]))
    assert str(NAMED / "sweep.png") in out.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_signal_stops_jobs_in_other_processes_with_a_checkpoint(launcher, tmp_path, tiny):
    options = [*launcher_options(launcher), "trainer.max_steps=100000", *tiny]
    process = started(tmp_path, options)
    metrics = [tmp_path / NAMED / str(number) / "metrics.jsonl" for number in (0, 1)]
    until = time.monotonic() + 400
    while not all(path.exists() and path.stat().st_size for path in metrics):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.1)
    process.terminate()
    _, err = process.communicate(timeout=200)
    assert process.returncode == 75, err
    for row in rows(tmp_path / NAMED):
        place = tmp_path / row["folder"] / "checkpoints"
        assert row["status"] == "stopped" and int(row["steps"]) > 0
        assert (place / f"step-{int(row['steps']):08d}" / "manifest.json").exists()
