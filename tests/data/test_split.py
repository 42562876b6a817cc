"""Items held out from training."""

import pickle
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.data import UNAUGMENTED_KEY, Dataset, Digits, Folder, ImageCodec, Sequences, Videos
from ddpm.data.split import Subset, split
from ddpm.errors import ConfigError
from ddpm.seeding import RandomStream, mix
from ddpm.training.batch_loader import BatchLoader


class Numbers(Dataset):
    """Data set whose item i is the number i, with the key as its label."""

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


def held_out_indices(count: int, fraction: float) -> list[int]:
    """Return the indices that are held out of ``count`` items."""
    part = split(Numbers(count), fraction).val
    return [] if part is None else numbers(part)


def numbers(data: Dataset) -> list[int]:
    return data.fetch(range(len(data)), range(len(data)))[0].flatten().tolist()


def test_the_held_out_items_are_reproducible():
    assert held_out_indices(10, 0.3) == [1, 6, 9]
    assert numbers(split(Numbers(10), 0.3).train) == [0, 2, 3, 4, 5, 7, 8]
    assert held_out_indices(1797, 0.005) == [9, 449, 1069, 1222, 1367, 1528, 1541, 1594, 1620]
    by_definition = sorted(range(1000), key=lambda index: mix(RandomStream.SPLIT, index))
    assert held_out_indices(1000, 0.25) == sorted(by_definition[:250])


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [(10, 0.3, 3), (10, 0.26, 3), (10, 0.24, 2), (10, 0.9, 9), (10, 0.06, 1), (2, 0.5, 1),
     (1797, 0.1, 180), (50_000, 0.1, 5_000), (3, 1e-9 + 1 / 6, 1)],
)  # fmt: skip
def test_the_subsets_are_a_partition_with_rounded_sizes(count: int, fraction: float, expected: int):
    parts = split(Numbers(count), fraction)
    assert parts.val is not None
    train, val = numbers(parts.train), numbers(parts.val)
    assert (len(parts.val), len(parts.train)) == (expected, count - expected)
    assert sorted(train + val) == list(range(count))
    assert train == sorted(train) and val == sorted(val)


def test_a_larger_fraction_holds_out_a_superset():
    inner: set[int] = set()
    for percent in range(1, 100):
        outer = set(held_out_indices(200, percent / 100))
        assert inner < outer and len(outer) == 2 * percent
        inner = outer


def test_held_out_items_are_spread_over_the_data():
    """Folders, for example, are sorted by class."""
    counts = np.bincount(np.array(held_out_indices(10_000, 0.2)) // 1000, minlength=10)
    assert counts.sum() == 2000
    assert np.abs(counts - 200).max() < 4 * (1000 * 0.2 * 0.8) ** 0.5


def test_a_subset_returns_the_items_of_the_data_set():
    data = Digits(class_cond=True)
    parts = split(data, 0.1)
    assert parts.val is not None
    for part, indices in ((parts.val, held_out_indices(1797, 0.1)), (parts.train, None)):
        positions = [5, 0, len(part) - 1, 5]
        raw, labels = part.fetch(positions, [0] * 4)
        source = (
            sorted(set(range(1797)) - set(held_out_indices(1797, 0.1)))
            if indices is None
            else indices
        )
        expected, names = data.fetch([source[place] for place in positions], [0] * 4)
        assert torch.equal(raw, expected)
        assert labels is not None and names is not None and torch.equal(labels, names)
        assert (part.shape, part.num_classes, part.in_memory) == ((1, 8, 8), 10, True)
        assert part.class_names == data.class_names and part.codec is data.codec
        assert part.own_split() is None
    assert not split(Numbers(9, in_memory=False), 0.3).train.in_memory


def test_a_subset_passes_the_keys_in_the_order_of_the_items():
    part = Subset(Numbers(10), [7, 2, 5])
    raw, keys = part.fetch(torch.tensor([2, 0]).tolist(), [2**63 - 1, 4])
    assert keys is not None
    assert (raw.flatten().tolist(), keys.tolist()) == ([7, 2], [2**63 - 1, 4])
    empty, _ = part.fetch([], [])
    assert empty.shape == (0, 1, 1, 1)
    with pytest.raises(IndexError):
        part.fetch([3], [0])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_training_uses_exactly_the_items_that_are_not_held_out(num_workers: int):
    train = split(Numbers(10), 0.3).train
    loader = BatchLoader(train, seed=0, batch_size=7, num_workers=num_workers)
    for raw, _ in islice(loader.batches(0), 3):  # three epochs
        assert sorted(raw.flatten().tolist()) == [0, 2, 3, 4, 5, 7, 8]


def test_splits_can_be_pickled():
    parts = pickle.loads(pickle.dumps(split(Numbers(10), 0.3)))
    assert numbers(parts.val) == [1, 6, 9] and len(parts.train) == 7


class WithOwn(Numbers):
    """Numbers with a validation split of four items, which counts how often it is read."""

    reads = 0

    def own_split(self):
        WithOwn.reads += 1
        return Numbers(4)


def test_the_authors_split_is_used_without_held_out_items_and_is_read_once_on_access():
    WithOwn.reads = 0
    data = WithOwn(10)
    parts = split(data, 0)
    assert parts.train is data and WithOwn.reads == 0
    assert parts.val is parts.val and parts.val is not None and len(parts.val) == 4
    assert WithOwn.reads == 1
    other = split(data, 0.2).val
    assert other is not None and numbers(other) == held_out_indices(10, 0.2)
    assert WithOwn.reads == 1  # the held-out items are used instead
    without = split(Numbers(10), 0.0)
    assert without.val is None and len(without.train) == 10


def test_errors_of_the_authors_split_have_keys_below_data():
    class Broken(Numbers):
        def own_split(self):
            raise ConfigError("path", "x", "is missing; restore it")

    with pytest.raises(ConfigError) as caught:
        _ = split(Broken(3), 0).val
    assert str(caught.value) == "data.path=x: is missing; restore it"


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
def test_errors_of_invalid_fractions(count: int, fraction: float, problem: str):
    with pytest.raises(ConfigError) as caught:
        split(Numbers(count), fraction)
    assert str(caught.value) == f"val_fraction{problem}"


def test_all_kinds_of_data_can_be_split(tmp_path):
    draw = np.random.default_rng(0)
    np.save(tmp_path / "waves.npy", draw.normal(size=(10, 1, 16)).astype(np.float32))
    np.save(tmp_path / "clips.npy", draw.integers(0, 256, (10, 1, 5, 8, 8), np.uint8))
    (tmp_path / "pictures").mkdir()
    for number in range(10):
        pixels = draw.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"pictures/{number}.png")
    for data in (
        Sequences(path=str(tmp_path / "waves.npy")),
        Videos(path=str(tmp_path / "clips.npy")),
        Folder(path=str(tmp_path / "pictures"), cache_mb=0, flip=True),
        Folder(path=str(tmp_path / "pictures"), flip=True),
    ):
        parts = split(data, 0.3)
        assert parts.val is not None
        raw, _ = parts.val.fetch([0, 1, 2], [UNAUGMENTED_KEY] * 3)
        assert torch.equal(raw, data.fetch([1, 6, 9], [UNAUGMENTED_KEY] * 3)[0])
        back = parts.val.codec.decode(parts.train.codec.encode(raw))
        assert torch.allclose(back.float(), raw.float(), atol=1e-5)


def test_the_unaugmented_key_mirrors_nothing(tmp_path):
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "a.png")
    mirrored = Folder(path=str(tmp_path), flip=True)
    plain = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8)
    assert torch.equal(mirrored.fetch([0], [UNAUGMENTED_KEY])[0], plain)
    assert any(not torch.equal(mirrored.fetch([0], [key])[0], plain) for key in range(10))
