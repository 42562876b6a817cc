"""What is held out of training: which items, how many, and that they are the whole's."""

import pickle
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.data import UNTOUCHED, Dataset, Digits, Folder, ImageCodec, Sequences, Videos
from ddpm.data.split import Part, split
from ddpm.errors import ConfigError
from ddpm.seeding import RandomStream, mix
from ddpm.training.feed import Feed


class Numbers(Dataset):
    """Item i is the number i; its label is the key that came with it."""

    num_classes, class_names = 3, ["a", "b", "c"]

    def __init__(self, count: int, in_memory: bool = True) -> None:
        self.count, self.in_memory = count, in_memory
        self.shape = (1, 1, 1)
        self.codec = ImageCodec(self.shape)

    def __len__(self):
        return self.count

    def fetch(self, indices, keys):
        assert all(type(index) is int and 0 <= index < self.count for index in indices)
        raw = torch.tensor(indices, dtype=torch.int64).reshape(-1, 1, 1, 1)
        return raw, torch.tensor(list(keys), dtype=torch.int64)


def held(count: int, fraction: float) -> list[int]:
    """The indices that are held out of so many items."""
    part = split(Numbers(count), fraction).val
    return [] if part is None else numbers(part)


def numbers(data: Dataset) -> list[int]:
    return data.fetch(range(len(data)), range(len(data)))[0].flatten().tolist()


def test_the_items_held_out_are_the_same_on_every_machine_and_version():
    assert held(10, 0.3) == [1, 6, 9]
    assert numbers(split(Numbers(10), 0.3).train) == [0, 2, 3, 4, 5, 7, 8]
    assert held(1797, 0.005) == [9, 449, 1069, 1222, 1367, 1528, 1541, 1594, 1620]
    by_definition = sorted(range(1000), key=lambda index: mix(RandomStream.SPLIT, index))
    assert held(1000, 0.25) == sorted(by_definition[:250])


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [(10, 0.3, 3), (10, 0.26, 3), (10, 0.24, 2), (10, 0.9, 9), (10, 0.06, 1), (2, 0.5, 1),
     (1797, 0.1, 180), (50_000, 0.1, 5_000), (3, 1e-9 + 1 / 6, 1)],
)  # fmt: skip
def test_the_parts_have_the_rounded_count_are_disjoint_and_make_up_the_whole(
    count: int, fraction: float, expected: int
):
    parts = split(Numbers(count), fraction)
    assert parts.val is not None
    train, val = numbers(parts.train), numbers(parts.val)
    assert (len(parts.val), len(parts.train)) == (expected, count - expected)
    assert sorted(train + val) == list(range(count))
    assert train == sorted(train) and val == sorted(val)


def test_a_larger_fraction_holds_out_the_same_and_more():
    inner: set[int] = set()
    for percent in range(1, 100):
        outer = set(held(200, percent / 100))
        assert inner < outer and len(outer) == 2 * percent
        inner = outer


def test_what_is_held_out_is_spread_over_the_data():
    """Also over data that are sorted by class, as folders are."""
    counts = np.bincount(np.array(held(10_000, 0.2)) // 1000, minlength=10)
    assert counts.sum() == 2000
    assert np.abs(counts - 200).max() < 4 * (1000 * 0.2 * 0.8) ** 0.5


def test_a_part_gives_what_the_whole_gives():
    whole = Digits(class_cond=True)
    parts = split(whole, 0.1)
    assert parts.val is not None
    for part, indices in ((parts.val, held(1797, 0.1)), (parts.train, None)):
        asked = [5, 0, len(part) - 1, 5]
        raw, labels = part.fetch(asked, [0] * 4)
        kept = sorted(set(range(1797)) - set(held(1797, 0.1))) if indices is None else indices
        expected, names = whole.fetch([kept[place] for place in asked], [0] * 4)
        assert torch.equal(raw, expected)
        assert labels is not None and names is not None and torch.equal(labels, names)
        assert (part.shape, part.num_classes, part.in_memory) == ((1, 8, 8), 10, True)
        assert part.class_names == whole.class_names and part.codec is whole.codec
        assert part.own_split() is None
    assert not split(Numbers(9, in_memory=False), 0.3).train.in_memory


def test_a_part_passes_the_keys_on_in_the_order_of_the_items():
    part = Part(Numbers(10), [7, 2, 5])
    raw, keys = part.fetch(torch.tensor([2, 0]).tolist(), [2**63 - 1, 4])
    assert keys is not None
    assert (raw.flatten().tolist(), keys.tolist()) == ([7, 2], [2**63 - 1, 4])
    empty, _ = part.fetch([], [])
    assert empty.shape == (0, 1, 1, 1)
    with pytest.raises(IndexError):
        part.fetch([3], [0])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_training_sees_every_item_that_is_not_held_out_and_no_other(num_workers: int):
    train = split(Numbers(10), 0.3).train
    feed = Feed(train, seed=0, batch_size=7, num_workers=num_workers)
    for raw, _ in islice(feed.batches(0), 3):  # three epochs
        assert sorted(raw.flatten().tolist()) == [0, 2, 3, 4, 5, 7, 8]


def test_parts_can_be_sent_to_another_process():
    parts = pickle.loads(pickle.dumps(split(Numbers(10), 0.3)))
    assert numbers(parts.val) == [1, 6, 9] and len(parts.train) == 7


class WithOwn(Numbers):
    """Numbers whose author set four aside; counts how often those are read."""

    reads = 0

    def own_split(self):
        WithOwn.reads += 1
        return Numbers(4)


def test_the_data_s_own_split_is_taken_where_nothing_is_held_out_and_read_once_when_asked_for():
    WithOwn.reads = 0
    whole = WithOwn(10)
    parts = split(whole, 0)
    assert parts.train is whole and WithOwn.reads == 0
    assert parts.val is parts.val and parts.val is not None and len(parts.val) == 4
    assert WithOwn.reads == 1
    other = split(whole, 0.2).val
    assert other is not None and numbers(other) == held(10, 0.2)
    assert WithOwn.reads == 1  # what was held out is taken instead
    without = split(Numbers(10), 0.0)
    assert without.val is None and len(without.train) == 10


def test_an_own_split_that_cannot_be_read_is_told_of_under_data():
    class Broken(Numbers):
        def own_split(self):
            raise ConfigError("path", "x", "is gone; bring it back")

    with pytest.raises(ConfigError) as caught:
        _ = split(Broken(3), 0).val
    assert str(caught.value) == "data.path=x: is gone; bring it back"


RANGE = "must be at least 0 and below 1, such as 0.1"
EMPTY = "and neither part may be empty"


@pytest.mark.parametrize(
    ("count", "fraction", "problem"),
    [
        (10, -0.1, f"=-0.1: {RANGE}"),
        (10, 1.0, f"=1.0: {RANGE}"),
        (10, float("nan"), f"=nan: {RANGE}"),
        (10, float("inf"), f"=inf: {RANGE}"),
        (10, 0.999, f"=0.999: would hold out 10 of 10 items, {EMPTY}; lower it, or leave it at 0"),
        (10, 0.04, f"=0.04: would hold out 0 of 10 items, {EMPTY}; raise it, or leave it at 0"),
        (1, 0.4, f"=0.4: would hold out 0 of 1 items, {EMPTY}; raise it, or leave it at 0"),
    ],
)
def test_fractions_that_are_refused(count: int, fraction: float, problem: str):
    with pytest.raises(ConfigError) as caught:
        split(Numbers(count), fraction)
    assert str(caught.value) == f"val_fraction{problem}"


def test_every_kind_of_data_can_be_divided(tmp_path):
    draw = np.random.default_rng(0)
    np.save(tmp_path / "waves.npy", draw.normal(size=(10, 1, 16)).astype(np.float32))
    np.save(tmp_path / "clips.npy", draw.integers(0, 256, (10, 1, 5, 8, 8), np.uint8))
    (tmp_path / "pictures").mkdir()
    for number in range(10):
        pixels = draw.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"pictures/{number}.png")
    for whole in (
        Sequences(path=str(tmp_path / "waves.npy")),
        Videos(path=str(tmp_path / "clips.npy")),
        Folder(path=str(tmp_path / "pictures"), cache_mb=0, flip=True),
        Folder(path=str(tmp_path / "pictures"), flip=True),
    ):
        parts = split(whole, 0.3)
        assert parts.val is not None
        raw, _ = parts.val.fetch([0, 1, 2], [UNTOUCHED] * 3)
        assert torch.equal(raw, whole.fetch([1, 6, 9], [UNTOUCHED] * 3)[0])
        back = parts.val.codec.decode(parts.train.codec.encode(raw))
        assert torch.allclose(back.float(), raw.float(), atol=1e-5)


def test_with_the_key_untouched_nothing_is_mirrored(tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "a.png")
    mirrored = Folder(path=str(tmp_path), flip=True)
    plain = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8)
    assert torch.equal(mirrored.fetch([0], [UNTOUCHED])[0], plain)
    assert any(not torch.equal(mirrored.fetch([0], [key])[0], plain) for key in range(10))
