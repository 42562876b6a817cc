"""Standard normal noise of samples, a function of the seed of a sample and of the draw only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ddpm.seeding import mix_array

# Numbers per thread and per sample, below which another thread costs more time than it saves.
_PER_THREAD, _PER_SAMPLE = 2**18, 2**14
_WORD = 2**32 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of SplitMix64


class SampleNoise:
    """Standard normal noise that depends on neither batch size, order nor number of processes.

    The k-th noise of a sample is a function of its seed and k. On a CPU each sample has a random
    generator, and the threads of torch share the samples. On other devices all samples are drawn
    at once by :func:`counter_normal`.

    Args:
        seeds: (B,), 0 to 2**63 - 1, one per sample of the batch.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = np.array(seeds, dtype=np.uint64)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._num_drawn = 0  # by the counter-based generator

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """Return the next noise (B, *shape) of the random generators, float32 on the CPU.

        It is the same for all devices that the samples are drawn on.
        """
        noise = torch.empty(len(self.generators), *shape)
        pairs = list(zip(noise.unbind(), self.generators, strict=True))
        threads = min(torch.get_num_threads(), len(pairs), noise.numel() // _PER_THREAD)
        if threads < 2 or math.prod(shape) < _PER_SAMPLE:  # threads would wait for the GIL
            _fill(pairs)
            return noise
        with ThreadPoolExecutor(threads - 1) as pool:
            others = [pool.submit(_fill, pairs[first::threads]) for first in range(1, threads)]
            _fill(pairs[::threads])
        for each in others:
            each.result()
        return noise

    def like(self, x: Tensor) -> Tensor:
        """Return the next noise in the shape of ``x`` (B, ...), float32 on its device."""
        if x.device.type == "cpu":
            return self.draw(tuple(x.shape[1:]))
        keys = mix_array(self.seeds, self._num_drawn)
        self._num_drawn += 1
        return counter_normal(keys, tuple(x.shape[1:]), x.device)


@torch.inference_mode()
def _fill(pairs: Sequence[tuple[Tensor, torch.Generator]]) -> None:
    """Draw samples in place, each with its generator; torch releases the GIL meanwhile."""
    for sample, generator in pairs:
        sample.normal_(generator=generator)


def counter_normal(
    keys: npt.NDArray[np.uint64], shape: tuple[int, ...], device: torch.device | str
) -> Tensor:
    """Return standard normal noise (B, *shape), float32 on a device.

    Row i is a function of ``keys[i]`` only. Two numbers of it come from 64 bits by the transform of
    Box and Muller; these are the finaliser of SplitMix64 at the key plus an entry of a table of
    random words, so that rows do not overlap. The number of operations does not depend on B.

    Args:
        keys: (B,), random bits.
        shape: of a sample.
        device: of the noise.
    """
    size, device = math.prod(shape), torch.device(device)
    rows = torch.from_numpy(keys.astype(np.int64)).to(device)
    bits = _finalised(rows.reshape(-1, 1) + _table((size + 1) // 2, device))
    radius = _as_float(bits >> 32).add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = _as_float(bits).mul_(2 * math.pi * 2.0**-32)
    noise = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return noise[:, :size].reshape(len(keys), *shape)


def _as_float(words: Tensor) -> Tensor:
    """Return the lower 32 bits as float32, 0 to 2**32."""
    return (words & _WORD).to(torch.float32)


@lru_cache(maxsize=4)
def _table(length: int, device: torch.device) -> Tensor:
    """Return random words (length,), int64."""
    return _finalised(torch.arange(1, length + 1, device=device) * _signed(_GOLDEN))


def _finalised(words: Tensor) -> Tensor:
    """Apply the finaliser of SplitMix64 to int64 words in place."""
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        words.bitwise_xor_(_shifted(words, shift)).mul_(_signed(factor))
    return words.bitwise_xor_(_shifted(words, 31))


def _shifted(words: Tensor, shift: int) -> Tensor:
    """Return words shifted to the right, filled with zeros."""
    return (words >> shift).bitwise_and_((1 << (64 - shift)) - 1)


def _signed(word: int) -> int:
    """Return the signed integer of the same 64 bits."""
    return word - 2**64 if word >= 2**63 else word
