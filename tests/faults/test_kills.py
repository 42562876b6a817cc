"""Processes that are killed, that fail, or whose loss is not finite."""

import json
import math
import random
import re
import signal
import time

import pytest
import torch

from ddpm.training import checkpoint
from tests.faults.processes import STEPS, assert_as, reference, shell

__all__ = ["reference", "shell"]

TWO = ("launch.processes=2", "trainer.max_steps=30")
SLOWLY = "at_losses(lambda step, values: (time.sleep(0.03), values)[1])\n"
PLACES = {  # where the save of step 9 is killed, and the checkpoints on the disk then
    "at_save({kill}, torch, 'save')": [6, 3],
    "at_save({kill}, checkpoint, '_put_in_place')": [6, 3],
    "import ddpm.training.loop as loop; at_save({kill}, loop, 'prune')": [9, 6, 3],
}


@pytest.mark.slow
def test_killed_at_any_place_of_a_save(shell, reference):
    options = ("trainer.max_steps=30", "trainer.checkpoint_every=3", "trainer.keep_last=2")
    before = []
    for number, (place, good) in enumerate(PLACES.items(), 1):
        # Each run resumes the previous one: its third save is that of step 9, 15, 21 or 24.
        kill = "lambda call: call == 3 and os.kill(os.getpid(), signal.SIGKILL)"
        shell.hurt(place.format(kill=kill) + "\n")
        started = shell.train(*options)
        assert started.end() == -signal.SIGKILL, started.err
        expected = [step + (before[0] if before else 0) for step in good]
        assert shell.good_steps() == expected, number
        assert shell.writing() == (len(good) == 2)
        before = expected
    shell.heal()
    shell.ended(*options)
    assert shell.good_steps() == [30, 27] and shell.leftovers() == []
    assert_as(reference(1), shell.run, 30)


@pytest.mark.slow
def test_all_are_killed_at_twenty_instants(shell, reference):
    """Some kills hit a save, which takes as long as the steps between two saves."""
    rng, saving = random.Random(0), 0
    options = ("launch.processes=2", f"trainer.max_steps={STEPS[2]}", "trainer.keep_last=2")
    shell.hurt(SLOWLY)
    for _ in range(20):
        good = shell.good_steps()
        started = shell.train(*options, f"trainer.checkpoint_every={rng.choice([1, 2, 3])}")
        # At the start the records after the checkpoint are removed.
        started.until(lambda run=started: "training " in run.out)
        started.until(lambda first=good[0] if good else 0: shell.step() > first)
        time.sleep(rng.uniform(0, 0.5))
        started.kill_all()
        saving += shell.writing()
        now = shell.good_steps()
        assert not good or now[0] >= good[0]
        assert now[0] < STEPS[2], "the run was over before it could be killed"
    assert saving > 0
    shell.heal()
    shell.ended(*options)
    assert shell.leftovers() == []
    assert_as(reference(2), shell.run, STEPS[2])


ENDED = "the others were ended too; run the same command to continue"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_is_killed(shell, reference, rank):
    options = (*TWO, "trainer.checkpoint_every=3")
    shell.hurt(SLOWLY)
    started = shell.train(*options)
    started.until(lambda: shell.step() >= 7)
    started.signal(signal.SIGKILL, rank)
    assert started.end(60) == 1
    assert started.line == (
        f"ddpm-train: launch.processes=2: process {rank} was ended by SIGKILL; {ENDED}"
    )
    assert len(shell.good_steps()) >= 1
    shell.heal()
    shell.ended(*options)
    assert shell.leftovers() == []
    assert_as(reference(2), shell.run, 30)


@pytest.mark.slow
def test_the_launcher_is_killed(shell, reference):
    """The system signals the workers, which stop as on any other signal."""
    shell.hurt(SLOWLY)
    started = shell.train(*TWO)
    started.until(lambda: shell.step() >= 5)
    started.signal(signal.SIGKILL)
    assert started.end() == -signal.SIGKILL
    (step,) = shell.good_steps()
    assert 5 <= step < 30 and shell.leftovers() == []
    shell.heal()
    shell.ended(*TWO)
    assert_as(reference(2), shell.run, 30)


@pytest.mark.slow
def test_one_fails(shell, reference):
    shell.hurt(
        "def fails(step, values):\n"
        "    if RANK == 1 and step == 8:\n"
        "        raise RuntimeError('boom at step 8')\n"
        "    return values\n"
        "at_losses(fails)\n"
    )
    options = (*TWO, "trainer.checkpoint_every=3")
    started = shell.train(*options)
    assert started.end(60) == 1
    assert started.line == (
        "ddpm-train: launch.processes=2: process 1 failed, see above: RuntimeError: boom at step "
        f"8; {ENDED}"
    )
    assert started.err.count("Traceback (most recent call last)") == 1
    assert "process 1:\nTraceback" in started.err and 'hurt.py", line' in started.err
    assert shell.good_steps()[0] in (3, 6)
    shell.heal()
    shell.ended(*options)
    assert_as(reference(2), shell.run, 30)


# a loss that is not finite, in one process


def breaks(steps):
    """Return code that makes losses of process 1 NaN at these steps, for samples 1 and 3 of 4."""
    return (
        "def breaks(step, values):\n"
        f"    if RANK == 1 and step in {steps}:\n"
        "        return values * torch.tensor([1, float('nan'), 1, float('nan')])\n"
        "    return values\n"
        "at_losses(breaks)\n"
    )


@pytest.mark.slow
def test_nan_in_one_process_stops_both_before_the_step(shell, reference):
    shell.hurt(breaks([8]))
    options = (*TWO, "trainer.checkpoint_every=3")
    started = shell.train(*options)
    assert started.end(60) == 1
    dump = json.loads((shell.run / "nonfinite-step-00000008.json").read_text())
    assert dump["step"] == 8 and len(dump["batch"]) == 8
    assert [each["process"] for each in dump["batch"]] == [0] * 4 + [1] * 4
    broken = [each for each in dump["batch"] if each["loss"] == "nan"]
    assert broken == [dump["batch"][5], dump["batch"][7]]
    assert all(math.isfinite(each["loss"]) for each in dump["batch"] if each not in broken)
    samples = ", ".join(f"loss nan of sample {e['sample']} at t={e['t']}" for e in broken)
    assert started.line == (
        f"ddpm-train: trainer.lr=0.001: the gradient of step 8 is not finite ({samples}, all in "
        "outputs/x/nonfinite-step-00000008.json); it was not applied, and the last good checkpoint "
        "is outputs/x/checkpoints/step-00000006; lower trainer.lr, or use trainer.precision=bf16 "
        "or no, or trainer.on_nonfinite=skip"
    )
    assert "Traceback" not in started.err and shell.good_steps() == [6, 3] and shell.step() == 7
    for folder in checkpoint.listed(shell.run):
        for which in ("raw", "ema"):
            for value in checkpoint.load(folder).weights(which).values():
                assert bool(torch.isfinite(value).all())
    shell.heal()
    shell.ended(*options)
    assert_as(reference(2), shell.run, 30)


@pytest.mark.slow
def test_limit_of_consecutive_skipped_steps(shell):
    """At most three in a row are skipped: 5 and 10 to 12 are, but not the fourth from 20 on."""
    shell.hurt(breaks([5, 10, 11, 12, 20, 21, 22, 23]))
    skip = ("trainer.on_nonfinite=skip", "trainer.max_skips=3", "trainer.checkpoint_every=5")
    started = shell.train(*TWO, *skip)
    assert started.end(60) == 1
    assert re.search(r"the gradient of step 23 is not finite after 3 skipped steps", started.line)
    records = [json.loads(x) for x in (shell.run / "metrics.jsonl").read_text().splitlines()]
    skipped = [sum(bad <= step for bad in (5, 10, 11, 12, 20, 21, 22)) for step in range(1, 23)]
    assert [record["skipped"] for record in records] == skipped
    assert [record["grad_norm"] is None for record in records] == [
        step in (5, 10, 11, 12, 20, 21, 22) for step in range(1, 23)
    ]
    assert shell.good_steps() == [20, 15, 10]
    states = [checkpoint.load(folder).state() for folder in checkpoint.listed(shell.run)]
    assert [(state["num_updates"], state["skipped"]) for state in states] == [
        (20 - 5, 1), (15 - 4, 0), (10 - 2, 1)
    ]  # fmt: skip
    assert [state["ema"]["step"] for state in states] == [15, 11, 8]


# one writer per folder

PATIENCE = "from ddpm.training import lock\nlock.Lock.acquire.__defaults__ = ({},)\n"


@pytest.mark.slow
def test_second_run_in_the_same_folder_is_rejected(shell, reference):
    options = ("trainer.max_steps=30",)
    shell.hurt("at_losses(lambda step, values: (time.sleep(60 * (step == 4)), values)[1])\n")
    first = shell.train(*options)
    first.until(lambda: shell.step() == 3)
    holder = shell.pid(0)
    shell.hurt(PATIENCE.format(1.0))
    second = shell.train(*options)
    second.until(lambda: second.popen.poll() is not None)
    assert second.popen.returncode == 1 and first.popen.poll() is None
    assert re.fullmatch(
        rf"outputs/x is being written by process {holder} on \S+; waiting for its end\n"
        rf"ddpm-train: name: outputs/x is being written by process {holder} on \S+; wait for it, "
        "stop it, or choose another name\n",
        second.err,
    )
    assert shell.step() == 3 and not checkpoint.listed(shell.run)
    first.kill_all()
    shell.heal()
    third = shell.ended(*options)
    assert "waiting" not in third.err  # the lock of a dead process is free at once
    assert_as(reference(1), shell.run, 30)


@pytest.mark.slow
def test_one_of_two_simultaneous_starts_wins(shell, reference):
    shell.hurt(PATIENCE.format(0.5) + "at_losses(lambda s, v: (time.sleep(0.2), v)[1])\n")
    options = ("trainer.max_steps=30",)
    both = [shell.train(*options) for _ in range(2)]
    ends = sorted((started.popen.wait(120), started.err) for started in both)
    assert [status for status, _ in ends] == [0, 1], ends
    assert "ddpm-train: name: outputs/x is being written by process" in ends[1][1]
    assert_as(reference(1), shell.run, 30)
