"""What takes minutes: the default run as it stands, and torch.compile."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from ddpm.training.checkpoint import load

pytestmark = pytest.mark.slow


def frechet(one, other):
    """The Frechet distance of two sets of vectors, from their means and covariances."""
    a, b = np.cov(one.T), np.cov(other.T)
    crossed = np.sqrt(np.linalg.eigvals(a @ b).real.clip(min=0)).sum()
    return ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(a + b) - 2 * crossed


def test_the_default_run_draws_digits(command):
    """In pixels, the samples are nearer to the data than one half of the data to the other."""
    assert command("train", "name=d").status == 0
    options = ("num_samples=1797", "batch_size=599", "steps=50", "format=npz", "out=s")
    assert command("sample", "ckpt=outputs/d", *options).status == 0
    with np.load("s/samples.npz") as file:
        drawn = file["arr_0"].reshape(1797, 64) / 255
    digits = load_digits()
    real = np.round(digits.data * 255 / 16) / 255
    order = np.random.default_rng(0).permutation(1797)
    halves = frechet(real[order[:898]], real[order[898:]])
    assert frechet(drawn, real) < 1.2 * halves
    # A classifier of real digits finds all ten, none rarer than half its share, and its five
    # neighbours mostly agree, as they do for real ones.
    judge = KNeighborsClassifier(5).fit(real, digits.target)
    counts = np.bincount(judge.predict(drawn), minlength=10)
    assert counts.min() > 90 and counts.max() < 360
    assert (judge.predict_proba(drawn).max(1) >= 0.8).mean() > 0.85


def test_compile_trains_the_same(command, tiny):
    """A compiled network has the plain one's parameter names and, to rounding, its losses."""
    losses, names = {}, {}
    for flag in ("true", "false"):
        options = (f"name=c{flag}", f"trainer.compile={flag}", "trainer.max_steps=3")
        ended = command("train", *options, *tiny)
        assert ended.status == 0, ended.err
        lines = Path(f"outputs/c{flag}/metrics.jsonl").read_text().splitlines()
        losses[flag] = [json.loads(line)["loss"] for line in lines]
        names[flag] = load(Path(f"outputs/c{flag}/checkpoints/step-00000003")).weights("raw").keys()
    assert names["true"] == names["false"]
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-4)
    assert command("sample", "ckpt=outputs/ctrue", "num_samples=1", "steps=2").status == 0
