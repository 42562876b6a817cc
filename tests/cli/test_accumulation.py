"""Runs with ``trainer.accumulate=auto``: the choice is printed, stored and repeated."""

from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from ddpm.cli.composition import compose
from ddpm.runs import previews
from ddpm.runs.plan import plan
from ddpm.runs.request import Request
from ddpm.training import Trainer, accumulation, checkpoint

LINE = "accumulate: 4 (a micro-batch of 2 items fits into the GPU's memory, one of 4 does not)"


@pytest.fixture
def memory(monkeypatch):
    """Return a function that limits the items of a micro-batch, as on a GPU, and their trials."""
    gradient = Trainer.gradient
    monkeypatch.setattr(accumulation, "choose", partial(accumulation.choose, tries=True))

    def limit(items):
        tried = []

        def limited(self, batch, micro=0):
            tried.append(len(batch[0]))
            if tried[-1] > items:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return gradient(self, batch, micro)

        monkeypatch.setattr(Trainer, "gradient", limited)
        return tried

    return limit


def stored(name):
    return yaml.safe_load(Path("outputs", name, "config.yaml").read_text())["trainer"]["accumulate"]


def assert_equal(one, other, step):
    """Compare the weights and the averages of two runs bit for bit."""
    folders = (Path("outputs", name, "checkpoints", f"step-{step:08d}") for name in (one, other))
    expected, actual = map(checkpoint.load, folders)
    for which in ("raw", "ema"):
        pairs = expected.weights(which).items(), actual.weights(which)
        assert all(torch.equal(pairs[1][key], value) for key, value in pairs[0])


def test_the_choice_is_stored_and_resuming_repeats_it(command, tiny, memory, monkeypatch):
    """The run equals one with the same explicit number; previews are drawn in micro-batches."""
    sizes, real = [], previews.generate

    def generate(*arguments, batch_size, **options):
        sizes.append(batch_size)
        return real(*arguments, batch_size=batch_size, **options)

    monkeypatch.setattr(previews, "generate", generate)
    options = (*tiny, "threads=1", "diffusion.self_condition=true")
    shown = ("trainer.preview_every=4", "trainer.preview_samples=5", "sampler.steps=1")
    number = ("name=number", "trainer.accumulate=4", "trainer.max_steps=4")
    assert command("train", *number, *options, *shown).status == 0 and sizes == [2]
    tried, typed = memory(2), ("name=a", *options, "trainer.accumulate=auto")
    ended = command("train", *typed, "trainer.max_steps=2")
    assert ended.status == 0 and ended.out.splitlines().count(LINE) == 1, ended.err
    assert "trainer.accumulate" not in ended.out  # of "by default on"
    assert tried == [8, 4, 2] and stored("a") == 4
    tried = memory(0)  # a trial would fail
    ended = command("train", *typed, "trainer.max_steps=4")
    assert ended.status == 0 and "from step 2 " in ended.out, ended.err
    assert "accumulate:" not in ended.out and tried == [] and stored("a") == 4
    assert_equal("number", "a", 4)
    ended = command("train", "resume=outputs/a", "trainer.accumulate=2")
    assert ended.line == (
        "ddpm-train: resume=outputs/a: was trained with different options: trainer.accumulate (4 "
        "there, 2 here); remove these overrides, start a new run, or add override=true to use them"
    )
    config = compose("train", ["trainer.accumulate=auto"])[0]
    typed = ("trainer.accumulate=auto",)
    for override, expected in ((False, 4), (True, "auto")):  # which is tried
        request = Request(config=config, resume="outputs/a", override=override, overrides=typed)
        assert plan(request).config["trainer"]["accumulate"] == expected


def test_nothing_is_tried_on_a_cpu(command, tiny):
    ended = command("train", "name=a", "trainer.accumulate=auto", "trainer.max_steps=1", *tiny)
    line = "accumulate: 1 (not tried: a CPU does not report that memory is short)"
    assert ended.out.splitlines().count(line) == 1, ended.err
    assert stored("a") == 1 and "trainer.accumulate" not in ended.out
    ended = command("train", "name=b", "trainer.accumulate=automatic", *tiny)
    assert ended.line.startswith("ddpm-train: trainer.accumulate=automatic: ")
