from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.data import Sequences, Videos
from ddpm.data.arrays import array_classes
from ddpm.data.classes import class_number, format_names, label_values, relabel
from ddpm.errors import ConfigError

RNG = np.random.default_rng(0)
WAVES = RNG.normal(size=(6, 2, 8)).astype(np.float32)
CLIPS = RNG.integers(0, 256, (6, 1, 5, 8, 8), dtype=np.uint8)


@pytest.mark.parametrize("kind", [Sequences, Videos])
@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (np.array([1, 2, 3, 3, 2, 1]), ["1", "2", "3"], [0, 1, 2, 2, 1, 0]),
        (np.array([100, 0, 5, 5, 0, 100]), ["0", "5", "100"], [2, 0, 1, 1, 0, 2]),
        (np.array([7, 7, 7, 7, 7, 7], np.uint64), ["7"], [0] * 6),
        (np.array([1.0, 3.0, 1.0, 3.0, 3.0, 1.0]), ["1", "3"], [0, 1, 0, 1, 1, 0]),
        (np.array([True, False, True, True, True, True]), ["0", "1"], [1, 0, 1, 1, 1, 1]),
        (np.array([2**63, 1, 1, 1, 1, 1], np.uint64), ["1", str(2**63)], [1, 0, 0, 0, 0, 0]),
    ],
)
def test_the_classes_are_the_labels_that_occur(tmp_path: Path, kind, labels, names, numbers):
    values = WAVES if kind is Sequences else CLIPS
    np.savez(tmp_path / "a.npz", arr_0=values, labels=labels)
    data = kind(path=str(tmp_path / "a.npz"), class_cond=True)
    assert (data.num_classes, data.class_names) == (len(names), names)
    assert data.fetch(range(6), range(6))[1].tolist() == numbers  # pyright: ignore


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0, 1, 2, -1, 0, 0]),
        np.array([0.5, 1, 2, 1, 0, 0]),
        np.array([np.nan, 1, 2, 1, 0, 0]),
        np.array([np.inf, 1, 2, 1, 0, 0]),
        np.array([1e300, 1, 2, 1, 0, 0]),
        np.array([1j, 1, 2, 1, 0, 0]),
        np.array([b"a", b"b", b"a", b"a", b"a", b"a"]),
    ],
)
def test_invalid_labels(labels):
    with pytest.raises(ConfigError) as caught:
        array_classes(labels, "a.npz", 6, "sequence")
    assert str(caught.value) == (
        "class_cond=true: a.npz contains labels that are neither whole numbers from 0 nor names; "
        "save them as integers"
    )


def test_labels_of_invalid_type_or_shape(tmp_path: Path):
    path = str(tmp_path / "a.npz")
    np.savez(path, arr_0=WAVES, labels=np.array([1, "a", None, 2, 3, 4], dtype=object))
    with pytest.raises(ConfigError, match=r"^path=.*: cannot be read \(Object arrays cannot be"):
        Sequences(path=path, class_cond=True)
    for labels in (np.zeros((6, 1), int), np.zeros(5, int), np.array(3)):
        with pytest.raises(ConfigError, match=r"contains labels of shape .*; they must be \(6,\)"):
            array_classes(labels, path, 6, "sequence")


@pytest.mark.parametrize(
    ("requested", "names", "number"),
    [
        (5, ["0", "5", "100"], 1),
        ("5", ["0", "5", "100"], 1),
        ("005", ["0", "5", "100"], 1),
        (1, ["0", "5", "100"], None),
        (1, ["1", "2", "10"], 0),
        ("10", ["1", "10", "2"], 1),
        ("cat", ["cat", "dog"], 0),
        (1, ["cat", "dog"], 1),
        ("1", ["cat", "dog"], 1),
        (2, ["cat", "dog"], None),
        (2, ["2", "cat"], 0),
        (1, ["2", "cat"], None),
        (0, ["007", "7"], None),
        ("007", ["007", "7"], 0),
        (7, ["007", "7"], 1),
        (-1, ["cat", "dog"], None),
        ("1e3", ["1", "2"], None),
        ("²", ["cat", "dog", "cow"], None),
    ],
)
def test_class_names_have_priority_over_class_numbers(requested, names, number):
    assert class_number(requested, names) == number


def test_label_values_and_formatted_names():
    assert label_values(["1", "5"]) == [1, 5]
    for names in (["1", "05"], ["cat", "1"], [], None, [str(2**63)], ["-1"], ["²"]):
        assert label_values(names) is None
    assert format_names(["0", "1", "2"]) == "0 to 2"
    assert format_names(["0"]) == "0"
    assert format_names(["1", "2"]) == "1, 2"
    many = [str(3 * number) for number in range(20)]
    assert format_names(many) == "0, 3, 6, 9, 12, 15, 18, 21, 24, 27, ..., 57"


def test_labels_are_renumbered_for_a_model_with_more_classes(tmp_path: Path):
    path = str(tmp_path / "a.npz")
    np.savez(path, arr_0=WAVES, labels=np.array([5, 1, 3, 3, 5, 1]))
    data = Sequences(path=path, class_cond=True)
    digits = [str(number) for number in range(6)]
    for names in (digits, None):
        more = relabel(data, 6, names)
        assert (more.num_classes, more.class_names, len(more)) == (6, digits, 6)
        raw, labels = more.fetch([0, 2], [0, 0])
        assert labels is not None and labels.tolist() == [5, 3]
        assert more.class_counts() == [0, 2, 0, 2, 0, 2]
        assert more.class_counts([0, 4, 1]) == [0, 1, 0, 0, 0, 2]
        assert torch.equal(raw, data.fetch([0, 2], [0, 0])[0]) and more.own_split() is None
    assert relabel(data, 3, ["1", "3", "5"]) is data
    assert relabel(data, 5, None) is data  # its class 5 is not among 0 to 4
    assert relabel(data, 6, list("abcdef")) is data
    assert relabel(data, None, None) is data
