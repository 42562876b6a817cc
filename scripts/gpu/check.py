"""One check: a function, and the terms under which it is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class SkippedError(Exception):
    """A check that makes no sense on this machine; its text says why."""


@dataclass
class Setting:
    """What checks are run on.

    Attributes:
        device: ``cuda`` or ``cpu``.
        small: in miniature, as without a GPU.
        folder: for the files of runs.
        held: what a check keeps for the later ones of its process.
    """

    device: str
    small: bool
    folder: Path
    held: dict[str, Any] = field(default_factory=dict)

    def size(self, full: int, small: int) -> int:
        """Return a number for this setting."""
        return small if self.small else full


@dataclass(frozen=True)
class Result:
    """What a check that passed has measured: in words, and as numbers by name."""

    detail: str = ""
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A check.

    Attributes:
        part: 1 to 5.
        name: says what has to hold, with the tolerance.
        run: raises an AssertionError, or any other error, where it does not hold.
        seconds: that it takes on a GPU, at a guess; it is skipped where less time is left.
        limit: seconds after which it counts as hanging.
    """

    part: int
    name: str
    run: Callable[[Setting], Result]
    seconds: float = 5.0
    limit: float = 120.0


def require(condition: bool, detail: str) -> None:
    """Fail the check with this detail unless the condition holds."""
    if not condition:
        raise AssertionError(detail)
