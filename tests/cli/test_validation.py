"""Evaluations during training, and the checkpoint ``best``."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from ddpm.evaluation import sample_metrics
from ddpm.runs.training import _value
from ddpm.training.run import Run
from tests.metrics.torch_fidelity_reference import custom

EVALUATES = (
    "trainer.evaluate_every=2",
    "evaluation.metrics=[fid,loss]",
    "evaluation.num_samples=9",
    "evaluation.num_images=8",
    "evaluation.batch_size=4",
    "evaluation.sampler.steps=2",
    "data.val_fraction=0.1",
    "trainer.checkpoint_every=100",
)


@pytest.fixture
def train(command, tiny):
    """Return a function: ``train(name, steps, ...)`` trains with evaluations every other step."""

    def run(name, steps, *more):
        options = (f"name={name}", f"trainer.max_steps={steps}", *tiny, *EVALUATES, *more)
        ended = command("train", *options)
        assert ended.status in (0, 75), ended.err
        return ended

    return run


def evaluations(name):
    records = Run(Path("outputs", name)).metrics()
    return {record["step"]: record["evaluation"] for record in records if "evaluation" in record}


def checkpoint_steps(name):
    folders = Path("outputs", name, "checkpoints").glob("step-*")
    return sorted(int(folder.name.partition("-")[2]) for folder in folders)


def test_evaluations_run_at_multiples_and_at_the_last_step(train):
    ended = train("a", 5)
    numbers = evaluations("a")
    assert list(numbers) == [2, 4, 5] and checkpoint_steps("a") == [5]
    quarters = [f"val_loss_q{q}" for q in range(4)]
    assert all(list(each) == ["fid_9", "val_loss", *quarters] for each in numbers.values())
    for each in numbers.values():
        mean = sum(each[quarter] for quarter in quarters) / 4
        assert each["val_loss"] == pytest.approx(mean, rel=1e-6)
    line = f"step 4: fid_9 {numbers[4]['fid_9']:.5g}, val_loss {numbers[4]['val_loss']:.5g}\n"
    assert line in ended.err


def test_evaluations_are_off_by_default(train):
    train("a", 3, "trainer.evaluate_every=0", "evaluation.metrics=[isc]")
    assert evaluations("a") == {} and not Path("outputs/references").exists()


def test_the_held_out_loss_is_of_the_same_data_steps_and_noise_each_time(train):
    train("a", 4, "trainer.lr=1e-30")  # the weights do not change
    numbers = evaluations("a")
    assert numbers[2] == numbers[4]


def test_the_command_equals_the_evaluation_during_training(command, train):
    train("a", 4)
    (row, *_) = json.loads(Path("outputs/a/checkpoints/step-00000004/evaluation.json").read_text())[
        "metrics"
    ]
    assert (row["name"], row["num_samples"], row["step"], row["steps"]) == ("fid_9", 9, 4, 2)
    assert row["reference"]["part"] == "train" and row["reference"]["num_images"] == 1617
    ended = command(
        "evaluate", "ckpt=outputs/a", "metrics=[fid,loss]", "num_samples=9", "num_images=8",
        "batch_size=4", "steps=2", "out=again",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    again = json.loads(Path("again/evaluation.json").read_text())
    for row in again["metrics"]:  # in another memory layout: to rounding
        assert row["value"] == pytest.approx(evaluations("a")[4][row["name"]], rel=1e-4)
    of_loss = next(row for row in again["metrics"] if row["name"] == "val_loss")
    assert of_loss["reference"]["part"] == "val" and of_loss["reference"]["num_images"] == 8


@pytest.mark.slow
def test_best_follows_the_metric_through_a_resume(command, train):
    train("a", 4, "trainer.best=fid", "trainer.keep_last=2", "trainer.lr=0.01")
    again = command("train", "resume=outputs/a", "trainer.max_steps=10")
    assert again.status == 0, again.err
    train("b", 10, "trainer.best=fid", "trainer.keep_last=2", "trainer.lr=0.01")
    numbers = evaluations("a")
    assert numbers == evaluations("b") and list(numbers) == [2, 4, 6, 8, 10]
    best = min(numbers, key=lambda step: numbers[step]["fid_9"])
    for name in ("a", "b"):
        assert checkpoint_steps(name) == sorted({8, 10, best})
        assert os.readlink(f"outputs/{name}/checkpoints/best") == f"step-{best:08d}"
    assert _value(Run(Path("outputs/a")), "fid") == numbers[best]["fid_9"]
    last = _value(Run(Path("outputs/a")), None)
    assert last == Run(Path("outputs/a")).last_loss() != numbers[best]["fid_9"]


@pytest.mark.slow
def test_an_interrupted_evaluation_is_repeated_on_resume(command, train, monkeypatch):
    train("whole", 6, "trainer.best=fid")
    generate, calls = sample_metrics.generate, []

    def interrupted(*arguments, **options):
        for batch in generate(*arguments, **options):
            calls.append(None)
            if len(calls) == 4:  # the first batch of the second evaluation
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(sample_metrics, "generate", interrupted)
    ended = train("cut", 6, "trainer.best=fid")
    assert ended.status == 75 and "stopped at step 4, with a checkpoint" in ended.err
    assert len(calls) == 4 and list(evaluations("cut")) == [2] and checkpoint_steps("cut") == [2, 4]
    monkeypatch.setattr(sample_metrics, "generate", generate)
    again = command("train", "resume=outputs/cut")
    assert again.status == 0, again.err
    assert evaluations("cut") == evaluations("whole")
    links = [os.readlink(f"outputs/{name}/checkpoints/best") for name in ("cut", "whole")]
    assert links[0] == links[1]
    assert Path("outputs/cut/checkpoints/step-00000004/evaluation.json").is_file()


@pytest.mark.slow
def test_a_run_that_ended_before_its_last_evaluation_still_owes_it(command, train):
    train("whole", 3)
    train("cut", 3)
    lines = Path("outputs/cut/metrics.jsonl").read_text().splitlines(keepends=True)
    assert "evaluation" in lines[-1]
    Path("outputs/cut/metrics.jsonl").write_text("".join(lines[:-1]))  # as after a kill
    again = command("train", "resume=outputs/cut")
    assert again.status == 0 and evaluations("cut") == evaluations("whole")
    assert "is done: 3 steps" in command("train", "resume=outputs/cut").out


def test_told_to_stop_in_the_last_evaluation_it_is_not_done(command, train, monkeypatch):
    generate = sample_metrics.generate

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        yield from generate(*arguments, **options)

    monkeypatch.setattr(sample_metrics, "generate", interrupted)
    ended = train("a", 3, "trainer.evaluate_every=3")
    assert ended.status == 75 and "stopped at step 3, with a checkpoint" in ended.err
    monkeypatch.setattr(sample_metrics, "generate", generate)
    assert command("train", "resume=outputs/a").status == 0
    assert list(evaluations("a")) == [3]


def test_a_run_whose_evaluation_has_fewer_options_resumes(command, train):
    train("a", 2)
    file = Path("outputs/a/config.yaml")
    lines = file.read_text().splitlines(keepends=True)
    remaining = [line for line in lines if not line.startswith("  bound_steps:")]
    assert len(remaining) == len(lines) - 1
    file.write_text("".join(remaining))
    for more in ((), ("evaluation.bound_steps=5",)):
        again = command("train", "resume=outputs/a", "trainer.max_steps=4", *more)
        assert again.status == 0, again.err
    assert list(evaluations("a")) == [2, 4]


def test_files_of_a_stored_config_are_not_run_unless_the_user_names_them(command, train):
    train("a", 2)
    custom("net.pt", 1)
    file = Path("outputs/a/config.yaml")
    text = file.read_text()
    target = "_target_: ddpm.metrics.Auto"
    assert text.count(target) == 1
    file.write_text(text.replace(target, "_target_: ddpm.fidelity.Custom\n    path: net.pt"))
    ended = command("train", "resume=outputs/a", "trainer.max_steps=3")
    assert ended.status == 1 and ended.line.startswith(
        "ddpm-train: evaluation.extractor.path=net.pt: is a file that would be run; if you trust it"
    )
    more = ("extractor@evaluation.extractor=custom", "evaluation.extractor.path=net.pt")
    again = command("train", "resume=outputs/a", "trainer.max_steps=3", *more)
    assert again.status == 0, again.err
    row = json.loads(Path("outputs/a/checkpoints/step-00000003/evaluation.json").read_text())
    assert row["metrics"][0]["extractor"]["name"] == "custom"


@pytest.mark.slow
def test_the_held_out_data_do_not_depend_on_the_reference(train):
    train("a", 2)
    train("b", 2, "evaluation.reference=digits")
    one, other = evaluations("a")[2], evaluations("b")[2]
    assert one["val_loss"] == other["val_loss"] and one["fid_9"] != other["fid_9"]


def test_trackers_receive_evaluations(tmp_path):
    logged = []
    trackers = SimpleNamespace(log=lambda numbers, step: logged.append((numbers, step)))
    run = Run(tmp_path, trackers)
    run.log_evaluation(7, {"fid_9": 1.5, "val_loss": None})
    run.log_evaluation(7, {"fid_9": 2.5}, "a/folder")
    assert logged == [({"eval/fid_9": 1.5, "eval/val_loss": None}, 7)]
    assert run.curves() == {"loss": [], "fid_9": [(7, 1.5)]}
    assert run.has_evaluation(7) and not run.has_evaluation(8)


@pytest.mark.slow
def test_best_compares_evaluations_with_equal_options_only(command, train):
    train("a", 4, "trainer.best=fid")
    options = ("evaluation.sampler.steps=3", "sampler@evaluation.sampler=ddpm")
    again = command("train", "resume=outputs/a", "trainer.max_steps=6", *options)
    assert again.status == 0, again.err
    row = json.loads(Path("outputs/a/checkpoints/step-00000006/evaluation.json").read_text())
    assert row["metrics"][0]["sampler"]["_target_"] == "ddpm.samplers.DDPM"
    assert row["metrics"][0]["steps"] == 3
    assert (
        os.readlink("outputs/a/checkpoints/best") == "step-00000006"
    )  # the only one with these options


@pytest.mark.slow
def test_the_table_of_a_sweep_has_the_metrics(command, tiny):
    options = (*tiny, *EVALUATES, "trainer.max_steps=2", "name=s", "seed=0,1")
    ended = command("train", "-m", *options)
    assert ended.status == 0, ended.err
    lines = Path("outputs/multirun/s/sweep.csv").read_text().splitlines()
    assert lines[0].endswith("best_step,fid_9,val_loss,folder") and "val_loss" in ended.out
    for number, line in enumerate(lines[1:]):
        (numbers,) = evaluations(f"multirun/s/{number}").values()
        *_, fid, loss, _ = line.split(",")
        assert (float(fid), float(loss)) == (numbers["fid_9"], numbers["val_loss"])


ERRORS = [
    ("data.val_fraction=0", "evaluation.metrics=[fid,loss]: no data are held out; add data.val_fraction=0.1, or use metrics=[fid]"),
    ("trainer.best=kid", "trainer.best=kid: is not computed; evaluation.metrics computes fid, val_loss, val_loss_q0, val_loss_q1, val_loss_q2, val_loss_q3; did you mean 'fid'?"),
    ("trainer.best=fid trainer.evaluate_every=0", "trainer.best=fid: must be null or one of loss, loss_q0, loss_q1, loss_q2, loss_q3; to follow another metric, set trainer.evaluate_every"),
    ("trainer.evaluate_every=-1", "trainer.evaluate_every=-1: must be at least 0"),
    ("evaluation.metrics=[fidd]", "evaluation.metrics=fidd: unknown metric; did you mean 'fid'?"),
    ("evaluation.num_samples=1", "evaluation.num_samples=1: fid needs at least 2 samples"),
    ("evaluation.reference=nowhere", "evaluation.reference=nowhere: no such folder; set evaluation.reference to a folder of images"),
    ("evaluation.guidance=2", "evaluation.guidance=2.0: the model was not trained for guidance; train with data.class_cond=true diffusion.label_dropout=0.1, or set guidance to 1"),
    ("evaluation.classes=[1]", "evaluation.classes=[1]: the model is not class-conditional; leave it out, or train with data.class_cond=true"),
    ("evaluation.sampler.steps=5000", "evaluation.sampler.steps=5000: the process has 1000 steps; use 1 to 1000"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "line"), ERRORS, ids=[options for options, _ in ERRORS])
def test_errors(command, tiny, options, line):
    ended = command("train", "name=a", *tiny, *EVALUATES, *options.split())
    assert ended.status == 1 and ended.line == f"ddpm-train: {line}"
    assert not list(Path().glob("outputs/a/checkpoints/*"))


@pytest.mark.slow
def test_two_processes_evaluate_together(command, train):
    train("two", 2, "launch.processes=2")
    ended = command(
        "evaluate", "ckpt=outputs/two", "metrics=[fid,loss]", "num_samples=9", "num_images=8",
        "batch_size=4", "steps=2", "out=one",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    one = json.loads(Path("one/evaluation.json").read_text())["metrics"]
    for row in one:
        assert evaluations("two")[2][row["name"]] == pytest.approx(row["value"], rel=1e-6)
