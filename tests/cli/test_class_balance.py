"""Class frequencies of the training data in the samples of an evaluation."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm.data import Digits, Sequences
from ddpm.data.spec import DataSpec
from ddpm.data.split import split
from ddpm.errors import ConfigError
from ddpm.evaluation import sample_metrics
from ddpm.evaluation.class_balance import BY_FREQUENCY, IN_TURN, balanced

COUNTS = [9, 1, 4, 0, 30]


def test_the_first_n_samples_have_the_frequencies_within_one():
    classes = balanced(COUNTS, 200)
    counted = np.eye(5)[classes].cumsum(0)
    expected = np.arange(1, 201)[:, None] * np.array(COUNTS) / sum(COUNTS)
    assert np.abs(counted - expected).max() < 1 - 1 / 6 + 1e-9  # four classes that occur
    assert counted[43].tolist() == COUNTS and balanced(COUNTS, 7) == classes[:7]


def test_equal_frequencies_alternate_the_classes():
    assert balanced([5, 5, 5], 7) == [0, 1, 2, 0, 1, 2, 0]
    assert balanced([0, 3, 0], 3) == [1, 1, 1]
    counts = Digits(class_cond=True).class_counts()
    assert counts == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert counts is not None and balanced(counts, 18) == [*range(10), *range(8)]


def test_class_counts_of_data_sets_and_their_parts(tmp_path):
    data = Digits(class_cond=True)
    parts = split(data, 0.1)
    train, held_out = parts.train.class_counts(), parts.held_out.class_counts()
    assert [a + b for a, b in zip(train, held_out, strict=True)] == data.class_counts()
    assert sum(held_out) == 180 and Digits().class_counts() is None
    assert split(parts.train, 0.5).held_out.class_counts([0]).count(1) == 1
    np.savez(tmp_path / "s.npz", arr_0=np.zeros((4, 2, 8), np.float32), arr_1=[0, 1, 1, 1])
    made = Sequences(path=str(tmp_path / "s.npz"), class_cond=True, low=-1, high=1)
    assert made.class_counts() == [1, 3]


def test_class_counts_are_stored_and_optional():
    state = DataSpec.from_dataset(Digits(class_cond=True)).state()
    assert DataSpec.from_metadata(state).class_counts == state["class_counts"]
    del state["class_counts"]
    assert DataSpec.from_metadata(state).class_counts is None
    for wrong in ([1, 2], [0] * 10, [-1, *[1] * 9]):
        with pytest.raises(ConfigError, match="has no valid class_counts"):
            DataSpec.from_metadata({**state, "class_counts": wrong})


def test_evaluations_sample_by_frequency_and_record_it(command, tiny, monkeypatch):
    rng = np.random.default_rng(0)
    for name, count in (("cat", 12), ("dog", 4)):
        Path("pets", name).mkdir(parents=True)
        for n in range(count):
            pixels = rng.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(f"pets/{name}/{n}.png")
    drawn, generate = [], sample_metrics.generate

    def recorded(source, indices, **named):
        drawn.extend(named["classes"][i % len(named["classes"])] for i in indices)
        return generate(source, indices, **named)

    monkeypatch.setattr(sample_metrics, "generate", recorded)
    measured = ("evaluation.metrics=[fid]", "evaluation.num_samples=8", "trainer.evaluate_every=1")
    ended = command(
        "train", "name=a", "data=folder", "data.path=pets", "data.class_cond=true", "model=unet",
        "model.dim_mults=[1,2]", "trainer.max_steps=1", "evaluation.sampler.steps=1",
        "extractor@evaluation.extractor=pixels", *tiny, *measured,
    )  # fmt: skip
    assert ended.status == 0, ended.err
    assert drawn == balanced([12, 4], 8) and drawn.count(1) == 2
    checkpoint = Path("outputs/a/checkpoints/step-00000001")
    content = json.loads((checkpoint / "evaluation.json").read_text())
    provenance = {"classes": BY_FREQUENCY, "class_counts": [12, 4]}
    assert (
        provenance.items() <= content["metrics"][0].items()
        and provenance.items() <= content["measure"].items()
    )
    drawn.clear()
    options = ("extractor=pixels", "num_samples=8", "steps=1", "batch_size=3")
    for more, expected in (("classes=null", provenance), ("classes=[dog]", {"classes": [1]})):
        drawn.clear()
        assert command("evaluate", "ckpt=outputs/a", "out=e", more, *options).status == 0
        content = json.loads(Path("e/evaluation.json").read_text())
        assert drawn == (balanced([12, 4], 8) if expected is provenance else [1] * 8)
        assert expected.items() <= content["metrics"][0].items()
        assert expected["classes"] == content["request"]["classes"]
        shown = re.findall(r'png;base64,([^"]+)"', Path("e/report.html").read_text())
        rows = 2 if expected is provenance else 3  # 8 samples of one class fill a square
        assert Image.open(io.BytesIO(base64.b64decode(shown[0]))).height == rows * 66 + 2
    assert BY_FREQUENCY in Path("e/report.html").read_text() or drawn == [1] * 8
    _remove_counts(checkpoint)
    assert command("evaluate", "ckpt=outputs/a", "out=e", *options).status == 0
    assert drawn[8:] == [0, 1] * 4
    assert json.loads(Path("e/evaluation.json").read_text())["metrics"][0]["classes"] == IN_TURN


def _remove_counts(folder):
    """Remove the class counts, as in a checkpoint of an earlier version."""
    import hashlib

    header, manifest = folder / "config.json", folder / "manifest.json"
    content = json.loads(header.read_text())
    assert content.pop("class_counts") == [12, 4]
    header.write_text(json.dumps(content))
    listed = json.loads(manifest.read_text())
    data = header.read_bytes()
    listed["files"]["config.json"] = {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    manifest.write_text(json.dumps(listed))
