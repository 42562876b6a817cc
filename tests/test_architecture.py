"""Architecture rules that the layers in pyproject.toml cannot express.

Imports have no cycles, code supports tensors of any rank, and only commands print.
"""

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ddpm"
RANK_FREE = ["diffusion", "samplers", "training", "generation.py"]
# bin_width is not a width of images.
HEIGHT_OR_WIDTH = re.compile(r"(^|(?<!bin)_)(height|width|heights|widths)(_|$)", re.IGNORECASE)
COPY_FOR_A_RANK = re.compile(r"[123]_?d(_|$)|[123]D|^(one|two|three)_d(_|$)", re.IGNORECASE)
RANK_LETTERS = re.compile(r"^(b|n)?c?t?d?hw$")


def python_files(*parts: str) -> list[Path]:
    """Return the Python files of these parts of the package, by default of all of it."""
    roots = [PACKAGE / part for part in parts] or [PACKAGE]
    files = [file for root in roots for file in ([root] if root.is_file() else root.rglob("*.py"))]
    assert files, f"nothing in {parts}"
    return sorted(files)


def identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield every name that the code reads, binds or defines, with its line."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname"):
            word = getattr(node, field, None)
            if isinstance(word, str):
                yield getattr(node, "lineno", 0), word


def unpackings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the targets of every ``a, b = ...``, joined and in lower case, with their line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Store):
            yield node.lineno, "".join(ast.unparse(target) for target in node.elts).lower()


def violations(source: str) -> list[str]:
    """Return the parts of ``source`` that depend on the rank of tensors."""
    tree = ast.parse(source)
    names = [
        f"{line}: {word}"
        for line, word in identifiers(tree)
        if HEIGHT_OR_WIDTH.search(word) or COPY_FOR_A_RANK.search(word)
    ]
    return names + [
        f"{line}: unpacks {word}" for line, word in unpackings(tree) if RANK_LETTERS.match(word)
    ]


@pytest.mark.parametrize("file", python_files(*RANK_FREE), ids=lambda f: str(f.name))
def test_diffusion_samplers_and_training_do_not_depend_on_the_rank(file):
    assert not violations(file.read_text()), file


@pytest.mark.parametrize(
    "source",
    [
        "b, c, h, w = x.shape",
        "_, (B, C, H, W) = x",
        "n, c, h, w = x.shape",
        "h, w = x.shape[-2:]",
        "def f(image_height): pass",
        "x.width",
        "class Trainer1D: pass",
        "F.avg_pool2d(x)",
        "nn.Conv3d(1, 1, 1)",
    ],
)
def test_rank_dependent_code_is_detected(source):
    assert violations(source)


@pytest.mark.parametrize("source", ["batch, channels, *spatial = x.shape", "id = word", "h = 2"])
def test_rank_independent_code_passes(source):
    assert not violations(source)


def module_name(file: Path) -> str:
    """Return the dotted name of a file of the package."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, modules: Collection[str]) -> set[str]:
    """Return those of ``modules`` that the source imports, in functions and for types too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            members = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            names.update(path if path in modules else node.module for path in members.values())
    return names & set(modules)


def reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """Return the modules that a module imports, directly or through others."""
    result, pending = set(), [start]
    while pending:
        new = graph[pending.pop()] - result
        result |= new
        pending.extend(new)
    return result


def cycles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Return the groups of modules that import each other."""
    below = {module: reachable(graph, module) for module in graph}
    groups = {frozenset(m for m in below[each] if each in below[m]) for each in graph}
    return sorted((set(group) for group in groups if group), key=sorted)


def test_imports_have_no_cycles():
    """Imports in functions and under TYPE_CHECKING count as well."""
    sources = {module_name(file): file.read_text() for file in python_files()}
    graph = {name: imported(source, sources) - {name} for name, source in sources.items()}
    assert cycles(graph) == []


def test_imports_are_detected_at_every_level():
    source = """
import p.a
from p import b
if TYPE_CHECKING:
    from p.c import name
def f():
    from p.d import name as other
"""
    assert imported(source, {"p", "p.a", "p.b", "p.c", "p.d", "p.e"}) == {
        "p.a", "p.b", "p.c", "p.d"
    }  # fmt: skip


def test_cycles_are_groups_of_modules():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"e"}, "e": {"f"}, "f": {"d", "a"}}
    assert cycles(graph) == [{"b", "c"}, {"d", "e", "f"}]


def test_only_the_commands_print():
    for file in python_files():
        if PACKAGE / "cli" in file.parents:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            is_print = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
            assert not is_print, f"{file}:{node.lineno}"


def test_files_and_functions_are_short():
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in python_files()}
    assert {file.name: count for file, count in lines.items() if count > 400} == {}
    assert sum(count for file, count in lines.items() if "cli" in file.parts) < 2600
    core = sum(len(file.read_text().splitlines()) for file in python_files("diffusion", "samplers"))
    assert core <= 2400
    functions = {
        f"{file.name}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for file in python_files()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: count for name, count in functions.items() if count > 60} == {}
