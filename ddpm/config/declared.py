"""Types of options, read from the source of their classes without importing the modules.

Importing torch takes seconds, after which an option of the wrong type would be reported. Options
whose types the source does not show plainly, and classes of plugins, are left to
:func:`ddpm.config.registry.build`.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Union

from ddpm.config.schema import typed
from ddpm.errors import reported_as

_ROOT = Path(__file__).parents[2]
_LIBRARIES = ("typing", "collections.abc", "pathlib")
_BUILTINS = {each.__name__: each for each in (int, float, bool, str, list, tuple, dict)}
Definition = ast.ClassDef | ast.FunctionDef


class _UnclearError(Exception):
    """The source does not show the type."""


class _Definition(NamedTuple):
    """A definition and its module."""

    module: str
    node: ast.AST


def check_types(
    options: Mapping[str, Any], keys: Collection[str], names: Mapping[str, str]
) -> None:
    """Check the types of typed options of config groups, except beside ``resume``.

    Args:
        options: of a command; groups are mappings with a ``_target_``.
        keys: of the typed options, such as ``trainer.lr``.
        names: other names by which options were typed, such as ``sampler.steps`` to ``steps``.

    Raises:
        ConfigError: a value of another type; the error is that of :func:`build`.
    """
    if options.get("resume") is not None:  # the classes are those of the run
        return
    for group, node in options.items():
        target = node.get("_target_") if isinstance(node, Mapping) else None
        typed_keys = {f"{group}.{name}" for name in node} & {*keys, *names} if target else set()
        types = option_types(str(target)) if typed_keys else {}
        if group == "data":
            types = {**types, "val_fraction": float}  # of every data node, see splits
        with reported_as(names):
            for name in types:
                if f"{group}.{name}" in typed_keys:
                    typed(node[name], types[name], f"{group}.{name}")


@cache
def option_types(target: str) -> dict[str, Any]:
    """Return the types of the options of a class or function of ddpm, as far as they are plain.

    Args:
        target: its full name, such as ``ddpm.samplers.DDIM``.
    """
    module, _, name = target.rpartition(".")
    try:
        target_class = _definition(module, name)
        return dict(_types(_options_class(target_class) or target_class))
    except (_UnclearError, OSError, SyntaxError):
        return {}


def _options_class(definition: _Definition) -> _Definition | None:
    """Return the class that a class or one of its bases names as ``Options``, if any."""
    if not isinstance(definition.node, ast.ClassDef):
        return None
    for each in definition.node.body:
        if isinstance(each, ast.Assign) and _target_name(each) == "Options":
            return _resolved(definition.module, each.value)
    return next(filter(None, map(_options_class, _bases(definition))), None)


def _types(definition: _Definition) -> Iterator[tuple[str, Any]]:
    """Yield names and types of keyword-only parameters; of fields, for a dataclass."""
    node = definition.node
    if isinstance(node, ast.FunctionDef):
        yield from _parameters(definition.module, node)
    elif isinstance(node, ast.ClassDef):
        initializer = next((each for each in node.body if _is_initializer(each)), None)
        if isinstance(initializer, ast.FunctionDef):
            yield from _parameters(definition.module, initializer)
            return
        for base in reversed(list(_bases(definition))):
            yield from _types(base)
        if any(_is_keyword_dataclass(each) for each in node.decorator_list):
            fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
            pairs = [(f.target.id, f.annotation) for f in fields if isinstance(f.target, ast.Name)]
            yield from _plain(definition.module, pairs)


def _parameters(module: str, function: ast.FunctionDef) -> Iterator[tuple[str, Any]]:
    pairs = [(a.arg, a.annotation) for a in function.args.kwonlyargs if a.annotation is not None]
    yield from _plain(module, pairs)


def _plain(module: str, pairs: list[tuple[str, ast.expr]]) -> Iterator[tuple[str, Any]]:
    """Yield the names and types whose annotations can be evaluated."""
    for name, annotation in pairs:
        try:
            yield name, _evaluated(module, annotation)
        except _UnclearError:
            continue


def _is_initializer(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name == "__init__"


def _is_keyword_dataclass(decorator: ast.expr) -> bool:
    """Return True for ``@dataclass(..., kw_only=True)``."""
    if not isinstance(decorator, ast.Call) or not isinstance(decorator.func, ast.Name):
        return False
    keywords = {each.arg for each in decorator.keywords}
    return decorator.func.id == "dataclass" and "kw_only" in keywords


def _bases(definition: _Definition) -> Iterator[_Definition]:
    """Yield the base classes of a class that are defined in ddpm."""
    assert isinstance(definition.node, ast.ClassDef)
    for base in definition.node.bases:
        try:
            yield _resolved(definition.module, base)
        except _UnclearError:
            continue


def _resolved(module: str, name: ast.expr) -> _Definition:
    """Return the definition that a name in a module stands for.

    Raises:
        _UnclearError: it is not a name, or not of ddpm.
    """
    if not isinstance(name, ast.Name):
        raise _UnclearError
    return _definition(module, name.id)


@cache
def _definition(module: str, name: str) -> _Definition:
    """Return the definition of a name; names that are imported from ddpm are followed.

    Raises:
        _UnclearError: it is defined by another package, or not at all.
        OSError: the source is missing.
    """
    node = _definitions(module).get(name)
    if isinstance(node, ast.ImportFrom) and not node.level and node.module is not None:
        original = next(a.name for a in node.names if name in (a.asname, a.name))
        if node.module.partition(".")[0] == "ddpm":
            return _definition(node.module, original)
        if node.module in _LIBRARIES:
            return _Definition(node.module, ast.Name(original))
    if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Assign | ast.AnnAssign):
        raise _UnclearError
    return _Definition(module, node)


@cache
def _definitions(module: str) -> dict[str, ast.AST]:
    """Return the imports, classes, functions and assignments of a module by name.

    Raises:
        _UnclearError: a module of another package.
    """
    parts = module.split(".")
    if parts[0] != "ddpm":
        raise _UnclearError
    file = _ROOT.joinpath(*parts).with_suffix(".py")
    if not file.is_file():
        file = _ROOT.joinpath(*parts, "__init__.py")
    result: dict[str, ast.AST] = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            result.update((each.asname or each.name, node) for each in node.names)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            result[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign) and _target_name(node):
            result[_target_name(node)] = node
    return result


def _target_name(node: ast.Assign | ast.AnnAssign) -> str:
    """Return the name that is assigned to, or an empty text."""
    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
    return target.id if isinstance(target, ast.Name) else ""


def _evaluated(module: str, node: ast.expr | None) -> Any:
    """Return the type that an annotation stands for.

    Raises:
        _UnclearError: it contains something else than types of Python's library.
    """
    match node:
        case ast.Constant(value=None):
            return type(None)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[_evaluated(module, left), _evaluated(module, right)]  # noqa: UP007
        case ast.Subscript(value=base, slice=inner):
            return _evaluated(module, base)[_arguments(module, base, inner)]
        case ast.Name(id=name):
            return _named(module, name)
    raise _UnclearError


def _arguments(module: str, base: ast.expr, inner: ast.expr) -> Any:
    """Return what stands in the brackets of a type."""
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if isinstance(base, ast.Name) and base.id == "Literal":
        return ast.literal_eval(inner)
    values = [
        ... if isinstance(each, ast.Constant) and each.value is ... else _evaluated(module, each)
        for each in parts
    ]
    return tuple(values) if isinstance(inner, ast.Tuple) else values[0]


def _named(module: str, name: str) -> Any:
    """Return the type of a name in a module."""
    if name in _BUILTINS and name not in _definitions(module):
        return _BUILTINS[name]
    definition = _definition(module, name)
    node = definition.node
    if definition.module in _LIBRARIES and isinstance(node, ast.Name) and name != "ClassVar":
        return getattr(importlib.import_module(definition.module), node.id)
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return _evaluated(definition.module, node.value)
    raise _UnclearError
