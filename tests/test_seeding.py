"""Seeds: functions of their keys that never change, so that results can be reproduced."""

import numpy as np
import pytest

from ddpm.seeding import mix, mix_array

MASK = (1 << 64) - 1


def splitmix(*keys):
    """Return the seed by its definition, in Python integers."""
    state = len(keys)
    for key in keys:
        state = ((state ^ (key & MASK)) + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state >> 1


def test_the_published_first_output_of_splitmix64_with_seed_0():
    assert mix(1) == 0xE220A8397B1DCDAF >> 1  # the key is combined with the number of keys, 1


@pytest.mark.parametrize(
    ("keys", "seed"),
    [
        ((), 0),
        ((0,), 5225608189600411232),
        ((0, 0), 3617558351911305818),
        ((42, 7, 0, 3), 7279399457900145865),
        ((-1, 2**62), 566755847342637780),
    ],
)
def test_mix_never_changes(keys, seed):
    assert mix(*keys) == seed == splitmix(*keys)


def test_mix_depends_on_order_and_on_the_number_of_keys():
    seeds = [mix(1, 2), mix(2, 1), mix(1), mix(2), mix(1, 2, 0), mix(0, 1, 2), mix(1, 0), mix(0, 1)]
    assert len(set(seeds)) == len(seeds)


def test_arrays_and_scalars_give_equal_results():
    seeds = np.array([[0], [5], [-3]])
    index = np.arange(7)
    mixed = mix_array(seeds, 9, index)
    assert mixed.shape == (3, 7)
    assert mixed.dtype == np.uint64
    for row, seed in enumerate([0, 5, -3]):
        assert [int(value) for value in mixed[row]] == [mix(seed, 9, i) for i in range(7)]


def test_a_seed_can_be_a_key():
    large = mix(3)
    assert 0 <= large < 2**63
    assert mix(large, 1) == splitmix(large, 1)


def test_a_million_pairs_do_not_collide():
    mixed = mix_array(np.arange(1000)[:, None], np.arange(1000)[None, :]).ravel()
    assert len(np.unique(mixed)) == 1_000_000
    assert int(mixed.max()) < 2**63
    # Each of the 63 bits is set in half of the seeds.
    for bit in range(63):
        share = float(((mixed >> np.uint64(bit)) & np.uint64(1)).mean())
        assert abs(share - 0.5) < 5 * 0.5 / 1000, bit
