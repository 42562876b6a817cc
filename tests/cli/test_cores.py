"""The number of threads: precedence of its sources, trials, and resumed runs."""

import math
import os
from types import SimpleNamespace

import pytest
import torch

from ddpm.distributed import cpu_threads
from ddpm.distributed.cpu_threads import Choice, Load, Trial, candidates, described, fastest, use
from ddpm.errors import ConfigError
from ddpm.lifetime import THREADS_SHARED
from ddpm.training.checkpoint import CheckpointMetadata

CPU = SimpleNamespace(
    device=torch.device("cpu"), num_processes=1, is_main_process=True, process_index=0
)
GPU = SimpleNamespace(**{**vars(CPU), "device": torch.device("cuda", 0)})
QUIET, BUSY, FULL = Load(0.1, 1, 1), Load(1.5, 0.4, 1), Load(1.5, 0.0, 1)


def metadata(threads, seconds=None):
    return CheckpointMetadata(config={}, threads=threads, seconds_per_step=seconds)


@pytest.fixture
def threads(monkeypatch):
    """List of the numbers of threads that were set, in a process with four cores."""
    made = []
    monkeypatch.setattr(torch, "set_num_threads", made.append)
    monkeypatch.setattr(cpu_threads, "machine", lambda: 4)
    monkeypatch.setattr(cpu_threads, "_others_are_busy", lambda _: False)
    for name in (cpu_threads.VARIABLE, THREADS_SHARED):
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.fixture
def trial(monkeypatch, threads):
    """Return a function: ``trial({1: 0.1, 2: 0.3}, load)`` fakes these seconds per step."""

    def make(seconds, load=QUIET, count=cpu_threads.WORTH_A_TRIAL):
        measured = lambda trial, _: (float(trial.measure(1.0, 3)), load)  # noqa: E731
        monkeypatch.setattr(cpu_threads, "_measured", measured)
        return lambda: Trial(lambda *_: seconds[threads[-1]], count, "step")

    return make


def no_trial():
    raise AssertionError("a trial was made")


@pytest.mark.parametrize(
    ("most", "tried"), [(1, [1]), (2, [1, 2]), (3, [1, 3]), (4, [2, 4, 1]), (96, [48, 96, 1])]
)
def test_candidates_are_all_half_and_one(most, tried):
    assert candidates(most) == tried


@pytest.mark.parametrize(
    ("measured", "best"),
    [
        ({1: 0.031, 2: 0.092}, 1),
        ({1: 0.130, 2: 0.088}, 2),
        ({1: 1.0, 2: 0.91}, 1),  # not a tenth faster
        ({1: 1.0, 2: 0.89}, 2),
        ({4: 0.85, 2: 0.91, 1: 1.0}, 4),  # compared with the best of fewer, which is one
        ({4: 0.82, 2: 0.89, 1: 1.0}, 2),
        ({4: 0.25, 2: 0.5, 1: 1.0}, 4),
        ({2: 1.0}, 2),
    ],
)
def test_more_threads_must_be_clearly_faster(measured, best):
    assert fastest(measured) == best


@pytest.mark.parametrize(
    ("measured", "busy", "line"),
    [
        (
            {1: 0.031, 2: 0.092},
            True,
            "threads: 1 of 2 (31 ms per step against 92 ms with 2; other processes are busy)",
        ),
        ({1: 0.130, 2: 0.0088}, True, "threads: 2 of 2 (8.8 ms per step against 130 ms with 1)"),
        ({1: 2.42}, True, "threads: 1 of 2 (2.4 s per step; other processes are busy)"),
        ({1: 0.5, 2: 0.49}, False, "threads: 1 of 2 (500 ms per step against 490 ms with 2)"),
    ],
)
def test_the_line(measured, busy, line):
    assert described(measured, 2, "step", busy=busy) == line


@pytest.mark.parametrize(
    ("load", "seconds", "tried", "best"),
    [
        (QUIET, {1: 4.0, 2: 2.0, 4: 1.0}, [2, 4, 1, 4], Choice(4, 1.0)),
        (BUSY, {1: 1.0, 2: 1.05, 4: 30.0}, [2, 4, 1, 1], Choice(1, 1.0)),
        (FULL, {1: 1.0, 2: 1.05}, [2, 1, 1], Choice(1, 1.0)),  # four would wait for cores
    ],
)
def test_the_trial_sets_the_fastest_number(threads, trial, load, seconds, tried, best):
    assert use("auto", CPU, trial=trial(seconds, load)) == best
    assert threads == tried


@pytest.mark.parametrize(
    ("loads", "seconds", "tried", "best"),
    [
        ([QUIET], {4: 1.0}, [4, 4], Choice(4, 1.0)),
        ([BUSY, BUSY, BUSY], {4: 2.0, 2: 1.0, 1: 1.05}, [4, 2, 1, 1], Choice(1, 1.05)),
        ([FULL, BUSY, QUIET], {4: 1.0, 2: 2.0, 1: 4.0}, [4, 2, 1, 4], Choice(4, 1.0)),
        ([BUSY, QUIET, QUIET], {4: 1.0, 2: 1.05, 1: 4.0}, [4, 2, 1, 2], Choice(2, 1.05)),
    ],
)
def test_independent_threads_are_compared_with_fewer_beside_busy_processes(
    threads, monkeypatch, loads, seconds, tried, best
):
    monkeypatch.setattr(cpu_threads, "_measured", lambda *_: (seconds[threads[-1]], loads.pop(0)))
    trial = Trial(lambda *_: 0.0, cpu_threads.WORTH_A_TRIAL, "step", independent=True)
    assert use("auto", CPU, trial=lambda: trial) == best
    assert threads == tried and not loads


def test_the_choice_is_printed(trial, capsys):
    use("auto", CPU, trial=trial({1: 1.0, 2: 1.05, 4: 30.0}, BUSY))
    line = "threads: 1 of 4 (1.0 s per step against 1.1 s with 2, 30.0 s with 4; "
    assert capsys.readouterr().out == f"{line}other processes are busy)\n"


@pytest.mark.parametrize(
    ("typed", "device", "variables", "stored", "number"),
    [
        (3, CPU, {"OMP_NUM_THREADS": "4"}, metadata(2), 3),  # a typed number before all
        (3, GPU, {}, None, 3),
        ("auto", CPU, {"OMP_NUM_THREADS": "4"}, metadata(2), 4),  # then the variable
        ("auto", GPU, {}, metadata(2), 4),
        ("auto", CPU, {}, metadata(2), 2),  # then the checkpoint
        ("auto", CPU, {"OMP_NUM_THREADS": ""}, metadata(2), 2),
        ("auto", CPU, {"OMP_NUM_THREADS": "4", THREADS_SHARED: "1"}, metadata(2), 2),
        ("auto", CPU, {}, metadata(4), 4),
    ],
)
def test_sources_that_need_no_trial(monkeypatch, threads, typed, device, variables, stored, number):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert use(typed, device, trial=no_trial, stored=stored).threads == number
    assert threads == [number]


@pytest.mark.parametrize("stored", [None, metadata(None), metadata(5), metadata(0), metadata("2")])
def test_a_stored_number_beyond_the_cores_causes_a_trial(trial, stored):
    seconds = {1: 4.0, 2: 2.0, 4: 1.0}
    assert use("auto", CPU, trial=trial(seconds), stored=stored) == (4, 1.0)


def test_no_trial_for_short_work_or_one_core(monkeypatch, threads, trial):
    short = trial({}, count=cpu_threads.WORTH_A_TRIAL - 1)
    assert use("auto", CPU, trial=short) == Choice(4, None)
    monkeypatch.setattr(cpu_threads, "machine", lambda: 1)
    assert use("auto", CPU, trial=no_trial) == Choice(1, None)
    assert threads == [4, 1]


def test_a_stored_number_has_its_seconds_and_is_printed(monkeypatch, threads, capsys):
    stored = metadata(2, 0.125)
    assert use("auto", CPU, trial=no_trial, stored=stored) == Choice(2, 0.125)
    monkeypatch.setattr(cpu_threads, "_others_are_busy", lambda _: True)
    use("auto", CPU, trial=no_trial, stored=stored)
    use("auto", CPU, trial=no_trial, stored=metadata(1))
    assert capsys.readouterr().out.splitlines() == [
        "threads: 2 of 4, as in training",
        "threads: 2 of 4, as in training; other processes are busy: threads=1 may be faster",
        "threads: 1 of 4, as in training",
    ]


@pytest.mark.parametrize("number", [0, -1, 100_000])
def test_numbers_out_of_range_are_rejected(threads, number):
    with pytest.raises(ConfigError, match=rf"^threads={number}: use auto, or 1 to 1024$"):
        use(number, CPU, trial=no_trial)
    assert threads == []


@pytest.mark.parametrize(
    ("count", "units"), [(100, 3), (1000, 4), (2499, 9), (2500, 10), (math.inf, 10)]
)
def test_a_trial_is_a_small_part_of_the_work(threads, count, units):
    measured = []
    measure = lambda *limits: measured.append(limits) or 0.1  # noqa: E731
    assert use("auto", CPU, trial=lambda: Trial(measure, count, "step")) == Choice(1, 0.1)
    assert measured == [(cpu_threads.TRIAL_SECONDS, units)] * 3


def test_the_main_process_decides_for_all(monkeypatch, threads):
    """The measurements of the main process replace those of this process."""
    sent = iter([4, (0.01, QUIET), (0.005, QUIET), (0.02, QUIET)])
    monkeypatch.setattr(cpu_threads, "broadcast", lambda processes, value: next(sent))
    monkeypatch.setattr(cpu_threads, "machine", lambda: 64)  # of this one
    trial = Trial(lambda *_: 9.0, 1000, "step")
    assert use("auto", CPU, trial=lambda: trial) == Choice(4, 0.005)
    assert next(sent, None) is None


def test_the_load_of_others_excludes_this_process(monkeypatch):
    """In two seconds of four cores: 5 s of work, 1 of them here, 3 s idle or waiting for a disk."""
    times = [
        {"user": 10.0, "system": 1.0, "idle": 5.0, "iowait": 1.0, "guest": 2.0},
        {"user": 14.0, "system": 2.0, "idle": 7.0, "iowait": 2.0, "guest": 4.0},
    ]
    readings = iter(SimpleNamespace(**each, _fields=tuple(each)) for each in times)
    monkeypatch.setattr(cpu_threads.psutil, "cpu_times", lambda: next(readings))
    clock = SimpleNamespace(
        perf_counter=iter([0.0, 2.0]).__next__, process_time=iter([7.0, 8.0]).__next__
    )
    monkeypatch.setattr(cpu_threads, "time", clock)
    with cpu_threads.watching() as load:
        pass
    assert load() == Load(others=2.0, idle=1.5, seconds=2.0)


@pytest.mark.parametrize(("variable", "shared"), [(None, True), ("3", False), ("", True)])
def test_the_launchers_share_is_not_the_users_choice(monkeypatch, variable, shared):
    from ddpm.cli import workers

    monkeypatch.delenv("OMP_NUM_THREADS")
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    with workers._environment(4):
        assert (os.environ["OMP_NUM_THREADS"], cpu_threads.is_given()) == (
            variable or "2",
            not shared,
        )
    assert THREADS_SHARED not in os.environ


def test_a_run_keeps_its_threads(command, tiny, monkeypatch, threads):
    """The checkpoint has the number and its seconds; a resumed run has no trial."""
    from ddpm.training import checkpoint

    monkeypatch.setattr(cpu_threads, "WORTH_A_TRIAL", 2)
    seconds = {1: 1.0, 2: 0.5, 4: 0.4}
    measured = lambda *_: (seconds[threads[-1]], QUIET)  # noqa: E731
    monkeypatch.setattr(cpu_threads, "_measured", measured)
    options = ("name=a", *tiny)
    ended = command("train", "trainer.max_steps=2", *options)
    assert ended.status == 0, ended.err
    assert "threads: 4 of 4 (400 ms per step against 1.0 s with 1, 500 ms with 2)" in ended.out
    monkeypatch.setattr(cpu_threads, "_measured", no_trial)
    monkeypatch.setattr(cpu_threads, "machine", lambda: 8)
    ended = command("train", "trainer.max_steps=3", *options)
    assert "threads: 4 of 8, as in training" in ended.out and "rounded" not in ended.err
    assert threads[-1] == 4
    metadata = checkpoint.find("outputs/a", pytest.fail).metadata
    assert (metadata.threads, metadata.seconds_per_step) == (4, 0.4)
    ended = command("train", "trainer.max_steps=4", "threads=2", *options)
    assert "with threads=4, this is threads=2: sums" in ended.err
    assert "threads=4 reproduces the bits" in ended.err
    ended = command("sample", "ckpt=outputs/a", "steps=1", "num_samples=1")
    assert "threads: 2 of 8, as in training" in ended.out


def test_a_run_keeps_the_parts_of_its_batches(command, tiny):
    """Also with another number of threads, where each part has one thread at least."""
    from ddpm.training import checkpoint

    options = (*tiny, "trainer.batch_size=16", "trainer.log_every=2")
    before = torch.get_num_threads()
    try:
        for name, *steps in (("one", 4), ("two", 2, 4), ("whole", 4)):
            whole = ["trainer.batch_parts=1"] if name == "whole" else []
            for count, number in zip(steps, (2, 1), strict=False):
                typed = (f"name={name}", f"threads={number}", f"trainer.max_steps={count}")
                ended = command("train", *typed, *options, *whole)
                assert ended.status == 0, ended.err
    finally:
        torch.set_num_threads(before)
    one, two, whole = (
        checkpoint.find(f"outputs/{n}", pytest.fail) for n in ("one", "two", "whole")
    )
    numbers = [each.metadata.config["trainer"]["batch_parts"] for each in (one, two, whole)]
    assert numbers == [2, 2, 1]
    weights, same, other = (each.weights("raw") for each in (one, two, whole))
    assert all(torch.equal(same[key], value) for key, value in weights.items())
    assert not all(torch.equal(other[key], value) for key, value in weights.items())
    ended = command("train", "name=two", *options, "trainer.max_steps=6", "trainer.batch_parts=3")
    assert ended.status == 1 and "trainer.batch_parts (2 there, 3 here)" in ended.line


@pytest.mark.slow
def test_trials_of_commands_run_their_own_work(command, trained, monkeypatch, threads):
    """The checkpoint's number is more than the machine has, so each command has a trial."""
    monkeypatch.setattr(cpu_threads, "WORTH_A_TRIAL", 1)
    ended = command("train", f"resume={trained}", "trainer.max_steps=3", "threads=5")
    assert ended.status == 0, ended.err
    units = []

    def measured(trial, _):
        units.append((trial.unit, trial.count))
        assert trial.measure(0.0, 1) > 0
        return {1: 1.0, 2: 1.0, 4: 1.0}[threads[-1]], QUIET

    monkeypatch.setattr(cpu_threads, "_measured", measured)
    few = ("steps=2", "batch_size=2", f"ckpt={trained}")
    grey = ("num_samples=5", "extractor=pixels")
    for name, *options in (
        ("sample", *few, "num_samples=5", "out=drawn"),
        ("interpolate", *few, "a=1", "b=2", "num_frames=3"),
        ("evaluate", *few, *grey),
        ("evaluate", f"ckpt={trained}", "batch_size=2", "metrics=[loss]", "num_images=5"),
        ("evaluate", "samples=drawn", "reference=digits", "batch_size=2", *grey, "num_samples=4"),
    ):
        ended = command(name, *options)
        assert ended.status == 0, ended.err
        assert "threads: 1 of 4 (1.0 s per " in ended.out and threads[-1] == 1
    call = "network call"
    assert list(dict.fromkeys(units)) == [(call, 6), (call, 4), (call, 12), ("batch", 2)]
