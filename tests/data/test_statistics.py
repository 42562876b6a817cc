"""Standard deviation of training data in model space."""

import numpy as np
import pytest
import torch

from ddpm.data import Digits
from ddpm.data.statistics import standard_deviation


class Stub:
    """Data set of a tensor whose codec halves it, with a mask of conditioning entries."""

    def __init__(self, values, mask=None):
        self.values, self.shape, self.codec = values, tuple(values.shape[1:]), self
        self.condition_mask, self.batches = mask, []

    def __len__(self):
        return len(self.values)

    def fetch(self, indices, keys):
        self.batches.append(list(indices))
        return self.values[torch.tensor(indices)], None

    def encode(self, raw):
        return raw / 2


def values(count):
    return torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(0))


def test_it_is_that_of_all_entries_in_model_space():
    data = Digits()
    x0 = data.codec.encode(data.fetch(range(len(data)), [0] * len(data))[0])
    expected = np.std(x0.double().numpy())
    assert standard_deviation(data, 10**6) == pytest.approx(expected, rel=1e-5)
    assert standard_deviation(Stub(values(150))) == pytest.approx(
        np.std(values(150).numpy() / 2), rel=1e-5
    )


def test_it_has_6_digits_and_is_the_same_again():
    number = standard_deviation(Stub(values(300)))
    assert number == float(f"{number:.6g}") == standard_deviation(Stub(values(300)))


def test_conditioning_entries_are_not_counted():
    x, mask = values(100), torch.zeros(2, 1, dtype=torch.bool)
    x[:, 1], mask[1] = 100.0, True
    assert standard_deviation(Stub(x, mask)) == pytest.approx(np.std(x[:, 0].numpy() / 2), rel=1e-5)


def test_the_items_are_limited_and_evenly_spaced():
    data = Stub(values(1000))
    standard_deviation(data, 100)
    assert [index for batch in data.batches for index in batch] == list(range(0, 1000, 10))
