"""Durations and numbers of steps as closed forms."""

import pytest

from ddpm.console import duration
from ddpm.training.budget import Estimate, preview_steps, rounded


@pytest.mark.parametrize(
    ("start", "last", "every", "expected"),
    [
        (0, 1000, 0, 2000),
        (0, 1000, 500, 2000 + 2 * 30),
        (0, 1001, 500, 2002 + 3 * 30),
        (500, 1000, 500, 1000 + 30),
        (499, 501, 500, 4 + 2 * 30),
        (0, 10, 5000, 20 + 30),
    ],
)
def test_duration_in_seconds(start, last, every, expected):
    assert Estimate(2.0, 30.0, every).seconds(start, last) == expected


@pytest.mark.parametrize("every", [0, 7, 100, 5000])
@pytest.mark.parametrize("seconds", [100.0, 1000.0, 12_345.0, 86_400.0])
def test_the_steps_fit_the_time(every, seconds):
    """The steps fit into the time, and one more step does not."""
    estimate = Estimate(0.5, 4.0, every)
    steps = estimate.steps(seconds)
    assert estimate.seconds(0, steps) <= seconds < estimate.seconds(0, steps + 1)


@pytest.mark.parametrize(("seconds", "every"), [(0.1, 0), (3.0, 500), (-5.0, 0)])
def test_a_short_time_gives_one_step(seconds, every):
    assert Estimate(2.0, 30.0, every).steps(seconds) == 1


def test_preview_steps():
    assert preview_steps(samples=64, calls=100, batch_size=64) == pytest.approx(100 / 3)
    assert preview_steps(samples=64, calls=10, batch_size=128) == pytest.approx(5 / 3)


@pytest.mark.parametrize(
    ("number", "expected"), [(1, 1), (9, 9), (99, 99), (101, 100), (3249, 3200), (3251, 3300)]
)
def test_rounding_to_two_digits(number, expected):
    assert rounded(number) == expected


@pytest.mark.parametrize(
    ("estimate", "start", "last", "line"),
    [
        (Estimate(0.1), 0, 1000, "1,000 steps: about 2 min on this machine"),
        (Estimate(20.0, 30.0, 500), 0, 1, "1 step: about 50 s on this machine"),
        (Estimate(0.1), 400, 1000, "600 steps left: about 60 s on this machine"),
        (
            Estimate(1.12),
            0,
            100_000,
            "100,000 steps: about 31 h on this machine; trainer.max_minutes=60 fits 3,200",
        ),
        (Estimate(1.12), 50_000, 100_000, "50,000 steps left: about 16 h on this machine"),
    ],
)
def test_message_of_an_estimate(estimate, start, last, line):
    assert estimate.line(start, last) == line


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (111_600, "31 h")],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words
