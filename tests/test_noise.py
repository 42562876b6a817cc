"""Noise of samples: independent of the batch, standard normal, uncorrelated."""

import math

import numpy as np
import pytest
import torch

from ddpm.noise import SampleNoise, counter_normal
from ddpm.seeding import mix, mix_array

SHAPE = (3, 32, 43)  # an odd number of values


def by_generators(seeds, draw=0):
    noise = SampleNoise(seeds)
    for _ in range(draw):
        noise.draw(SHAPE)
    return noise.draw(SHAPE)


def by_counters(seeds, draw=0):
    return counter_normal(mix_array(list(seeds), draw), SHAPE, "cpu")


METHODS = pytest.mark.parametrize("method", [by_generators, by_counters])


@METHODS
def test_the_noise_of_a_sample_depends_on_its_seed_and_the_draw_only(method):
    whole = method(range(7), draw=2)
    assert whole.shape == (7, *SHAPE) and whole.dtype == torch.float32
    assert torch.equal(method([5, 2], draw=2), whole[[5, 2]])
    assert not torch.equal(method([5], draw=1), whole[5:6])


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_the_numbers(threads):
    """Nor did earlier versions draw others, sample by sample."""
    before, count, shape = torch.get_num_threads(), 5, (4, 64, 1024)
    noise, expected = SampleNoise(range(count)), []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        expected.append([torch.randn(shape, generator=generator) for _ in range(2)])
    try:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            drawn = [noise.draw(shape), noise.like(torch.empty(count, *shape))]
    finally:
        torch.set_num_threads(before)
    for got, parts in zip(drawn, zip(*expected, strict=True), strict=True):
        assert torch.equal(got, torch.stack(parts))


def test_devices_other_than_a_cpu_draw_by_counters(monkeypatch):
    keys = []

    def recorded(key, shape, device):
        keys.append(key.tolist())
        return torch.empty(len(key), *shape, device=device)

    monkeypatch.setattr("ddpm.noise.counter_normal", recorded)
    noise, x = SampleNoise([4, 9]), torch.empty(2, *SHAPE, device="meta")
    noise.draw((1,))  # the start of a path, which does not count
    assert [noise.like(x).shape for _ in range(2)] == [x.shape] * 2
    assert keys == [[mix(4, k), mix(9, k)] for k in range(2)]


def test_no_samples_have_no_noise():
    assert SampleNoise([]).draw((2, 3)).shape == (0, 2, 3)
    assert counter_normal(mix_array([], 0), (2, 3), "cpu").shape == (0, 2, 3)


@METHODS
def test_noise_is_standard_normal(method):
    """Moments are within 4 standard errors, the Kolmogorov-Smirnov distance at the 0.1 % level."""
    z = method(range(100)).double().flatten()
    n = len(z)
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs(float((z**power).mean()) - moment) < 4 * math.sqrt(variance / n)
    ordered = torch.special.ndtr(z.sort().values)
    ranks = torch.arange(n, dtype=torch.float64) / n
    distance = torch.maximum((ordered - ranks).abs(), (ordered - ranks - 1 / n).abs()).max()
    assert float(distance) < 1.95 / math.sqrt(n)
    assert 4.2 < float(z.abs().max()) < 6.8


@METHODS
def test_samples_draws_and_neighbours_are_not_correlated(method):
    """All correlations, also of squares, are within 5 standard errors of 0."""
    rows = method(range(60)).double().flatten(1)
    draws = torch.cat([method([3], draw=k).double().flatten(1) for k in range(20)])
    for z in (rows, draws, rows**2 - 1, draws**2 - 1):
        unit = (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True)
        between = (unit @ unit.T) / z.shape[1] - torch.eye(len(z), dtype=z.dtype)
        assert float(between.abs().max()) < 5 / math.sqrt(z.shape[1])
    flat, half = rows.flatten(), (rows.shape[1] + 1) // 2
    for lag in (1, 2, 16, half, rows.shape[1]):  # half: the pairs of Box and Muller
        for z in (flat, flat**2 - 1):
            deviation = float(z.square().mean())
            assert abs(float((z[lag:] * z[:-lag]).mean())) / deviation < 5 / math.sqrt(len(z))


def test_keys_that_differ_in_a_bit_give_unrelated_noise():
    keys = np.array([0, *(1 << bit for bit in range(63))], dtype=np.uint64)
    z = counter_normal(keys, (4000,), "cpu").double()
    assert float((z[1:] @ z[0] / 4000).abs().max()) < 5 / math.sqrt(4000)
    assert len(set(mix_array(range(1000), 0).tolist())) == 1000
