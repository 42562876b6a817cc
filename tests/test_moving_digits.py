"""Script that makes videos of moving digits."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm.data import Digits, Videos

SCRIPT = Path(__file__).parent.parent / "scripts" / "moving_digits.py"


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(name: str, *options: str) -> Path:
        path = tmp_path / name
        monkeypatch.setattr("sys.argv", ["moving_digits.py", "--out", str(path), *options])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return path

    return run


def test_digits_move_in_straight_lines_and_bounce(make):
    path = make("a.npz", "--num", "20", "--frames", "30", "--size", "20")
    data = Videos(path=str(path), class_cond=True)
    assert (len(data), data.shape) == (20, (1, 30, 20, 20))
    raw, numbers = data.fetch(range(20), [0] * 20)
    assert numbers is not None and data.class_names is not None
    labels = [int(data.class_names[number]) for number in numbers]
    with np.load(path) as file:
        assert labels == file["labels"].tolist()
    assert data.class_names == [str(digit) for digit in sorted(set(labels))]
    bundled, names = Digits(class_cond=True).fetch(range(1797), [0] * 1797)
    assert names is not None
    bounced = 0
    for video, label in zip(raw[:, 0], labels, strict=True):
        rows, columns = video[0].sum(1).nonzero().flatten(), video[0].sum(0).nonzero().flatten()
        seen = video[0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        whole = seen.sum()
        assert video.sum((1, 2)).unique().tolist() == [int(whole)]  # in every frame
        sums = bundled[names == label].sum((1, 2, 3))
        assert (sums == whole).any()
        masses = video.float() / whole
        x = (masses.sum(1) * torch.arange(20)).sum(1).numpy()
        y = (masses.sum(2) * torch.arange(20)).sum(1).numpy()
        steps = np.hypot(np.diff(x), np.diff(y))
        assert 0 < steps.max() <= 2 + 2**0.5  # positions are rounded
        assert steps.sum() > 0.5 * 29
        bounced += bool((np.diff(y) > 0).any() and (np.diff(y) < 0).any())
    assert bounced > 10


def test_the_file_is_a_function_of_the_options(make):
    one = make("a.npz", "--num", "4").read_bytes()
    assert make("b.npz", "--num", "4").read_bytes() == one
    assert make("c.npz", "--num", "4", "--seed", "1").read_bytes() != one
    with np.load(make("d.npz", "--num", "3", "--digits", "2", "--frames", "5")) as file:
        assert file.files == ["arr_0"]  # two digits are not one class
        assert (file["arr_0"].shape, file["arr_0"].dtype) == ((3, 1, 5, 16, 16), np.uint8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "8"], "a digit is 8 wide and needs room to move; at least 9"),
        (["--num", "0"], "must be at least 1"),
        (["--seed", "-1"], "--seed at least 0"),
    ],
)
def test_invalid_options_are_rejected(make, capsys, options, message):
    with pytest.raises(SystemExit):
        make("a.npz", *options)
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        make("a.npy")
    assert "the name must end in .npz" in capsys.readouterr().err
