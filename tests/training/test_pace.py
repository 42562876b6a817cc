"""Decisions that depend on time, with a clock that the tests set."""

import time

import pytest
import torch

from ddpm.checkpoint_paths import step_of
from ddpm.training import checkpoint, due
from ddpm.training.pace import Pace, SaveTimer
from tests.training.test_trainer import METADATA, Fit, fit, folder, trainer


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


class Slow(Fit):
    """Loss that advances the clock by a number of seconds."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def __call__(self, *args, **options):
        self.clock[0] += self.seconds
        return super().__call__(*args, **options)


def test_a_timer_counts_from_the_last_checkpoint(clock):
    timer = SaveTimer(2.0)
    clock[0] += 119
    assert not timer.is_due()
    clock[0] += 1
    assert timer.is_due()
    timer.restart()
    assert not timer.is_due()
    clock[0] += 10**9
    assert timer.is_due() and not SaveTimer(None).is_due()


@pytest.mark.parametrize(
    ("minutes", "every", "expected"),
    [
        (None, 100, [10]),
        (1.0, 100, [3, 6, 9, 10]),  # 20 s per step
        (1.0, 4, [3, 4, 7, 8, 10]),  # the time counts from the last checkpoint of either kind
        (0.1, 100, list(range(1, 11))),
    ],
)
def test_maximum_time_between_checkpoints(tmp_path, clock, minutes, every, expected):
    options = {"max_steps": 10, "checkpoint_every": every, "keep_last": 99, "lr": 0.1}
    training = trainer(Slow(clock, 20.0), checkpoint_minutes=minutes, **options)
    run = folder(tmp_path / "a")
    fit(training, run, METADATA)
    assert sorted(step_of(path) for path in checkpoint.listed(run.path)) == expected
    plain = trainer(checkpoint_minutes=None, **options)
    fit(plain, folder(tmp_path / "b"), METADATA)
    assert torch.equal(training.network.values(), plain.network.values())


def test_previews_stay_within_their_share(clock):
    pace = Pace()
    pace.begin()
    pace.expected = 100.0  # steps, which take 1 s
    clock[0] += 1899
    assert pace.cost(1899) == 100 and not pace.allows_preview(1899)
    clock[0] += 1
    assert pace.allows_preview(1900)  # 100 s of 2,000 s are 5 %
    clock[0] += 200
    pace.add_preview(200.0)  # it took longer than expected
    assert pace.elapsed == 2100 and pace.cost(1900) == 200 and not pace.allows_preview(1900)
    clock[0] += 5699
    assert not pace.allows_preview(7599)
    clock[0] += 1
    assert pace.allows_preview(7600)  # 400 s of 8,000 s


def test_times_include_those_before_resuming(clock):
    pace, again = Pace(), Pace()
    pace.begin()
    clock[0] += 50
    pace.add_preview(3.0)
    clock[0] += 10**6  # between the checkpoint and resuming
    again.load({"seconds": 60.0, "previews": 3.0, "last": 3.0})
    again.begin()
    clock[0] += 1
    assert again.state() == {"seconds": 61.0, "previews": 3.0, "last": 3.0}
    again.load({})
    assert again.cost(5) == 0 and again.allows_preview(5)


@pytest.fixture
def often(monkeypatch):
    """Set the default interval of previews to 10 steps."""
    monkeypatch.setattr(due, "PREVIEW_EVERY", 10)


def drawn(run, clock, seconds, **options):
    """Return the list of preview steps of a run with 1 s per step, its trainer and preview."""
    steps = []

    def preview(training, stopping):
        clock[0] += seconds
        steps.append(training.step)
        run.picture("samples", training.step).touch()

    training = trainer(Slow(clock, 1.0), lr=0.1, checkpoint_every=10, keep_last=99, **options)
    return steps, training, preview


@pytest.mark.parametrize(
    ("options", "seconds", "expected", "lines"),
    [
        ({"preview_every": None}, 0.4, [10, 20, 30, 40, 50, 55], 0),  # 4 %
        ({"preview_every": None}, 1.0, [10, 40, 55], 1),  # 2 of 40 + 1 + 1 s are within 5 %
        ({"preview_every": None}, 100.0, [10, 55], 1),
        ({"preview_every": 10}, 100.0, [10, 20, 30, 40, 50, 55], 0),
        ({"preview_every": 0}, 0.1, [], 0),
    ],
)
def test_previews_with_default_and_explicit_interval(
    tmp_path, clock, often, capsys, options, seconds, expected, lines
):
    run = folder(tmp_path / "a")
    steps, training, preview = drawn(run, clock, seconds, max_steps=55, **options)
    fit(training, run, METADATA, preview)
    assert steps == expected
    assert capsys.readouterr().err.count("skipped") == lines


def test_after_resuming_only_interrupted_previews_are_drawn_again(tmp_path, clock, often):
    run = folder(tmp_path / "a")
    _, training, preview = drawn(run, clock, 1.0, max_steps=55, preview_every=None)
    fit(training, run, METADATA, preview)
    # The checkpoint of step 40 is older than the preview of step 40, and does not count it.
    for step, expected in ((20, [40, 55]), (40, [50, 55])):
        loaded = checkpoint.load(checkpoint.place(run.path / "checkpoints", step))
        more, again, preview = drawn(run, clock, 1.0, max_steps=55, preview_every=None)
        again.resume(loaded)
        for path in run.samples.iterdir():
            if step_of(path.with_suffix("")) > step:
                path.unlink()
        fit(again, run, METADATA, preview)
        assert more == expected
    run.picture("samples", 40).unlink()  # as after a kill in the preview of step 40
    more, again, preview = drawn(run, clock, 1.0, max_steps=55, preview_every=None)
    again.resume(loaded)
    fit(again, run, METADATA, preview)
    assert more[0] == 40
