"""Warning about a run that has become several times slower."""

from dataclasses import replace

import pytest

from ddpm.training import slowdown
from ddpm.training.loop import TrainingLoop
from ddpm.training.slowdown import Slowdown
from tests.training.test_trainer import METADATA, Points, fit, folder, trainer


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(slowdown, "time", made)
    monkeypatch.setattr(slowdown.os, "getloadavg", lambda: (5.25, 0, 0))
    monkeypatch.setattr(slowdown.os, "cpu_count", lambda: 2)
    return made


@pytest.fixture
def printed(monkeypatch):
    made = []
    monkeypatch.setattr(slowdown, "warn", made.append)
    return made


def take(watch, clock, count, seconds, pause_every=None):
    """Simulate steps of equal duration, with pauses of 1,000 seconds after some of them."""
    for number in range(count):
        clock.now += seconds
        watch.tick()
        if pause_every is not None and number % pause_every == 0:
            watch.restart_clock()
            clock.now += 1000
            watch.tick()


def test_one_warning_with_a_remedy(clock, printed):
    watch = Slowdown(0.08, threads=2)  # and 0.02 s of overhead
    watch.tick()
    take(watch, clock, 200, 0.29)  # not more than three times as long
    assert printed == []
    take(watch, clock, 10, 0.5)  # half of the window
    assert printed == []
    take(watch, clock, 50, 0.5)  # less than 30 seconds
    assert printed == []
    take(watch, clock, 300, 0.5)
    assert printed == [
        "a step takes 5.0 times as long as at the start of the run, 0.5 s (load average 5.2 on 2 "
        "cores); if other processes are busy, its 2 threads wait for each other: stop it and "
        "resume with threads=1 (which rounds sums differently)"
    ]


def test_remedy_with_one_thread(clock, printed):
    watch = Slowdown(0.08, threads=1)
    take(watch, clock, 200, 0.5)
    (line,) = printed
    assert line.endswith(
        "(load average 5.2 on 2 cores); it becomes faster when other processes end"
    )


@pytest.mark.parametrize(
    ("expected", "threads", "steps"),
    [
        (0.08, 2, [(200, 0.25)]),
        (0.08, 2, [(20, 0.1), (9, 8.0), (20, 0.1), (9, 8.0), (50, 0.1)]),  # a few slow ones
        (0.08, 2, [(10, 0.1), (50, 0.5), (20, 0.1), (50, 0.5)]),  # not for a while
        (None, 2, [(500, 0.5)]),  # slow from its first steps on: there is nothing to compare
        (0.001, 2, [(2000, 0.05)]),  # fast steps are mostly overhead
    ],
)
def test_no_warning(clock, printed, expected, threads, steps):
    watch = Slowdown(expected, threads)
    watch.tick()
    for count, seconds in steps:
        take(watch, clock, count, seconds)
    assert printed == []


def test_without_a_trial_the_first_steps_are_the_reference(clock, printed):
    watch = Slowdown(None, 2)
    watch.tick()
    take(watch, clock, 20, 0.1)
    take(watch, clock, 100, 0.5)
    assert len(printed) == 1 and "5.0 times" in printed[0]


def test_previews_and_checkpoints_do_not_count(clock, printed):
    watch = Slowdown(0.08, 2)
    watch.tick()
    take(watch, clock, 400, 0.1, pause_every=2)
    assert printed == []


@pytest.mark.parametrize(("in_memory", "expected"), [(True, 0.1 + 0.02), (False, None)])
def test_reading_of_files_is_compared_with_the_first_steps(tmp_path, in_memory, expected):
    """The trial of a run that had data workers does not include it."""
    data = Points()
    data.in_memory = in_memory
    training = trainer(data=data, num_workers=0)
    metadata = replace(METADATA, threads=2, seconds_per_step=0.1)
    loop = TrainingLoop(training, folder(tmp_path / "a"), metadata)
    assert loop._slowdown().expected == expected


@pytest.mark.parametrize("every", ["preview_every", "checkpoint_every"])
def test_loop_excludes_previews_and_checkpoints(monkeypatch, clock, printed, tmp_path, every):
    """A step takes 0.1 s, and a preview or checkpoint after every second step an hour."""
    monkeypatch.setattr(slowdown, "_WINDOW", 4)

    def hour(*_):
        clock.now += 3600

    def run(name, between):
        training = trainer(**{"preview_every": 0, every: between, "max_steps": 20})
        step, state = training.accumulate_gradient, training.state
        training.accumulate_gradient = lambda *a: (
            setattr(clock, "now", clock.now + 0.1),
            step(*a),
        )[1]
        training.state = lambda: (hour(), state())[1]
        metadata = replace(METADATA, threads=2, seconds_per_step=0.1)
        fit(training, folder(tmp_path / name), metadata, hour)

    run("a", 2)
    assert printed == []
    monkeypatch.setattr(Slowdown, "restart_clock", lambda _: None)
    run("b", 2)
    assert len(printed) == 1
