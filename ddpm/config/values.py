"""Typed values of options: text that looks like a number stays text, and ``~`` is expanded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm.errors import ConfigError, require
from ddpm.files import expand

PATHS = frozenset(
    {
        *("a", "b", "cache", "ckpt", "condition", "ema", "file", "guide", "out", "reference"),
        *("init.ckpt", "resume", "runs", "samples", "data.path"),
        *("extractor.path", "extractor.weights"),
        *("evaluation.guide", "evaluation.reference"),
        *("evaluation.extractor.path", "evaluation.extractor.weights"),
        *("hydra.run.dir", "hydra.sweep.dir"),
    }
)
"""Options that name files or folders."""
TEXT = PATHS | {
    *("name", "version", "recipe", "push"),
    *("data.key", "classes", "evaluation.classes"),
}
"""Options whose values are text, even if they look like numbers."""
SEEDS = frozenset({"a", "b"})  # a whole number is the seed of a sample
RESERVED = {
    "latest": "the link to the last run; to resume that run, use resume={out}/latest",
    "multirun": "the folder of sweeps; use another name",
    "references": "the folder of reference statistics; use another name",
}
_PAIRS = {"[": "]", "(": ")", "{": "}"}


def literal(key: str, value: str, *, sweep: bool) -> str:
    """Return a typed value in a form that Hydra's grammar reads as intended.

    Values with characters that the grammar accepts in quotes only are quoted: accents, ``~``,
    ``=``, and parentheses other than those of its functions. Text that the grammar would read as a
    number or a truth value is quoted too. In paths, a leading ``~`` is expanded.

    Args:
        key: name of the option.
        value: as typed; not empty.
        sweep: True if commas separate the values of a sweep.
    """
    parts = _split(value) if sweep else [value]
    return ",".join(_element(key, part) if part else part for part in parts)


def _element(key: str, value: str) -> str:
    if key in TEXT and value.startswith("[") and value.endswith("]") and value != "[]":
        return f"[{','.join(_element(key, each.strip()) for each in _split(value[1:-1]))}]"
    if value[:1] in ("", "'", '"', "[", "{"):
        return value
    text = expand(key, value) if key in PATHS else value
    called = re.fullmatch(r"\w+\(.*\)", text)
    strange = not text.isascii() or re.search(r"[~=]", text) or ("(" in text and not called)
    if text != value or strange or (key in TEXT and _is_number(text, seed=key in SEEDS)):
        return quoted(text)
    return value


def quoted(text: str) -> str:
    """Return a text in the quotes of Hydra's grammar; see :func:`as_typed` for the reverse."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def option_key(override: str) -> str:
    """Return the key of an option as typed: ``trainer.lr`` of ``++trainer.lr=1e-4``."""
    return override.lstrip("+~").partition("=")[0]


def as_typed(text: str) -> str:
    """Return the text of an option, or of its value, without the quotes of :func:`literal`."""
    return re.sub(r'"((?:[^"\\]|\\.)*)"', lambda match: re.sub(r"\\(.)", r"\1", match[1]), text)


def _is_number(text: str, *, seed: bool) -> bool:
    """Return True if Hydra reads a text as a number or a truth value, other than a seed."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        read = OverridesParser.create().parse_override(f"x={text}").value()
    except HydraException:
        return False
    return isinstance(read, (int, float)) and not (seed and type(read) is int)


def _split(text: str) -> list[str]:
    """Split at commas outside of quotes and brackets."""
    parts, start, closing, quote = [], 0, [], ""
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote and text[at - 1] != "\\" else quote
        elif letter in "'\"":
            quote = letter
        elif letter in _PAIRS:
            closing.append(_PAIRS[letter])
        elif closing and letter == closing[-1]:
            closing.pop()
        elif letter == "," and not closing:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def expanded(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a config in which the leading ``~`` of every path is expanded.

    Raises:
        ConfigError: the home directory of the current user is unknown.
    """
    return {name: _expanded(f"{prefix}{name}", value) for name, value in options.items()}


def _expanded(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return expanded(value, f"{key}.")
    if key not in PATHS:
        return value
    if isinstance(value, list):
        return [expand(key, each) if isinstance(each, str) else each for each in value]
    return expand(key, value) if isinstance(value, str) else value


def check_run_name(name: str, out: str) -> None:
    """Check that the name of a run is that of a folder of its own in ``out``.

    Raises:
        ConfigError: a path, or a reserved name.
    """
    problem = "is the name of one folder, without / in it; its parent is out="
    require(name not in ("", "..") and Path(name).name == name, "name", name, problem)
    if name in RESERVED:
        raise ConfigError("name", name, f"is {RESERVED[name].format(out=out)}")
