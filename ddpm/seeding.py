"""Random seeds that are functions of their purpose and position, not of earlier random numbers.

Every random number has a key of its purpose and position:
``mix(seed, RandomStream.TRAIN_STEP, step, micro_step, rank)`` for a training step,
``mix(seed, RandomStream.SAMPLE, index)`` for a sample,
``mix(seed, RandomStream.AUGMENTATION, epoch, index)`` for an augmentation, and
``mix(RandomStream.SPLIT, index)``, without a seed, for the choice of the validation data. So a
resumed run, another batch size or another number of workers draws the same numbers, and checkpoints
need no state of a random generator.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt


class RandomStream(IntEnum):
    """Purposes of random numbers; as a key of :func:`mix`, each has its own stream.

    The values are part of every seed: changing one changes the results of existing runs.
    """

    DATA_ORDER = 1
    AUGMENTATION = 2
    INITIAL_WEIGHTS = 3
    TRAIN_STEP = 4
    SELF_CONDITIONING = 5
    SAMPLE = 6
    ENDPOINT = 7
    INTERPOLATION = 8
    SPLIT = 9
    VALIDATION = 10
    IMAGE_SUBSET = 11
    TIMESTEPS = 12


_WORD = 2**64 - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix_array(*keys: int | npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Mix integers, or arrays of them, into seeds in ``[0, 2**63)``.

    The finaliser is that of SplitMix64 (Steele, Lea and Flood, 2014), folded over the keys; the
    order of the keys matters.

    Args:
        keys: integers or integer arrays, which are broadcast.

    Returns:
        The seeds, uint64 in the broadcast shape of the keys.
    """
    with np.errstate(over="ignore"):
        state = np.uint64(len(keys))
        for key in keys:
            key = key & _WORD if isinstance(key, int) else key  # Python integers may exceed 64 bits
            word = np.asarray(key).astype(np.uint64)
            state = (state ^ word) + _GOLDEN
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
        return np.asarray(state >> np.uint64(1))


def mix(*keys: int) -> int:
    """Mix integers into a seed in ``[0, 2**63)`` that is the same on every machine and version."""
    return int(mix_array(*keys))
