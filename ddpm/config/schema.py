"""Types of options: values compared with the annotations of constructors and functions."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ddpm import synonyms
from ddpm.errors import ConfigError, did_you_mean, render, require

Config = Mapping[str, Any]


def check(
    options: Config,
    target: Callable[..., Any],
    key: str = "",
    *,
    hint: Callable[[str, object], str] | None = None,
) -> dict[str, Any]:
    """Return options, validated and converted by the keyword-only parameters of ``target``.

    Args:
        options: by name.
        target: a function or a class.
        key: of the group in the config; empty for the root.
        hint: returns the end of the message about an unknown option from its key and value;
            default :func:`ddpm.synonyms.hint`.

    Raises:
        ConfigError: an unknown or missing option, or a value of the wrong type.
    """
    prefix = f"{key}." if key else ""
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for name, value in options.items():
        if name not in parameters:
            names = [f"{prefix}{parameter}" for parameter in parameters]
            full = f"{prefix}{name}"
            end = synonyms.hint(full, render(value), names) if hint is None else hint(full, value)
            raise ConfigError(full, value, f"unknown option{end}")
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and options.get(name, "???") == "???":
            raise ConfigError(f"{prefix}{name}", None, f"is missing; add {prefix}{name}=...")
    hints = hints_of(target)
    return {name: typed(value, hints[name], f"{prefix}{name}") for name, value in options.items()}


def hints_of(target: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of the parameters of a function or a class.

    Those of a dataclass, which may inherit fields, are its annotations.
    """
    if not inspect.isclass(target):
        return get_type_hints(target)
    owner = next(base for base in target.__mro__ if "__init__" in vars(base))
    return get_type_hints(owner if "__dataclass_fields__" in vars(owner) else owner.__init__)


def typed(value: Any, annotation: Any, key: str) -> Any:
    """Return ``value`` in the annotation's type: 1e5 becomes an int, a list a tuple.

    A group of options becomes a dataclass with keyword-only fields, see :func:`check`.

    Raises:
        ConfigError: a value of another type, or an unknown choice.
    """
    if isinstance(annotation, type) and is_dataclass(annotation):
        if isinstance(value, Mapping):
            return annotation(**check(value, annotation, key))
        require(isinstance(value, annotation), key, render(value), "must be a group of options")
        return value
    kinds = _kinds(annotation)
    classes = tuple(kind for kind in kinds if isinstance(kind, type) and is_dataclass(kind))
    if isinstance(value, classes):
        return value
    if classes:  # a member of a union that no group of options describes
        annotation = Union[tuple(kind for kind in kinds if kind not in classes)]  # noqa: UP007
    literals = [
        choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)
    ]
    confused = isinstance(value, bool) and bool not in kinds and Any not in kinds
    # YAML reads a bare no, yes, on or off as a boolean: as a choice it is the word.
    if confused and literals:
        value, confused = next((c for c in literals if c in _WORDS[value]), value), False
    try:
        if confused:
            raise ValueError
        config = ConfigDict(coerce_numbers_to_str=True, arbitrary_types_allowed=True)
        return TypeAdapter(annotation, config=config).validate_python(value)
    except (ValidationError, ValueError) as error:
        words = all(get_origin(kind) is Literal or kind is type(None) for kind in kinds)
        use = synonyms.value(key, render(value), [*map(str, literals)])
        if use is not None:
            problem = f"unknown choice; {use}"
        elif literals and words and isinstance(value, str):
            problem = f"unknown choice{did_you_mean(value, map(str, literals))}"
            if "did you mean" in problem:
                problem += f" (there are: {', '.join(map(str, literals))})"
        else:
            problem = f"must be {' or '.join(_describe(kind) for kind in kinds)}"
        raise ConfigError(key, render(value), problem) from error


_WORDS = {False: ("no", "off", "none", "false"), True: ("yes", "on", "true")}
_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}


def _kinds(annotation: Any) -> list[Any]:
    """Return the members of a union, or the annotation itself."""
    union = get_origin(annotation) in (Union, types.UnionType)
    return list(get_args(annotation)) if union else [annotation]


def _describe(kind: Any) -> str:
    """Return a description of a type."""
    if get_origin(kind) is Literal:
        choices = ", ".join(map(str, get_args(kind)))
        return f"one of {choices}" if len(get_args(kind)) > 1 else choices
    if get_origin(kind) in (tuple, list):
        members = [member for member in get_args(kind) if member is not Ellipsis]
        many = (
            f"{len(members)} entries"
            if get_origin(kind) is tuple and ... not in get_args(kind)
            else "a list"
        )
        example = "[a,b]" if members[0] is str else "[1,2]"
        return f"{many}, each {_describe(members[0])}, like {example}"
    if get_origin(kind) in (dict, Mapping) or kind is dict:
        return "a group of options"
    return _NAMES.get(kind, getattr(kind, "__name__", str(kind)))
