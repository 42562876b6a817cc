"""A check: a function with its time limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class SkippedError(Exception):
    """A check that does not apply to this machine; the text is the reason."""


@dataclass
class Setting:
    """Device and scale of the checks.

    Attributes:
        device: ``cuda`` or ``cpu``.
        small: in miniature, as without a GPU.
        folder: for the files of runs.
        shared: results that a check stores for later ones of its process.
    """

    device: str
    small: bool
    folder: Path
    shared: dict[str, Any] = field(default_factory=dict)

    def size(self, full: int, small: int) -> int:
        """Return ``full``, or ``small`` in miniature."""
        return small if self.small else full


@dataclass(frozen=True)
class Result:
    """Measurements of a check that passed: a text, and numbers by name."""

    detail: str = ""
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A check.

    Attributes:
        part: 1 to 5.
        name: the property that is checked, with the tolerance.
        run: raises an AssertionError, or any other error, if the check fails.
        seconds: expected duration on a GPU; the check is skipped if less time is left.
        limit: seconds after which it counts as hanging.
    """

    part: int
    name: str
    run: Callable[[Setting], Result]
    seconds: float = 5.0
    limit: float = 120.0


def require(condition: bool, detail: str) -> None:
    """Raise AssertionError with this detail unless the condition holds."""
    if not condition:
        raise AssertionError(detail)
