"""The order of the data depends on the seed, not on processes and micro-batches."""

import os
from itertools import chain, islice
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from ddpm.data import Dataset, Folder, ImageCodec
from ddpm.errors import ConfigError
from ddpm.seeding import RandomStream, mix
from ddpm.training import batch_loader
from ddpm.training.batch_loader import BatchLoader, BatchOptions, ShuffledIndex


class Numbers(Dataset):
    """Data set of the numbers i, whose labels are the keys modulo 1009; ``bad`` cannot be read."""

    num_classes, class_names, in_memory = None, None, True

    def __init__(self, count, bad=None):
        self.count, self.bad = count, bad
        self.shape = (1, 1, 1)
        self.codec = ImageCodec(self.shape)

    def __len__(self):
        return self.count

    def fetch(self, indices, keys):
        if self.bad in indices:
            raise ConfigError("path", f"{self.bad}.png", "is damaged; remove it")
        raw = torch.tensor(indices, dtype=torch.int64).reshape(-1, 1, 1, 1)
        return raw, torch.tensor([key % 1009 for key in keys])


def stream(loader, step, count):
    """Return indices and keys of the next ``count`` micro-batches from ``step`` on."""
    batches = list(islice(loader.batches(step * loader.batch_size), count))
    return [raw.flatten().tolist() for raw, _ in batches], [y.tolist() for _, y in batches]


def test_each_epoch_is_a_permutation_of_its_own():
    order = ShuffledIndex(10, seed=3)
    epochs = [[index for index, _ in order.items(10 * epoch, 10)] for epoch in range(20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 20
    other = [index for index, _ in ShuffledIndex(10, seed=4).items(0, 10)]
    assert other != epochs[0]


def test_every_place_of_an_epoch_is_equally_likely():
    order = ShuffledIndex(4, seed=0)
    first = torch.tensor([order.items(4 * epoch, 1)[0][0] for epoch in range(4000)])
    counts = first.bincount(minlength=4)
    assert (counts - 1000).abs().max() < 5 * (4000 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("start", [0, 3, 9, 10, 17, 1000])
def test_items_are_a_window_of_one_stream(start):
    whole = ShuffledIndex(10, seed=1).items(0, 1100)
    assert ShuffledIndex(10, seed=1).items(start, 35) == whole[start : start + 35]


def test_batches_cross_the_ends_of_epochs():
    indices, _ = stream(BatchLoader(Numbers(10), seed=0, batch_size=4), 0, 5)
    assert [len(batch) for batch in indices] == [4] * 5
    flat = list(chain(*indices))
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))


def test_data_smaller_than_the_batch():
    indices, _ = stream(BatchLoader(Numbers(3), seed=0, batch_size=8), 0, 3)
    flat = list(chain(*indices))
    assert [len(batch) for batch in indices] == [8] * 3
    assert all(sorted(flat[k : k + 3]) == [0, 1, 2] for k in range(0, 24, 3))


@pytest.mark.parametrize("step", [1, 2, 5, 7])
def test_a_stream_from_a_step_is_the_tail_of_the_whole(step):
    def loader():
        return BatchLoader(Numbers(7), seed=2, batch_size=6, accumulate=2)

    indices, keys = stream(loader(), 0, 24)
    tail = stream(loader(), step, 24 - 2 * step)
    assert tail == (indices[2 * step :], keys[2 * step :])


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_order_is_the_same_for_any_number_of_processes(world, accumulate):
    """The shards of all ranks, concatenated per micro-batch, are the order of one process."""
    expected = ShuffledIndex(13, seed=5).items(3 * 16, 5 * 16)
    options = {"seed": 5, "batch_size": 16}
    ranks = [
        BatchLoader(Numbers(13), accumulate=accumulate, rank=rank, world=world, **options)
        for rank in range(world)
    ]
    shares = [stream(loader, 3, 5 * accumulate) for loader in ranks]
    size = 16 // (world * accumulate)
    assert all(len(batch) == size for indices, _ in shares for batch in indices)
    together = [
        pair
        for micro in range(5 * accumulate)
        for indices, keys in shares
        for pair in zip(indices[micro], keys[micro], strict=True)
    ]
    assert together == [(index, key % 1009) for index, key in expected]


def test_keys_are_functions_of_seed_epoch_and_index():
    for start, count in ((0, 7), (5, 20)):
        for place, (index, key) in enumerate(
            ShuffledIndex(7, seed=6).items(start, count), start=start
        ):
            assert key == mix(6, RandomStream.AUGMENTATION, place // 7, index)
    keys = [key for _, key in ShuffledIndex(7, seed=6).items(0, 700)]
    assert len(set(keys)) == 700


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_stream(workers):
    def loader(num_workers):
        return BatchLoader(Numbers(9), seed=0, batch_size=4, accumulate=2, num_workers=num_workers)

    assert stream(loader(workers), 3, 8) == stream(loader(0), 3, 8)


def test_batches_of_workers_are_not_overwritten_by_later_ones():
    def batches(num_workers):
        loader = BatchLoader(Numbers(9), seed=0, batch_size=4, num_workers=num_workers)
        return list(islice(loader.batches(0), 12))

    for (raw, labels), (other, other_labels) in zip(batches(2), batches(0), strict=True):
        assert labels is not None and other_labels is not None
        assert torch.equal(raw, other) and torch.equal(labels, other_labels)
        assert raw.dtype == other.dtype and not raw.is_shared()


def test_buffers_of_workers_are_sent_once(monkeypatch):
    monkeypatch.setattr(batch_loader, "get_worker_info", lambda: SimpleNamespace(id=0))
    buffers, receive = batch_loader._SharedBuffers(), batch_loader._Receiver(pin_memory=False)
    shapes = [(2, 3)] * 7 + [(4,)] * 4
    for number, shape in enumerate(shapes):
        sent = buffers.share(torch.full(shape, number), None)
        assert (sent.buffer is not None) == (number < 3 or 7 <= number < 10)
        assert torch.equal(receive(sent)[0], torch.full(shape, number))


def test_loader_does_not_use_the_global_random_state():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    stream(BatchLoader(Numbers(9), seed=0, batch_size=4, num_workers=1), 0, 3)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_data_error_in_a_worker_is_raised_unchanged(workers):
    loader = BatchLoader(Numbers(9, bad=5), seed=0, batch_size=9, num_workers=workers)
    with pytest.raises(ConfigError) as caught:
        next(loader.batches(0))
    assert str(caught.value) == "data.path=5.png: is damaged; remove it"


@pytest.mark.parametrize(("in_memory", "workers"), [(True, 0), (False, 2)])
def test_default_number_of_workers(in_memory, workers):
    data = Numbers(9)
    data.in_memory = in_memory
    assert BatchLoader(data, seed=0, batch_size=4).num_workers == workers


def test_no_workers_by_default_if_nothing_has_to_be_decoded(tmp_path):
    pixels = torch.randint(0, 256, (9, 4, 4, 3), dtype=torch.uint8).numpy()
    for number, each in enumerate(pixels):
        Image.fromarray(each).save(tmp_path / f"{number}.png")
        os.utime(tmp_path / f"{number}.png", (1.6e9, 1.6e9))

    def loader():
        cache = str(tmp_path / "cache")
        data = Folder(path=str(tmp_path), cache_mb=0, disk_cache=cache, flip=True)
        return BatchLoader(data, seed=0, batch_size=4)

    def batches(loader):
        return torch.stack([raw for raw, _ in islice(loader.batches(0), 6)])

    first = loader()
    assert first.num_workers == 2
    expected = batches(first)  # two epochs and more
    second = loader()
    assert second.num_workers == 0
    assert torch.equal(batches(second), expected)


def test_a_negative_number_of_workers_is_an_error():
    with pytest.raises(ConfigError, match="num_workers=-1: must be at least 0"):
        BatchOptions(num_workers=-1)


def test_first_batch_of_a_trial_is_the_first_of_the_training(monkeypatch):
    """The workers are started once for both."""
    expected, _ = stream(BatchLoader(Numbers(10), seed=0, batch_size=4), 2, 3)
    started, original = [], batch_loader.DataLoader
    monkeypatch.setattr(
        batch_loader, "DataLoader", lambda *a, **k: started.append(1) or original(*a, **k)
    )
    loader = BatchLoader(Numbers(10), seed=0, batch_size=4, num_workers=1)
    assert [loader.first(8)[0].flatten().tolist() for _ in range(2)] == [expected[0]] * 2
    assert stream(loader, 2, 3)[0] == expected
    assert len(started) == 1
    assert stream(loader, 2, 1)[0] == expected[:1]
    assert len(started) == 2
