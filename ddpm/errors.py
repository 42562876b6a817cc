"""ConfigError, for errors in a config or in a user's files, and Stopped, for signals."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Self

_DATA = "data."


def _with_options(remedy: str, prefix: str) -> str:
    """Return a remedy whose options in braces have a prefix."""
    return re.sub(r"\{([a-z_]+)\}", rf"{prefix}\1", remedy)


class ConfigError(Exception):
    """An error in the config or in a file that it names: ``key=value: problem; remedy``.

    Data sets are also read by commands whose options have other names than those of a data node.
    The remedy of such an error names options in braces: ``{image_size}`` is ``data.image_size``
    in training and ``image_size`` in :meth:`renamed` errors.

    Attributes:
        key: the option, or a file. Relative to the object that raises the error (``dim_mults``)
            until :meth:`under` adds the name of its config node (``model.dim_mults``).
        value: of the option; None if the message names the key alone.
        problem: a description of the error. It may end with a remedy that no other module needs.
        remedy: what to change, or None.
    """

    def __init__(
        self,
        key: str,
        value: object,
        problem: str,
        remedy: str | None = None,
        *,
        absolute: bool = False,
    ) -> None:
        """Create the error; ``absolute`` keys have the names of their config nodes already."""
        super().__init__(key, value, problem, remedy)
        self.key, self.value, self.problem, self.remedy = key, value, problem, remedy
        self._absolute, self._prefix = absolute, _DATA

    @property
    def message(self) -> str:
        """The problem and the remedy."""
        if self.remedy is None:
            return self.problem
        return f"{self.problem}; {_with_options(self.remedy, self._prefix)}"

    def __str__(self) -> str:
        subject = self.key if self.value is None else f"{self.key}={render(self.value)}"
        return " ".join(f"{subject}: {self.message}".split())

    def under(self, prefix: str) -> Self:
        """Return the error with a config node in front of its key."""
        if self._absolute:
            return self
        error = copy(self)
        error.key = f"{prefix}.{self.key}"
        if self._prefix != _DATA:
            error._prefix = f"{prefix}.{self._prefix}"
        return error

    def renamed(self, key: str, value: object) -> Self:
        """Return the error of a command where the option ``key`` holds the path or value.

        In the remedy ``{path}`` becomes ``key``, and other options have no prefix.
        """
        error = copy(self)
        error.key, error.value, error._prefix = key, value, ""
        if self.remedy is not None:
            error.remedy = self.remedy.replace("{path}", f"{{{key}}}")
        return error

    def replaced(self, problem: str, remedy: str | None = None) -> Self:
        """Return the error of the same option with another description."""
        error = copy(self)
        error.problem, error.remedy = problem, remedy
        return error


@contextmanager
def reported_as(names: Mapping[str, str]) -> Iterator[None]:
    """Report errors of options by the names that the user typed.

    Args:
        names: option to typed name, such as ``sampler.steps`` to ``steps``.
    """
    try:
        yield
    except ConfigError as error:
        if error.key not in names:
            raise
        raise error.renamed(names[error.key], error.value) from error


class Advice(str):
    """A warning with a remedy that names options as that of :class:`ConfigError` does."""

    problem: str
    remedy: str

    def __new__(cls, problem: str, remedy: str, prefix: str = _DATA) -> Advice:
        """Compose the line; ``prefix`` goes before the options."""
        advice = super().__new__(cls, f"{problem}; {_with_options(remedy, prefix)}")
        advice.problem, advice.remedy = problem, remedy
        return advice

    def renamed(self) -> Advice:
        """Return the warning of a command whose options have no prefix."""
        return Advice(self.problem, self.remedy, "")


class Stopped(BaseException):
    """A signal stopped the command, and no work is lost: exit status 75 (EX_TEMPFAIL).

    It does not derive from Exception, so that Hydra and other handlers of failures let it pass.
    """


def require(
    condition: bool, key: str, value: object, problem: str, remedy: str | None = None
) -> None:
    """Raise :class:`ConfigError` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(key, value, problem, remedy)


def render(value: object) -> str:
    """Return a value as it is typed on the command line: ``[1,2]``, ``null``, ``true``."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(render(item) for item in value) + "]"
    return str(value)


def shortened(names: Iterable[object], most: int = 12, width: int = 24) -> str:
    """Return names in one line; of more than ``most``, the first ones and the last.

    Names longer than ``width`` are cut, and characters that are not printable are escaped.
    """
    listed = [str(name) for name in names]
    if len(listed) > most:
        listed = [*listed[: most - 2], "...", listed[-1]]
    printable = ["".join(c if c.isprintable() else repr(c)[1:-1] for c in name) for name in listed]
    return ", ".join(n if len(n) <= width else f"{n[: width - 3]}..." for n in printable)


def did_you_mean(word: str, choices: Iterable[str], *, complete: bool = False) -> str:
    """Return ``; did you mean 'x'?``, or the list of choices if none is similar.

    With ``complete`` the list follows in either case.
    """
    ordered = sorted(set(choices))
    every = f" (there are: {', '.join(ordered)})" if ordered else ""
    near = most_similar(word, ordered)
    return every if near is None else f"; did you mean '{near}'?{every if complete else ''}"


def most_similar(word: str, choices: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the choice that is most similar to a word; None below a similarity of ``cutoff``."""
    import difflib  # --help does without it

    return next(iter(difflib.get_close_matches(word, list(choices), n=1, cutoff=cutoff)), None)
