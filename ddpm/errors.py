"""The one error that a user's mistake raises, and the one way to be told to stop."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_DATA = "data."


class _Options(dict[str, str]):
    """Names of options with a prefix."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix

    def __missing__(self, name: str) -> str:
        return f"{self.prefix}{name}"


class ConfigError(Exception):
    """A user's mistake, told in one line: which key or file, its value, and the way out.

    ``key`` is relative to the object that raises it (``dim_mults``); the code that built the
    object puts its place in the config in front (``model.dim_mults``), see :meth:`under`.
    ``problem`` says what is wrong and what to do; it is a single line.

    Data sets are also read by commands whose options have other names than those of a data node.
    Such an error has the solution apart, in ``remedy``, which names options in braces: with
    ``options`` in front, ``{image_size}`` becomes ``data.image_size``.
    """

    def __init__(
        self,
        key: str,
        value: object,
        problem: str,
        remedy: str | None = None,
        options: str = _DATA,
    ) -> None:
        super().__init__(key, value, problem, remedy, options)
        self.key, self.value, self.fault, self.remedy = key, value, problem, remedy
        self.options = options
        if remedy is not None:
            problem = f"{problem}; {remedy.format_map(_Options(options))}"
        self.problem = problem

    def renamed(self, key: str, value: object) -> ConfigError:
        """The same mistake where ``key`` stands for the path, and other options for themselves."""
        remedy = None if self.remedy is None else self.remedy.replace("{path}", f"{{{key}}}")
        return ConfigError(key, value, self.fault, remedy, "")

    def __str__(self) -> str:
        said = self.key if self.value is None else f"{self.key}={render(self.value)}"
        return " ".join(f"{said}: {self.problem}".split())

    def under(self, prefix: str) -> ConfigError:
        """The same mistake, with its key seen from one level further up."""
        options = self.options if self.options == _DATA else f"{prefix}.{self.options}"
        return ConfigError(f"{prefix}.{self.key}", self.value, self.fault, self.remedy, options)


class Advice(str):
    """A warning with a remedy, which names options as that of :class:`ConfigError` does."""

    problem: str
    remedy: str

    def __new__(cls, problem: str, remedy: str, options: str = _DATA) -> Advice:
        """Compose the line."""
        made = super().__new__(cls, f"{problem}; {remedy.format_map(_Options(options))}")
        made.problem, made.remedy = problem, remedy
        return made

    def renamed(self) -> Advice:
        """The same where options stand for themselves."""
        return Advice(self.problem, self.remedy, "")


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


def shortened(names: Iterable[object], most: int = 12, width: int = 24) -> str:
    """The names in one line; of more than ``most``, the first ones and the last.

    Longer names than ``width`` are cut, and characters that do not print are escaped.
    """
    listed = [str(name) for name in names]
    if len(listed) > most:
        listed = [*listed[: most - 2], "...", listed[-1]]
    printable = ["".join(c if c.isprintable() else repr(c)[1:-1] for c in name) for name in listed]
    return ", ".join(n if len(n) <= width else f"{n[: width - 3]}..." for n in printable)


def did_you_mean(word: str, known: Iterable[str], *, complete: bool = False) -> str:
    """``; did you mean 'x'?``, or the known words where none is near.

    With ``complete`` the known words follow in either case, once.
    """
    choices = sorted(set(known))
    every = f" (there are: {', '.join(choices)})" if choices else ""
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?{every if complete else ''}" if near else every
