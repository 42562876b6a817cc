"""Tests that take minutes: the default run, guidance, and torch.compile."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from ddpm.training.checkpoint import load
from scripts import digit_classifier

pytestmark = pytest.mark.slow


def frechet(one, other):
    """Return the Frechet distance of two sets of vectors."""
    a, b = np.cov(one.T), np.cov(other.T)
    crossed = np.sqrt(np.linalg.eigvals(a @ b).real.clip(min=0)).sum()
    return ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(a + b) - 2 * crossed


def measured(command, *options):
    """Return the metrics of ``ddpm-evaluate`` in pixels."""
    ended = command("evaluate", *options, "extractor=pixels", "out=measured")
    assert ended.status == 0, ended.err
    rows = json.loads(Path("measured/evaluation.json").read_text())["metrics"]
    return {row["name"]: row["value"] for row in rows}


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
    ours = measured(command, "ckpt=outputs/d")["fid_1797"]
    assert command("train", "name=untrained", "trainer.max_steps=1").status == 0
    untrained = measured(command, "ckpt=outputs/untrained", "weights=raw")["fid_1797"]
    for name, part in (("a", order[:898]), ("b", order[898:])):
        np.savez(
            f"{name}.npz", arr_0=np.rint(real[part] * 255).astype(np.uint8).reshape(-1, 8, 8, 1)
        )
    (between,) = measured(command, "samples=a.npz", "reference=b.npz").values()
    assert between == pytest.approx(halves, rel=1e-3)
    assert ours < 1.2 * between and ours < untrained / 50
    # A classifier of real digits finds all ten, none rarer than half its share, and its five
    # neighbours mostly agree, as they do for real ones.
    classifier = KNeighborsClassifier(5).fit(real, digits.target)
    counts = np.bincount(classifier.predict(drawn), minlength=10)
    assert counts.min() > 90 and counts.max() < 360
    assert (classifier.predict_proba(drawn).max(1) >= 0.8).mean() > 0.85


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


def test_guidance_draws_the_class_asked_for(command):
    """A classifier of real digits agrees with the class requested for in at least 97 of 100."""
    options = ("data.class_cond=true", "diffusion.label_dropout=0.1", "trainer.preview_every=0")
    ended = command("train", "name=g", *options)
    assert ended.status == 0, ended.err
    digits = load_digits()
    real = np.round(digits.data * 255 / 16)
    classifier = SVC(gamma=0.001 * (16 / 255) ** 2)
    held_out = np.arange(len(real)) % 3 == 0
    classifier.fit(real[~held_out], digits.target[~held_out])
    assert classifier.score(real[held_out], digits.target[held_out]) > 0.98
    classifier.fit(real, digits.target)
    options = ("guidance=3", "num_samples=500", "batch_size=500", "steps=50", "format=npz", "out=s")
    assert command("sample", "ckpt=outputs/g", *options).status == 0
    with np.load("s/samples.npz") as file:
        drawn, requested = file["arr_0"].reshape(500, 64), file["arr_1"]
    assert np.array_equal(np.bincount(requested), [50] * 10)
    assert (classifier.predict(drawn.astype(float)) == requested).mean() >= 0.97
    # The samples of a class differ nearly as much as real images of a class do.
    spread, real_spread = (
        np.mean([values[labels == digit].std(0).mean() for digit in range(10)])
        for values, labels in ((drawn, requested), (real, digits.target))
    )
    assert spread > 0.5 * real_spread


GUIDE = """
import torch

classifier = torch.jit.load("classifier.pt")


def score(x0, t, conditioning):
    log_probabilities = classifier(x0).log_softmax(1)
    return log_probabilities.gather(1, conditioning["y"][:, None])[:, 0]
"""


def test_a_classifier_guides_an_unconditional_model(command):
    """A second classifier finds the digit requested in at least 95 of 100 samples."""
    assert command("train", "name=u", "trainer.preview_every=0").status == 0
    for file, half in (("classifier.pt", 0), ("second.pt", 1)):
        images, labels = digit_classifier.digits()
        own = slice(half, None, 2)
        model = digit_classifier.train(images[own], labels[own], 1000, half)
        torch.jit.save(torch.jit.trace(model, images[:2]), file)
    Path("my_guide.py").write_text(GUIDE)
    options = ("guide=my_guide:score", "guide_scale=8", "num_samples=100", "format=npz")
    for digit in range(10):
        ended = command("sample", "ckpt=outputs/u", *options, f"classes=[{digit}]", f"out=d{digit}")
        assert ended.status == 0, ended.err
        with np.load(f"d{digit}/samples.npz") as file:
            drawn = torch.from_numpy(file["arr_0"]).permute(0, 3, 1, 2) / 127.5 - 1
        labels = torch.full((100,), digit)
        assert digit_classifier.fraction(torch.jit.load("second.pt"), drawn, labels) >= 0.95


def test_a_compiled_network_draws_the_same_samples(command, trained):
    """Also in a smaller last batch, for which it is not compiled again."""
    samples, options = {}, ("num_samples=6", "batch_size=4", "format=npz", "steps=4")
    for compile in ("false", "true"):
        ended = command(
            "sample", f"ckpt={trained}", f"compile={compile}", f"out={compile}", *options
        )
        assert ended.status == 0, ended.err
        with np.load(f"{compile}/samples.npz") as file:
            samples[compile] = file["arr_0"].astype(int)
    assert np.abs(samples["true"] - samples["false"]).max() <= 1
