"""The vocabulary of the style guide in CONTRIBUTING.md, as a short list of patterns."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("ddpm", "configs", "scripts", "tests", "hydra_plugins", "docs")
FILES = (
    "README.md",
    "CONTRIBUTING.md",
    "BENCHMARKS.md",
    "SECURITY.md",
    "Makefile",
    "pyproject.toml",
)
EXEMPT = ("tests/test_plain_english.py", "tests/interop/originals/", "docs/_build/")

PARTICIPLES = {"told", "found", "given", "known", "wanted", "kept", "asked", "said"}
UNIT = (
    "image|sample|step|process|GPU|run|batch|second|minute|file|video|class|folder|item|job|core|epoch|"
    "layer|level|device|machine|metric|checkpoint|pixel|channel|frame|parameter|call|number|command"
)
PATTERNS = {
    "use 'per'": rf"\b(once|twice|one|times|features|calls|bytes|steps|images|seconds|writer|"
    rf"file|line|number|name|folder|row|process) an? ({UNIT})\b(?! of\b)",
    "'is not a', 'not found', 'unknown'": r"\b(is|are|was|were|be) no (?!longer\b|more\b)"
    r"|\bthere are none\b",
    "resume, continue": r"\b(go|goes|going|went|gone) on\b(?! to\b)",
    "compare with": r"\b(hold|held|holds|measure|measured) against\b",
    "prediction": r"\bbeliefs?\b|\bbelieved?\b",
    "use": r"\btake (another|at (most|least))\b|\btakes? away\b",
    "report, print, log": r"\btold\b|\bnobody tells\b",
    "correct, fix": r"\bmend(s|ed)?\b",
}


def _names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The names that a module binds, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name


def findings(path: Path) -> list[str]:
    """The places of a file that do not follow the guide, one line per place."""
    text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
    result = []
    if path.suffix == ".py":
        tree = ast.parse(text)
        for node in ast.walk(tree):
            kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            doc = ast.get_docstring(node) if isinstance(node, kinds) else None
            if doc and re.match(r"(What|Whether|Which|How)\b", doc):
                line = getattr(node, "lineno", 1)
                result.append(f"{name}:{line}: start with a noun or a verb: {doc.splitlines()[0]}")
        for line, bound in _names(tree):
            if bound.strip("_").lower() in PARTICIPLES:
                result.append(f"{name}:{line}: a participle is not a noun: {bound}")
    for number, line in enumerate(text.splitlines(), 1):
        for advice, pattern in PATTERNS.items():
            if re.search(pattern, line, re.IGNORECASE):
                result.append(f"{name}:{number}: {advice}: {line.strip()}")
    return result


def sources() -> list[Path]:
    """The files to which the guide applies."""
    suffixes = (".py", ".md", ".yaml", ".j2")
    files = [
        f for folder in FOLDERS for f in sorted((ROOT / folder).rglob("*")) if f.suffix in suffixes
    ]
    files += [ROOT / name for name in FILES]
    exempt = tuple(str(ROOT / each) for each in EXEMPT)
    return [each for each in files if not str(each).startswith(exempt)]


def test_the_text_follows_the_style_guide() -> None:
    """Each finding names file, line and the pattern."""
    wrong = [line for f in sources() for line in findings(f)]
    assert wrong == [], "\n".join(wrong)


if __name__ == "__main__":  # python tests/test_plain_english.py [path ...]: list the findings
    import sys

    chosen = tuple(str(Path(each).resolve()) for each in sys.argv[1:]) or ("",)
    for each in sources():
        if str(each).startswith(chosen):
            print(*findings(each), sep="\n", end="\n" if findings(each) else "")
