"""Networks at times between two timesteps."""

import pytest
import torch

from tests.models.small_networks import LEARNED, NETWORKS, make
from tests.reference_cases import relative_error


def outputs(name, *times):
    """Return the outputs of a network at times of the whole batch."""
    network, x = make(name)
    return [network(x, torch.full((2,), t)) for t in times]


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_continuous_in_time(name):
    whole, real, near = outputs(name, 10, 10.0, 10.001)
    assert torch.equal(whole, real)
    assert 0 < relative_error(near, whole) < 0.01


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in LEARNED])
def test_outputs_between_two_timesteps_are_near_both(name):
    low, middle, high = outputs(name, 10, 10.5, 11)
    distance = (high - low).norm()
    for end in (low, high):
        assert 0 < (middle - end).norm() < distance
