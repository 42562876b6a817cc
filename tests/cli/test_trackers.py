"""Trackers of the train command; their calls are tested in ``tests/training``."""

import json
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RUN = Path("outputs/tiny")
BROKEN = """
class Config:
    def update(self, values, allow_val_change):
        pass

class Run:
    logged = 0

    def log(self, values, step):
        Run.logged += 1
        if step >= 3:
            raise ConnectionError("the server is gone")

def init(**options):
    global config
    config = Config()
    return Run()
"""


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "600")  # is set otherwise, and would stay
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)


def records():
    return [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]


def events():
    sizes = {"scalars": 0, "images": 0}
    accumulator = EventAccumulator(str(RUN / "tensorboard"), size_guidance=sizes)
    accumulator.Reload()
    return accumulator


def test_an_unknown_tracker_is_rejected_before_training(command):
    ended = command("train", "name=tiny", "trainer.trackers=[tensorbord]")
    assert (ended.status, ended.out) == (1, "")
    assert ended.line == (
        "ddpm-train: trainer.trackers=[tensorbord]: unknown tracker tensorbord; did you mean "
        "'tensorboard'? (there are: aim, clearml, comet_ml, dvclive, mlflow, swanlab, tensorboard, "
        "trackio, wandb)"
    )
    assert not RUN.exists()


@pytest.mark.parametrize(
    "name, remedy",
    [("tensorboard", "'ddpm[tensorboard]'"), ("wandb", "wandb"), ("trackio", "trackio")],
)
def test_a_missing_package_is_rejected_before_training(command, monkeypatch, name, remedy):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    ended = command("train", "name=tiny", f"trainer.trackers=[{name}]")
    assert (ended.status, ended.out) == (1, "")
    assert ended.line == (
        f"ddpm-train: trainer.trackers=[{name}]: the package {name} is not installed; "
        f"pip install {remedy}"
    )
    assert not RUN.exists()


def test_tensorboard_has_the_values_of_metrics_jsonl(command, tiny):
    """The choice of trackers may change when a run is resumed."""
    options = ("name=tiny", *tiny, "trainer.preview_every=2", "trainer.preview_samples=4")
    first = command("train", *options, "trainer.max_steps=2", "trainer.trackers=[tensorboard]")
    assert first.status == 0, first.err
    now = int(time.time())
    while int(time.time()) == now:  # event files are read in the order of their seconds
        time.sleep(0.01)
    second = command(
        "train", "resume=outputs/tiny", "trainer.max_steps=4", "trainer.trackers=[tensorboard]"
    )
    assert second.status == 0, second.err
    third = command("train", "resume=outputs/tiny", "trainer.max_steps=5", "trainer.trackers=[]")
    assert third.status == 0, third.err

    written, logged_events = records(), events()
    assert [record["step"] for record in written] == [1, 2, 3, 4, 5]
    names = {key for record in written for key, value in record.items() if value is not None}
    assert set(logged_events.Tags()["scalars"]) == names - {"step"}
    for name in names - {"step"}:
        expected = [(r["step"], r[name]) for r in written[:4] if r.get(name) is not None]
        logged = [(event.step, event.value) for event in logged_events.Scalars(name)]
        assert [step for step, _ in logged] == [step for step, _ in expected], name
        for (_, actual), (_, value) in zip(logged, expected, strict=True):
            assert actual == pytest.approx(value, rel=1e-6), name  # it keeps float32
    shown = logged_events.Images("samples")
    assert [event.step for event in shown] == [2, 4]
    with Image.open(RUN / "samples/step-00000004.png") as grid:
        assert (shown[1].width, shown[1].height) == grid.size
    text = logged_events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "    trainer.max_steps=2\n" in text and "    model.dim=8\n" in text


def test_a_failing_tracker_does_not_stop_training(command, tiny, tmp_path, monkeypatch):
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/wandb.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    options = ("name=tiny", *tiny, "trainer.max_steps=6", "trainer.trackers=[wandb,tensorboard]")
    ended = command("train", *options)
    wandb = sys.modules.pop("wandb")
    assert ended.status == 0, ended.err
    warned = [line for line in ended.err.splitlines() if line.startswith("warning: ")]
    assert warned == [
        "warning: the tracker wandb is switched off: ConnectionError: the server is gone"
    ]
    assert wandb.Run.logged == 3
    assert [record["step"] for record in records()] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events().Scalars("loss")] == [1, 2, 3, 4, 5, 6]
