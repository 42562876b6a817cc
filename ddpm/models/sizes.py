"""Adaptation of networks to the size of the data: the number of levels, and padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from ddpm.errors import ConfigError, render

MultiplierT = TypeVar("MultiplierT", bound=float)

_MIN_LENGTH = 4  # of the longest axis at the coarsest level, if the number of levels is chosen


@dataclass(frozen=True)
class Fit:
    """Options of a network that depend on the size of the data.

    Attributes:
        pad: whether the network pads sizes that its levels cannot halve.
        options: the values in use of the options that may be null, as plain data.
        note: a line for the user, which begins with an option of the network; None if the number
            of levels is the default and nothing is padded.
    """

    pad: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    note: str | None = None


def choose_halvings(size: Sequence[int], most: int, pad: bool | None = None) -> tuple[int, bool]:
    """Return the number of times that a network halves the size, and whether it pads first.

    1. A size that is divisible by ``2 ** most`` is halved ``most`` times.
    2. A size that is divisible by ``2 ** (most - 1)`` is halved ``most - 1`` times, without
       padding: 28x28 is halved twice, to 7x7.
    3. Another size is padded to the next multiple of ``2 ** (most - 1)``, then halved as often as
       the padded size allows: 30x30 becomes 32x32, halved three times, and 49x35 becomes 52x36,
       halved twice.

    In steps 2 and 3, small data need fewer halvings: only those that leave the longest axis at
    least 4 long. 10x10 is halved once, to 5x5, and 7x7 is padded to 8x8 and halved once.
    ``pad=False`` halves as often as the size allows without padding. ``pad=True`` omits step 2, and
    pads to the next multiple of ``2 ** most`` in step 3.

    Args:
        size: lengths of the axes to halve.
        most: number of halvings of the network's default configuration.
        pad: whether to pad; None to choose as above.
    """
    exact = _exact_halvings(size, most)
    needed = _useful_halvings(size, most if pad else most - 1)
    if pad is False or exact >= needed:
        return exact, bool(pad)
    padded = padded_size(size, (2**needed,) * len(size))
    return min(_exact_halvings(padded, most), _useful_halvings(padded, most)), True


def _exact_halvings(size: Sequence[int], most: int) -> int:
    return max(n for n in range(most + 1) if not any(length % 2**n for length in size))


def _useful_halvings(size: Sequence[int], most: int) -> int:
    longest = max(size)
    return max(n for n in range(most + 1) if n == 0 or -(-longest // 2**n) >= _MIN_LENGTH)


def fit_levels(
    key: str,
    value: tuple[MultiplierT, ...] | None,
    default: tuple[MultiplierT, ...],
    size: Sequence[int],
    pad: bool | None,
    num_fixed_axes: int = 0,
) -> tuple[tuple[MultiplierT, ...], Fit]:
    """Return the channel multiplier of each level of a network, and its adaptation to the size.

    Args:
        key: name of the option that holds the multipliers.
        value: value of that option; None to choose the number by :func:`choose_halvings`.
        default: multipliers of the default configuration; a smaller network has the first of these.
        size: spatial size of the data.
        pad: value of the option ``pad``.
        num_fixed_axes: number of leading axes that are never halved.

    Raises:
        ConfigError: the size is not divisible as often as ``value`` requires, and is not padded.
    """
    adapted = value is None
    if value is None:
        halvings, pad = choose_halvings(size[num_fixed_axes:], len(default) - 1, pad)
        value = default[: halvings + 1]
    elif not pad:
        check_halvings(key, value, size, num_fixed_axes)
    options = {key: list(value), "pad": bool(pad)}
    factors = (1,) * num_fixed_axes + (2 ** (len(value) - 1),) * (len(size) - num_fixed_axes)
    setting = f"{key}={render(value)}" if adapted else "pad=true"
    rest = ""
    if adapted and len(value) < len(default):
        rest = f"; sizes divisible by {2 ** (len(default) - 1)} have {render(default)}"
    note = padding_note(setting, size, factors)
    if note is None and rest:
        note = f"{setting} for {describe_size(size)}"
    return value, Fit(bool(pad), options, None if note is None else f"{note}{rest}")


def padding_note(setting: str, size: Sequence[int], factors: Sequence[int]) -> str | None:
    """Return a line about the padding of a size, which begins with ``setting``; None without."""
    padded = padded_size(size, factors)
    if padded == tuple(size):
        return None
    return f"{setting} for {describe_size(size)}, padded to {_times(padded)} inside the network"


def padded_size(size: Sequence[int], factors: Sequence[int]) -> tuple[int, ...]:
    """Return the size with each axis rounded up to a multiple of its factor."""
    return tuple(-(-n // factor) * factor for n, factor in zip(size, factors, strict=True))


def pad_to_multiple(x: Tensor, factors: Sequence[int]) -> Tensor:
    """Pad ``(B, C, *spatial)`` by reflection until each axis is a multiple of its factor.

    Both sides of an axis receive the same number of positions; an odd one goes to the end.
    Reflection preserves the statistics of noise and data, unlike zeros and repeated edges. The edge
    itself is repeated (symmetric reflection), so that axes of any length can be padded.
    """
    sizes = tuple(x.shape[2:])
    for axis, (length, padded) in enumerate(
        zip(sizes, padded_size(sizes, factors), strict=True), start=2
    ):
        if padded != length:
            before = (padded - length) // 2
            at = torch.arange(-before, padded - before, device=x.device) % (2 * length)
            x = x.index_select(axis, torch.minimum(at, 2 * length - 1 - at))
    return x


def crop_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Crop ``(B, C, *spatial)`` at the centre to ``size``: undo :func:`pad_to_multiple`."""
    for axis, length in enumerate(size, start=2):
        if x.shape[axis] != length:
            x = x.narrow(axis, (x.shape[axis] - length) // 2, length)
    return x


def describe_size(size: Sequence[int]) -> str:
    """Return a phrase like ``sequences of length 64``, ``images of 32x32``."""
    what = {1: "sequences of length", 2: "images of", 3: "videos of"}
    return f"{what.get(len(size), 'data of')} {_times(size)}"


def check_halvings(
    key: str, value: Sequence[float], size: Sequence[int], num_fixed_axes: int = 0
) -> None:
    """Raise ConfigError unless all axes after ``num_fixed_axes`` can be halved between levels.

    Args:
        key: name of the option that holds one value per level.
        value: value of that option.
        size: spatial size of the data.
        num_fixed_axes: number of leading axes that are not halved.
    """
    factor = 2 ** (len(value) - 1)
    halved = size[num_fixed_axes:]
    if any(n % factor for n in halved):
        remedy = "set data.image_size to" if len(size) == 2 else "resize the data to"
        raise ConfigError(
            key,
            value,
            f"{len(value)} levels halve the size {len(value) - 1} times, but "
            f"{_times(halved)} is not divisible by {factor}; "
            f"{remedy} a multiple of {factor}, shorten {key} or set pad=true",
        )


def _times(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
