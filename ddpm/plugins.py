"""Import of the user's modules that the option ``plugins`` names."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from ddpm.errors import ConfigError


class _CurrentFolder(MetaPathFinder):
    """Finder of the named modules in the current folder, and of nothing else there.

    Console scripts do not have the current folder in ``sys.path``. With it, any file in it
    could replace a module that some library tries to import.
    """

    names: frozenset[str] = frozenset()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the specification of a named module that no other finder has."""
        if path is not None or fullname not in self.names:
            return None
        try:
            return PathFinder.find_spec(fullname, [os.getcwd()])
        except FileNotFoundError:  # the folder was deleted
            return None


_finder = _CurrentFolder()


def load(modules: Sequence[str]) -> list[ModuleType]:
    """Import modules that are installed, on ``PYTHONPATH`` or in the current folder, in this order.

    Raises:
        ConfigError: a module that cannot be imported or has no ``__all__``.
    """
    _finder.names = frozenset(name.partition(".")[0] for name in modules)
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)
    return [_load(name, modules) for name in modules]


def function(key: str, name: str) -> Callable[..., Any]:
    """Return the function that ``module:function`` names, of a module as in :func:`load`.

    Raises:
        ConfigError: a module that cannot be imported, or that has no such function.
    """
    module, _, attribute = name.partition(":")
    _finder.names |= {module.partition(".")[0]}
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)
    try:
        function_object = getattr(_import(module, [module]), attribute, None)
    except ConfigError as error:
        raise error.renamed(key, name) from error
    problem = f"{module} has no function {attribute}; use one of its functions"
    if not callable(function_object):
        raise ConfigError(key, name, problem)
    return function_object


def _load(name: str, modules: Sequence[str]) -> ModuleType:
    """Import a module with classes that configs may name."""
    module = _import(name, modules)
    if not hasattr(module, "__all__"):
        problem = f"{name} has no __all__; list the classes there that configs may name"
        where = getattr(module, "__file__", None)
        raise ConfigError("plugins", list(modules), problem + (f" ({where})" if where else ""))
    return module


def _import(name: str, modules: Sequence[str]) -> ModuleType:
    if name.endswith(".py") or "/" in name:
        problem = f"names a file; name the module: {name.removesuffix('.py').replace('/', '.')}"
        raise ConfigError("plugins", list(modules), problem)
    try:
        importlib.invalidate_caches()  # the file may be newer than the cached listing of its folder
        module = importlib.import_module(name)
    except ImportError as error:
        own = isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]
        remedy = f"run the command in the folder of {name}.py, or add that folder to PYTHONPATH"
        if not own:
            remedy = "install what it imports, or add the folder of that to PYTHONPATH"
        problem = f"cannot import {name} ({error})"
        raise ConfigError("plugins", list(modules), problem, remedy) from error
    except (SyntaxError, NameError, AttributeError, TypeError, ValueError) as error:
        problem = f"cannot import {name} ({type(error).__name__}: {error})"
        raise ConfigError("plugins", list(modules), problem, "correct the module") from error
    return module
