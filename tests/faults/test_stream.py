"""The stream of samples does not depend on batches, processes and interruptions."""

from itertools import islice

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ddpm.data import Dataset, ImageCodec
from ddpm.seeding import RandomStream, mix
from ddpm.training.batch_loader import BatchLoader, ShuffledIndex

# The same examples each time, without a time limit.
STEADY = settings(derandomize=True, deadline=None, database=None, max_examples=150)
FEW = settings(STEADY, max_examples=8, suppress_health_check=[HealthCheck.too_slow])

COUNTS = st.integers(1, 50)
SEEDS = st.integers(0, 2**63 - 1)


class Echo(Dataset):
    """Data set of the numbers i, whose labels are the keys."""

    num_classes, class_names, shape = None, None, (1, 1, 1)

    def __init__(self, count, in_memory=True):
        self.count, self.in_memory = count, in_memory
        self.codec = ImageCodec(self.shape)

    def __len__(self):
        return self.count

    def fetch(self, indices, keys):
        return torch.tensor(indices).reshape(-1, 1, 1, 1), torch.tensor(keys, dtype=torch.int64)


@st.composite
def launches(draw):
    """Draw a launch: processes, micro-batches, batch size, steps."""
    world, accumulate, share = draw(st.tuples(*[st.integers(1, 4)] * 3))
    return world, accumulate, world * accumulate * share, draw(st.integers(0, 5))


def launched(data, seed, samples, launch, workers=0):
    """Return the (index, key) pairs that all processes of a launch receive, in order."""
    world, accumulate, batch_size, steps = launch
    options = {"seed": seed, "batch_size": batch_size, "accumulate": accumulate}
    ranks = [
        BatchLoader(data, rank=rank, world=world, num_workers=workers, **options).batches(samples)
        for rank in range(world)
    ]
    received = []
    for _ in range(steps * accumulate):
        for batches in ranks:
            raw, keys = next(batches)
            assert len(raw) == batch_size // (world * accumulate)
            received.extend(zip(raw.flatten().tolist(), keys.tolist(), strict=True))
    return received


def stream(count, seed, length):
    """Return the first ``length`` pairs (index, key) of the stream."""
    epochs = range(-(-length // count))
    whole = [
        item for epoch in epochs for item in ShuffledIndex(count, seed).items(epoch * count, count)
    ]
    return whole[:length]


@STEADY
@given(count=COUNTS, seed=SEEDS, epochs=st.integers(1, 6))
@example(count=1, seed=0, epochs=6)
def test_each_epoch_is_a_permutation_and_a_key_belongs_to_seed_epoch_and_index(count, seed, epochs):
    items = ShuffledIndex(count, seed).items(0, epochs * count)
    for epoch in range(epochs):
        block = items[epoch * count : (epoch + 1) * count]
        assert sorted(index for index, _ in block) == list(range(count))
        assert block == [
            (index, mix(seed, RandomStream.AUGMENTATION, epoch, index)) for index, _ in block
        ]
        assert all(0 <= key < 2**63 for _, key in block)


@STEADY
@given(count=COUNTS, seed=SEEDS, windows=st.lists(st.tuples(COUNTS, COUNTS), max_size=5))
def test_window_of_the_stream_does_not_depend_on_earlier_windows(count, seed, windows):
    order = ShuffledIndex(count, seed)
    for start, length in windows:
        assert order.items(start, length) == stream(count, seed, start + length)[start:]


@STEADY
@given(count=COUNTS, seed=SEEDS, run=st.lists(launches(), min_size=1, max_size=4))
@example(count=1, seed=0, run=[(2, 2, 4, 3), (1, 1, 4, 2)])
@example(count=7, seed=0, run=[(2, 1, 6, 1), (1, 3, 6, 1), (3, 2, 6, 2)])
def test_consecutive_launches_give_the_uninterrupted_stream(count, seed, run):
    """Each launch resumes at the counter of samples, with other processes or another batch."""
    received = []
    for launch in run:
        received += launched(Echo(count), seed, len(received), launch)
    total = sum(batch_size * steps for _, _, batch_size, steps in run)
    assert received == stream(count, seed, total)


@STEADY
@given(count=COUNTS, seed=SEEDS, launch=launches(), start=st.integers(0, 200))
def test_plan_equals_the_fetched_items(count, seed, launch, start):
    world, accumulate, batch_size, _ = launch
    options = {"seed": seed, "batch_size": batch_size, "accumulate": accumulate, "world": world}
    for rank in range(world):
        loader = BatchLoader(Echo(count), rank=rank, **options)
        fetched = [
            list(zip(raw.flatten().tolist(), keys.tolist(), strict=True))
            for raw, keys in islice(loader.batches(start), accumulate)
        ]
        assert fetched == loader.plan(start)


@FEW
@given(
    count=COUNTS,
    seed=SEEDS,
    run=st.lists(st.tuples(launches(), st.integers(1, 2)), min_size=1, max_size=2),
)
def test_workers_do_not_change_the_stream(count, seed, run):
    received = []
    for launch, workers in run:
        received += launched(Echo(count, in_memory=False), seed, len(received), launch, workers)
    assert received == stream(count, seed, len(received))
    assert len(received) == sum(batch_size * steps for (_, _, batch_size, steps), _ in run)


@pytest.mark.parametrize("workers", [1, 2])
def test_one_stop_with_workers(workers):
    """Samples that workers had prefetched at the stop are read again, not skipped."""
    first, second = (2, 2, 8, 3), (1, 1, 8, 2)
    received = launched(Echo(11, in_memory=False), 3, 0, first, workers)
    received += launched(Echo(11, in_memory=False), 3, len(received), second, workers)
    assert received == stream(11, 3, 40)
