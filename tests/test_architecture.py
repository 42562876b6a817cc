"""What the layers in pyproject.toml cannot say: rank-free code, silence, a quick start."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ddpm"
RANK_FREE = ["diffusion", "samplers", "training", "generation.py"]
# A bin of values has a width too.
HEIGHT_OR_WIDTH = re.compile(r"(^|(?<!bin)_)(height|width|heights|widths)(_|$)", re.IGNORECASE)
COPY_FOR_A_RANK = re.compile(r"[123]_?d(_|$)|[123]D|^(one|two|three)_d(_|$)", re.IGNORECASE)
RANK_LETTERS = re.compile(r"^(b|n)?c?t?d?hw$")


def python_files(*parts: str) -> list[Path]:
    """The Python files of these parts of the package, or of all of it."""
    roots = [PACKAGE / part for part in parts] or [PACKAGE]
    files = [file for root in roots for file in ([root] if root.is_file() else root.rglob("*.py"))]
    assert files, f"nothing in {parts}"
    return sorted(files)


def identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every name that the code reads, binds or defines, with its line; no text in strings."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname"):
            word = getattr(node, field, None)
            if isinstance(word, str):
                yield getattr(node, "lineno", 0), word


def unpackings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The targets of every ``a, b = ...``, joined and in lower case."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Store):
            yield node.lineno, "".join(ast.unparse(target) for target in node.elts).lower()


def offences(source: str) -> list[str]:
    """What in ``source`` only works for tensors of one rank."""
    tree = ast.parse(source)
    found = [
        f"{line}: {word}"
        for line, word in identifiers(tree)
        if HEIGHT_OR_WIDTH.search(word) or COPY_FOR_A_RANK.search(word)
    ]
    return found + [
        f"{line}: unpacks {word}" for line, word in unpackings(tree) if RANK_LETTERS.match(word)
    ]


@pytest.mark.parametrize("file", python_files(*RANK_FREE), ids=lambda f: str(f.name))
def test_diffusion_samplers_and_training_know_no_rank(file):
    assert not offences(file.read_text()), file


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
def test_the_check_of_ranks_finds(source):
    assert offences(source)


@pytest.mark.parametrize("source", ["batch, channels, *spatial = x.shape", "id = word", "h = 2"])
def test_the_check_of_ranks_lets_pass(source):
    assert not offences(source)


def test_only_the_commands_print():
    for file in python_files():
        if PACKAGE / "cli" in file.parents:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            is_print = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
            assert not is_print, f"{file}:{node.lineno}"


@pytest.mark.parametrize("command", ["train", "sample", "interpolate", "evaluate"])
def test_a_command_starts_without_torch(command):
    code = f"import sys, ddpm.cli.{command}; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[-1] == "False"
