"""The measurements of the showcase, on images with known results."""

import json
from dataclasses import replace

import pytest
import torch

from scripts import showcase
from scripts.quality import report
from scripts.quality import runs as quality
from scripts.quality.images import Labelled, codec_bits, memorised


def noise(count, size, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, size, size), generator=generator).byte()


def test_copies_of_training_images_are_memorised_and_others_are_not():
    training = noise(40, 8, 0)
    copies = (training[:6].int() + torch.randint(-3, 4, (6, 1, 8, 8))).clamp(0, 255).byte()
    assert memorised(torch.cat([copies, noise(18, 8, 1)]), training) == 6 / 24


def test_a_sample_between_two_training_images_is_not_memorised():
    """The nearest image must be three times nearer than the second nearest."""
    training = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    training[1] = 200
    level = torch.tensor([49, 51]).byte().reshape(2, 1, 1, 1).expand(2, 1, 4, 4)
    assert memorised(level, training) == 0.5  # 49 / 151 is below a third, 51 / 149 above


def test_codecs_need_8_bits_for_noise_and_few_for_flat_images():
    random = codec_bits(noise(60, 16, 0))
    flat = codec_bits(torch.full((60, 3, 16, 16), 7, dtype=torch.uint8))
    assert all(7.99 < random[name] < 8.2 for name in ("PNG", "WebP"))
    assert all(flat[name] < 0.05 for name in ("PNG", "WebP"))


def test_halves_are_disjoint_and_have_equal_classes():
    images = torch.arange(50).byte().reshape(50, 1, 1, 1)
    first, second = Labelled(images, torch.arange(50) % 5).halves(seed=3)
    assert first.labels.bincount().tolist() == second.labels.bincount().tolist() == [5] * 5
    assert len(torch.cat([first.images, second.images]).unique()) == 50


def row(**changes):
    values = {
        "task": "digits", "run": "edm, edm", "sampler": "unipc", "steps": 20, "guidance": 1.0,
        "fid": 4.0, "accuracy": None, "memorised": 0.0, "seconds": 3.0, "val_loss": 0.1, "bpd": 4.0,
    }  # fmt: skip
    return values | changes


@pytest.mark.parametrize(
    ("changes", "worse"),
    [
        ({}, []),
        ({"fid": 4.59}, []),
        ({"fid": 4.61}, ["fid 4.61, stored 4"]),
        ({"fid": 1.0, "bpd": 3.0, "val_loss": 0.01}, []),
        ({"bpd": 4.1}, ["bpd 4.1, stored 4"]),
        ({"steps": 10, "fid": 100.0}, []),
    ],
)
def test_comparison_reports_numbers_that_became_worse(changes, worse):
    lines = report.compare([row(**changes)], [row()])
    assert [line.split(": ")[1] for line in lines] == worse


def test_a_lower_accuracy_is_worse():
    assert report.compare([row(accuracy=0.95)], [row(accuracy=0.96)]) == []
    assert len(report.compare([row(accuracy=0.93)], [row(accuracy=0.96)])) == 1


def test_table_leaves_out_columns_without_values():
    head, _, first = report.table([row(), row(sampler="ddim")]).splitlines()[:3]
    assert head == ("| sampler | FID | memorised | loss | bits per dimension | CPU seconds |")
    assert first == "| unipc | 4.00 | 0.0% | 0.1000 | 4.00 | 3 |"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task=[digits]"], "task: 'digits'"),
        (["tasks=[digit]"], "digits"),
        (["tasks=[mnist]", "mnist=nowhere"], "mnist"),
        (["compare=nowhere.json"], "compare"),
    ],
)
def test_invalid_options_are_reported_in_one_line(arguments, message, monkeypatch):
    monkeypatch.setattr("sys.argv", ["showcase.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        showcase.main()
    assert message.split(":")[0] in str(stopped.value.code)
    assert "\n" not in str(stopped.value.code)


@pytest.mark.slow
def test_miniature_of_the_whole_table(tmp_path, monkeypatch, capsys):
    """Two runs of two steps, few samples: the tables, the plots, the comparison with themselves."""

    def small(max_steps):
        task = quality.digits(max_steps)
        assert len(task.variants) == 8
        variants = {name: task.variants[name] for name in ("pred_v, cosine", "edm, edm")}
        return replace(task, variants=variants, num_samples=100, num_images=2)

    monkeypatch.setattr(showcase, "digits", small)
    common = ["showcase.py", "tasks=[digits]", "max_steps=2", f"out={tmp_path}/runs"]
    monkeypatch.setattr("sys.argv", [*common, f"docs={tmp_path}/docs"])
    showcase.main()
    results = json.loads((tmp_path / "docs/results.json").read_text())
    assert len(results["rows"]) == 2 * 6
    assert 0 < results["contexts"]["digits"]["floors"]["half against half"] < 20
    assert results["contexts"]["digits"]["classifier_accuracy"] > 0.9
    assert (tmp_path / "docs/results_digits.png").stat().st_size > 10_000
    assert str(tmp_path) not in (tmp_path / "docs/results.md").read_text()
    monkeypatch.setattr("sys.argv", [*common, f"compare={tmp_path}/docs/results.json"])
    showcase.main()
    assert "no number is worse" in capsys.readouterr().out
