"""Defaults of the optimizer that depend on the device and the network."""

import pytest
from torch import nn

from ddpm.training.optimizer import default_batch_size, default_learning_rate


@pytest.mark.parametrize(
    ("device", "parts", "size"),
    [("cpu", 1, 16), ("cuda", 1, 128), ("cpu", 3, 18), ("cuda", 6, 132)],
)
def test_default_batch_size_is_a_multiple_of_its_parts(device, parts, size):
    assert default_batch_size(device, parts) == size


@pytest.mark.parametrize(("parameters", "rate"), [(9_999_999, 1e-3), (10_000_000, 2e-4)])
def test_default_learning_rate(parameters, rate):
    network = nn.Linear(parameters, 1, bias=False, device="meta")
    assert default_learning_rate(network) == rate
