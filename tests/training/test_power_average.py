"""Power-function averages of a network, compared with the sum of all its weights."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ddpm.training.power_average import NUM_SNAPSHOTS, PosthocOptions, PowerAverages
from ddpm.training.power_profile import Profile, fit, gamma
from scripts.operations import Operations


class Vector(nn.Module):
    """Network with a vector of parameters in float64."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, dtype=torch.float64))
        self.count = nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)

    def at(self, value):
        with torch.no_grad():
            self.weight.copy_(value)


def averaged(values, sigma_rels, every=1):
    """Return the averages of a sequence (steps, size) by ``sigma_rels``, as rows."""
    network = Vector(values.shape[1])
    averages = PowerAverages(network, sigma_rels)
    for step, value in enumerate(values, 1):
        network.at(value)
        if step % every == 0:
            averages.update(step)
    return torch.stack([each["weight"] for each in averages.named()])


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1, 0.28])
def test_the_response_is_the_profile(sigma):
    """Weights of step k are the k-th unit vector, so that the average is the profile itself."""
    (response,) = averaged(torch.eye(200, dtype=torch.float64), (sigma,))
    exponent, times = gamma(sigma) + 1, torch.arange(201, dtype=torch.float64) / 200
    torch.testing.assert_close(response, (times**exponent).diff(), rtol=1e-11, atol=1e-15)
    shares = Profile(sigma, 200).shares(np.arange(201.0))
    np.testing.assert_allclose(response.numpy(), shares, rtol=1e-11, atol=1e-15)


def test_the_average_is_the_sum_of_all_weights_with_the_published_decays():
    """The decay of step t is (1 - 1/t)^(gamma + 1)."""
    torch.manual_seed(0)
    values = torch.randn(60, 5, dtype=torch.float64)
    result = averaged(values, (0.05, 0.1, 0.25))
    for row, sigma in zip(result, (0.05, 0.1, 0.25), strict=True):
        expected = torch.zeros(5, dtype=torch.float64)
        for step, value in enumerate(values, 1):
            decay = (1 - 1 / step) ** (gamma(sigma) + 1)
            expected = decay * expected + (1 - decay) * value
        torch.testing.assert_close(row, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("every", [1, 10, 100])
def test_the_interval_of_the_updates_does_not_change_the_profile(every):
    """ema-pytorch's averages have a mean of 0.64 for 10 and of 0.15 for 100, at sigma_rel 0.05."""
    count, exponent = 5000, gamma(0.05)
    times = torch.arange(1, count + 1, dtype=torch.float64) / count
    values = torch.stack([times, times**2], 1)
    mean, square = averaged(values, (0.05,), every)[0].tolist()
    assert mean == pytest.approx((exponent + 1) / (exponent + 2), abs=0.6 * every / count + 1e-9)
    assert math.sqrt(square - mean**2) == pytest.approx(0.05, abs=0.5 * every / count)


@pytest.mark.parametrize("sigma", [0.04, 0.08, 0.15])
def test_an_average_is_reconstructed_from_snapshots(sigma):
    """Of a random walk; the averages that the snapshots have are far from it."""
    torch.manual_seed(1)
    walk = torch.randn(1000, 64, dtype=torch.float64).cumsum(0) + 100
    times = range(50, 1001, 50)
    profiles = [Profile(each, t) for t in times for each in (0.05, 0.1)]
    target, edges = Profile(sigma, 1000), np.arange(1001.0)
    stored = torch.tensor(np.stack([each.shares(edges) for each in profiles])) @ walk
    (expected,) = averaged(walk, (sigma,))
    coefficients = torch.tensor(fit(target, profiles).coefficients)
    result = coefficients.to(torch.float64) @ stored
    nearest = min(float((row - expected).norm()) for row in stored)
    assert float((result - expected).norm()) < 0.03 * nearest


def test_an_average_that_begins_late_is_that_of_weights_that_did_not_change_before():
    torch.manual_seed(2)
    values = torch.randn(30, 3, dtype=torch.float64)
    network = Vector(3)
    averages = PowerAverages(network, (0.1,))
    for step in range(12, 31):
        network.at(values[step - 1])
        averages.update(step)
    values[:11] = values[11]
    assert averages.profiles == [Profile(0.1, 30, start=12)]
    (expected,) = averaged(values, (0.1,))
    torch.testing.assert_close(averages.named()[0]["weight"], expected, rtol=1e-12, atol=1e-12)


def test_resuming_is_bit_exact_and_new_averages_begin():
    torch.manual_seed(3)
    values = torch.randn(20, 3, dtype=torch.float64)
    whole, network = averaged(values, (0.05, 0.1)), Vector(3)
    averages = PowerAverages(network, (0.05,))
    for step in range(1, 8):
        network.at(values[step - 1])
        averages.update(step)
    state = averages.state()
    again = PowerAverages(network, (0.2, 0.05))
    again.load(state)
    for step in range(8, 21):
        network.at(values[step - 1])
        again.update(step)
    assert again.profiles == [Profile(0.2, 20, start=8), Profile(0.05, 20)]
    assert torch.equal(again.named()[1]["weight"], whole[0])
    assert not torch.equal(again.named()[0]["weight"], whole[1])


def test_shared_parameters_are_averaged_once_and_have_both_names():
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    network[1].weight = network[0].weight
    averages = PowerAverages(network, (0.1,))
    averages.update(1)
    with torch.no_grad():
        network[0].weight.add_(1)
    averages.update(2)
    (named,) = averages.named()
    assert named.keys() == {"0.weight", "1.weight"} and named["0.weight"] is named["1.weight"]
    share = 1 - 0.5 ** (gamma(0.1) + 1)
    torch.testing.assert_close(named["0.weight"], network[0].weight - (1 - share))
    assert averages.num_bytes == 16


def test_an_update_is_one_operation_per_average_and_reads_nothing_on_the_host():
    network = nn.Sequential(*(nn.Linear(3, 3) for _ in range(20)))
    averages = PowerAverages(network, (0.05, 0.1))
    for step, expected in enumerate(("copy_.default", "lerp_.Scalar", "lerp_.Scalar"), 1):
        with Operations() as mode:
            averages.update(step)
        assert mode.names == [f"aten._foreach_{expected}"] * 2 and mode.reads == 0
    with Operations() as mode:
        PowerAverages(network, ()).update(1)
    assert mode.names == []


@pytest.mark.parametrize(
    ("options", "interval"),
    [
        ({}, 0),
        ({"posthoc_every": 7}, 0),
        ({"posthoc_ema": (0.1,)}, 50),
        ({"posthoc_ema": (0.1,), "posthoc_every": 7}, 7),
    ],
)
def test_interval_of_the_snapshots(options, interval):
    assert PosthocOptions(**options).snapshot_interval(1000) == interval
    short = PosthocOptions(**options).snapshot_interval(NUM_SNAPSHOTS - 1)
    assert short == min(interval, options.get("posthoc_every", 1))
