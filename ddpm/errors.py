"""The one error that a user's mistake raises, and the one way to be told to stop."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(Exception):
    """A user's mistake, told in one line: which key or file, its value, and the way out.

    ``key`` is relative to the object that raises it (``dim_mults``); the code that built the
    object puts its place in the config in front (``model.dim_mults``), see :meth:`under`.
    ``problem`` says what is wrong and what to do; it is a single line.
    """

    def __init__(self, key: str, value: object, problem: str) -> None:
        super().__init__(key, value, problem)
        self.key, self.value, self.problem = key, value, problem

    def __str__(self) -> str:
        said = self.key if self.value is None else f"{self.key}={render(self.value)}"
        return " ".join(f"{said}: {self.problem}".split())

    def under(self, prefix: str) -> ConfigError:
        """The same mistake, with its key seen from one level further up."""
        return ConfigError(f"{prefix}.{self.key}", self.value, self.problem)


class Stopped(BaseException):
    """A signal asked to stop and nothing is lost: exit status 75, "run me again".

    No Exception, so that whoever handles failures, such as Hydra, does not take it for one.
    """


def require(condition: bool, key: str, value: object, problem: str) -> None:
    """Raise :class:`ConfigError` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(key, value, problem)


def render(value: object) -> str:
    """A value the way it is typed on the command line: ``[1,2]``, ``null``, ``true``."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(render(item) for item in value) + "]"
    return str(value)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or the known words where none is near."""
    choices = sorted(set(known))
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f" (there are: {', '.join(choices)})" if choices else ""
