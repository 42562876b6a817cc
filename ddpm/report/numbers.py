"""Numbers as HTML."""

from __future__ import annotations

import math

from markupsafe import Markup


def number(value: float, error: float | None = None) -> Markup:
    """Return a number with its standard error as HTML: ``3.17 ± 0.12``.

    The error has two significant digits, and the value ends at the same decimal place. A value
    without an error has four significant digits. Very small and very large numbers are written
    with a power of ten.
    """
    if error is None or not math.isfinite(value):
        return Markup(_single(value))
    if not math.isfinite(error) or error <= 0:
        return Markup(_with_error(_single(value), _single(error)))
    decimals = 1 - _exponent(error, 1)
    if decimals <= 6 and abs(value) < 1e7:
        places = max(0, decimals)
        return Markup(_with_error(_fixed(value, places), _fixed(error, places)))
    power = _exponent(max(abs(value), error), 3)
    places, scale = max(0, decimals + power), 10.0**power
    pair = _with_error(_fixed(value / scale, places), _fixed(error / scale, places))
    return Markup(f"({pair}){_times_power_of_ten(power)}")


def _single(value: float) -> str:
    if not math.isfinite(value):
        return _signed(value)
    if isinstance(value, int) or value == 0:
        return _fixed(value, 0)
    power = _exponent(value, 3)
    if -5 < power < 7:
        return _fixed(value, max(0, 3 - power))
    return f"{_fixed(value / 10.0**power, 3)}{_times_power_of_ten(power)}"


def _with_error(value: str, error: str) -> str:
    return f'{value} <span class="se">± {error}</span>'


def _times_power_of_ten(power: int) -> str:
    return f" × 10<sup>{_signed(power)}</sup>"


def _exponent(value: float, decimals: int) -> int:
    """Return the decimal exponent of a value that is rounded to ``1 + decimals`` digits."""
    return int(f"{value:.{decimals}e}".partition("e")[2])


def _fixed(value: float, places: int) -> str:
    return _signed(f"{value:,.{places}f}")


def _signed(value: object) -> str:
    return str(value).replace("-", "\u2212")
