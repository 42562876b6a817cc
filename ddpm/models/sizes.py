"""Networks and the size of the data: how many levels fit, and padding where too few do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from ddpm.errors import ConfigError, render

MultiplierT = TypeVar("MultiplierT", bound=float)

_SMALLEST = 4  # the longest axis of the coarsest level, where the number of levels is chosen


@dataclass(frozen=True)
class Fit:
    """Options of a network that depend on the size of the data.

    Attributes:
        pad: whether the network pads sizes that its levels cannot halve.
        options: the options that may be null, with the values in use, as plain data.
        note: a line for the user, which begins with an option of the network; None where the
            network is as for any size and nothing is padded.
    """

    pad: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    note: str | None = None


def choose_halvings(size: Sequence[int], most: int, pad: bool | None = None) -> tuple[int, bool]:
    """Return how often a network halves the size, and whether it pads the size to do so.

    1. A size that can be halved ``most`` times, as by the original's default, is halved so often.
    2. One that can be halved ``most - 1`` times loses a level and is not padded: 28x28 is halved
       twice, to 7x7.
    3. Another size is padded to the next multiple of ``2 ** (most - 1)`` and then halved as often
       as the padded size can be: 30x30 becomes 32x32, halved three times, and 49x35 becomes
       52x36, halved twice.

    In 2 and 3, halvings count as useful while they leave the longest axis at least 4 long; data
    that are too small for ``most - 1`` of them need only the useful ones: 10x10 is halved once, to
    5x5, and 7x7 is padded to 8x8 and halved once. ``pad=False`` halves as often as the size can be
    without padding. ``pad=True`` pads to the next multiple of ``2 ** most`` in step 3 and omits
    step 2.

    Args:
        size: of the axes that are halved.
        most: halvings of the original's default.
        pad: whether to pad; None to decide by the rule above.
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
    return max(n for n in range(most + 1) if n == 0 or -(-longest // 2**n) >= _SMALLEST)


def fit_levels(
    key: str,
    value: tuple[MultiplierT, ...] | None,
    default: tuple[MultiplierT, ...],
    size: Sequence[int],
    pad: bool | None,
    num_kept: int = 0,
) -> tuple[tuple[MultiplierT, ...], Fit]:
    """Return the channel multipliers of a network's levels, and what the size made of them.

    Args:
        key: the option that holds the multipliers.
        value: its value; None to choose by :func:`choose_halvings`.
        default: the multipliers of the original, of which the first are taken.
        size: of the data, without channels.
        pad: the option of this name.
        num_kept: how many of the first axes are never halved.

    Raises:
        ConfigError: levels that the size does not allow, where nothing is padded.
    """
    adapted = value is None
    if value is None:
        halvings, pad = choose_halvings(size[num_kept:], len(default) - 1, pad)
        value = default[: halvings + 1]
    elif not pad:
        check_halvings(key, value, size, num_kept)
    options = {key: list(value), "pad": bool(pad)}
    factors = (1,) * num_kept + (2 ** (len(value) - 1),) * (len(size) - num_kept)
    said = f"{key}={render(value)}" if adapted else "pad=true"
    rest = ""
    if adapted and len(value) < len(default):
        rest = f"; sizes divisible by {2 ** (len(default) - 1)} have {render(default)}"
    note = padding_note(said, size, factors)
    if note is None and rest:
        note = f"{said} for {describe_size(size)}"
    return value, Fit(bool(pad), options, None if note is None else f"{note}{rest}")


def padding_note(said: str, size: Sequence[int], factors: Sequence[int]) -> str | None:
    """Return a line about the padding of a size; None where it is not padded."""
    padded = padded_size(size, factors)
    if padded == tuple(size):
        return None
    return f"{said} for {describe_size(size)}, padded to {_times(padded)} inside the network"


def padded_size(size: Sequence[int], factors: Sequence[int]) -> tuple[int, ...]:
    """Return the size with each axis rounded up to a multiple of its factor."""
    return tuple(-(-n // factor) * factor for n, factor in zip(size, factors, strict=True))


def pad_to_multiple(x: Tensor, factors: Sequence[int]) -> Tensor:
    """Mirror ``(B, C, *spatial)`` at its edges until each axis is a multiple of its factor.

    Both sides get the same number of positions, the far one the odd one. Mirror images keep the
    statistics of noise and data, which zeros and repeated edges do not; the edge itself is
    mirrored too, so that axes of any length can be padded. A size that fits comes back as it is.
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
    """Return the middle of ``(B, C, *spatial)``: undo :func:`pad_to_multiple`."""
    for axis, length in enumerate(size, start=2):
        if x.shape[axis] != length:
            x = x.narrow(axis, (x.shape[axis] - length) // 2, length)
    return x


def describe_size(size: Sequence[int]) -> str:
    """``sequences of length 64``, ``images of 32x32`` or ``videos of 8x32x32``."""
    what = {1: "sequences of length", 2: "images of", 3: "videos of"}
    return f"{what.get(len(size), 'data of')} {_times(size)}"


def check_halvings(
    key: str, value: Sequence[float], size: Sequence[int], num_kept: int = 0
) -> None:
    """Raise ConfigError unless all but the first ``num_kept`` axes can be halved between levels."""
    factor = 2 ** (len(value) - 1)
    halved = size[num_kept:]
    if any(n % factor for n in halved):
        setting = "set data.image_size to" if len(size) == 2 else "bring the data's size to"
        raise ConfigError(
            key,
            value,
            f"{len(value)} levels halve the size {len(value) - 1} times, but "
            f"{_times(halved)} is not divisible by {factor}; "
            f"{setting} a multiple of {factor}, shorten {key} or set pad=true",
        )


def _times(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
