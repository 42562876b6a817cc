"""Training for a duration, and the estimate that is printed at the start."""

import json
from pathlib import Path

import pytest
import yaml

from ddpm.config.registry import with_defaults
from ddpm.runs import timing
from ddpm.runs.plan import Plan
from ddpm.samplers import DDIM
from ddpm.training import Trainer, checkpoint
from tests.training.test_trainer import Fit, trainer

NODE = {"_target_": "ddpm.training.Trainer"}


@pytest.fixture
def measured(monkeypatch):
    """Requested requested of trials in seconds; a step in the loop takes 0.1 s."""
    requested = []
    monkeypatch.setattr(
        timing,
        "seconds_per_step",
        lambda _, *, seconds: requested.append(seconds) or 0.1 / timing.LOOP,
    )
    return requested


def planned(training, *, timed):
    config = {"seed": 0, "trainer": {**NODE, "max_steps": training.max_steps}}
    made = timing.Timing(training, DDIM(steps=4))
    return made, made.planned(Plan(config, "name", timed=timed)).config["trainer"]["max_steps"]


@pytest.mark.parametrize(
    ("minutes", "preview_every", "expected"),
    [
        (1.0, 0, 599),  # 60 s less the moment that the trial takes
        (1.0, None, 568),  # and a preview: 206 samples x 4 calls / (3 x 8) are 34 steps
        (0.01, 0, 5),
    ],
)
def test_the_steps_fit_the_time(measured, minutes, preview_every, expected):
    options = {"preview_samples": 206, "batch_size": 8, "preview_every": preview_every}
    training = trainer(Fit(), max_minutes=minutes, max_steps=9, lr_warmup=None, **options)
    made, steps = planned(training, timed=True)
    assert steps == training.max_steps == expected
    assert training.warmup_steps == expected // 20
    assert measured == [pytest.approx(0.05 * 60 * minutes)]
    assert made.line().startswith(f"trainer.max_minutes={minutes:g}: {steps} steps: about ")
    assert len(measured) == 1, "it was measured twice"


def test_a_stored_plan_is_not_measured_again(measured):
    training = trainer(Fit(), max_minutes=5.0, max_steps=50)
    made, steps = planned(training, timed=False)
    assert steps == training.max_steps == 50
    assert made.line() == "" and measured == []


def test_the_trial_takes_a_small_part_of_the_run(measured):
    for steps, expected in ((199, []), (200, [0.0, 0.1 / timing.LOOP]), (10**6, [0.0, 1.0])):
        measured.clear()
        made, _ = planned(trainer(Fit(), max_steps=steps, preview_every=0), timed=False)
        line = made.line()
        assert measured == pytest.approx(expected)
    assert line == (
        "1,000,000 steps: about 28 h on this machine; trainer.max_minutes=60 fits 36,000"
    )


def test_evaluations_are_not_part_of_the_duration(measured):
    made, _ = planned(trainer(Fit(), max_steps=600, preview_every=0, evaluate_every=5), timed=False)
    assert made.line() == "600 steps: about 60 s on this machine, without evaluations"


@pytest.mark.slow
def test_a_run_for_a_duration_keeps_its_number_of_steps(command, tiny, measured):
    options = ("trainer.checkpoint_every=3", *tiny)
    ended = command("train", "name=a", "trainer.max_minutes=0.0108", *options)  # 6.48 steps
    assert ended.status == 0, ended.err
    assert "trainer.max_minutes=0.0108: 6 steps: about 1 s on this machine" in ended.out
    stored = yaml.safe_load(Path("outputs/a/config.yaml").read_text())["trainer"]
    assert (stored["max_steps"], stored["max_minutes"]) == (6, 0.0108) and len(measured) == 1
    for typed in (("name=a", "trainer.max_minutes=0.0108", *options), ("resume=outputs/a",)):
        for path in Path("outputs/a/checkpoints/step-00000006").glob("*"):
            path.unlink()  # as if killed
        ended = command("train", *typed)
        assert ended.status == 0 and "from step 3 to step 6" in ended.out, ended.err
        assert "from now on" not in ended.out and len(measured) == 1
    ended = command("train", "resume=outputs/a", "trainer.max_minutes=5")
    assert ended.line == (
        "ddpm-train: trainer.max_minutes=5: the run has started, and ends at step 6; omit "
        "trainer.max_minutes, or set trainer.max_steps to train it longer"
    )
    ended = command("train", "resume=outputs/a", "trainer.max_steps=7")
    assert ended.status == 0 and "from step 6 to step 7" in ended.out, ended.err
    assert checkpoint.newest(Path("outputs/a"), pytest.fail).config["trainer"]["max_steps"] == 7


def test_a_duration_and_a_number_of_steps_are_rejected(command):
    ended = command("train", "trainer.max_minutes=5", "trainer.max_steps=70")
    assert ended.status == 1 and ended.line == (
        "ddpm-train: trainer.max_minutes=5: conflicts with trainer.max_steps=70; set only "
        "one of them"
    )


def test_missing_options_of_a_stored_trainer_have_their_earlier_defaults():
    made = with_defaults(NODE, "trainer")
    assert made["ema_window"] is None and made["checkpoint_minutes"] is None
    assert (made["lr_warmup"], made["preview_every"], made["max_minutes"]) == (1000, 5000, None)
    assert with_defaults({**NODE, "ema_window": 0.1}, "trainer")["ema_window"] == 0.1
    assert Trainer.legacy_defaults.keys() <= made.keys()


def test_a_run_of_an_earlier_version_keeps_its_options(command, tiny):
    """The new defaults of the same command do not apply to the run."""
    typed = [one for one in tiny if not one.startswith("trainer.lr_warmup")]
    old = ("trainer.lr_warmup=1000", "trainer.ema_window=null", "trainer.checkpoint_minutes=null")
    assert command("train", "name=old", "trainer.max_steps=2", *typed, *old).status == 0
    file = Path("outputs/old/config.yaml")
    config = yaml.safe_load(file.read_text())
    for name in ("ema_window", "checkpoint_minutes", "max_minutes"):
        del config["trainer"][name]
    file.write_text(yaml.safe_dump(config))
    ended = command("train", "name=old", "trainer.max_steps=4", *typed)
    assert ended.status == 0, ended.err
    changed = [line for line in ended.out.splitlines() if "from now on" in line]
    assert changed == ["trainer.max_steps: 2 until step 2, from now on 4"]
    records = [json.loads(line) for line in Path("outputs/old/metrics.jsonl").open()]
    assert [each["lr"] for each in records] == pytest.approx([1e-3 * n / 1001 for n in range(1, 5)])
    decays = [1 - n ** (-2 / 3) for n in range(1, 5)]
    assert [each["ema_decay"] for each in records] == pytest.approx(decays, abs=1e-6)
