"""Random numbers that are functions of names, not of history.

Whatever is random is keyed by what it is for: ``mix(seed, For.STEP, step, micro_step, rank)`` for
a training step, ``mix(seed, For.SAMPLE, index)`` for a sample, ``mix(seed, For.AUGMENTATION, epoch,
index)`` for an augmentation, ``mix(For.SPLIT, index)``, without a seed, for what is held out of
training. So a resumed run, another batch size or another number of workers draws the same numbers,
and no state of a random generator has to be stored.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt


class For(IntEnum):
    """What a random number is for; the second key, so that no two purposes share a stream."""

    ORDER = 1
    AUGMENTATION = 2
    WEIGHTS = 3
    STEP = 4
    SELF_CONDITIONING = 5
    SAMPLE = 6
    END = 7
    FRAMES = 8
    SPLIT = 9
    HELD_OUT = 10
    CHOICE = 11


_WORD = 2**64 - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix_array(*keys: int | npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Mix integers, or arrays of them that broadcast, into 63-bit seeds.

    The finaliser is that of SplitMix64 (Steele, Lea and Flood, 2014), folded over the keys; the
    order of the keys matters. The result has the broadcast shape of the keys.
    """
    with np.errstate(over="ignore"):
        state = np.uint64(len(keys))
        for key in keys:
            key = key & _WORD if isinstance(key, int) else key  # of any size
            word = np.asarray(key).astype(np.uint64)
            state = (state ^ word) + _GOLDEN
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
        return np.asarray(state >> np.uint64(1))


def mix(*keys: int) -> int:
    """Mix integers into one seed in ``[0, 2**63)``, the same on every machine and version."""
    return int(mix_array(*keys))
