"""Sphinx settings of the site; ``make docs`` builds it.

The source folder is the top of the repository, so that links between the README and docs/ hold on
GitHub and on the site alike.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ddpm

project = "ddpm"
author = "The ddpm authors"
release = ddpm.__version__
root_doc = "docs/index"
include_patterns = [
    *("README.md", "CONTRIBUTING.md", "BENCHMARKS.md", "SECURITY.md", "CHANGELOG.md"),
    "docs/*.md",
]
exclude_patterns = ["docs/_build"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"  # with the arguments that docstrings explain
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_use_ivar = True  # else autodoc lists attributes a second time
autodoc_default_options = {"members": True, "show-inheritance": True}
add_module_names = False

html_theme = "furo"
html_title = f"ddpm {release}"


def _escape_stars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape the star of shapes such as (B, C, *spatial), which is emphasis in reStructuredText."""
    for index, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [re.sub(r"(?<![\\*\w])\*(?=\w)", r"\\*", text) for text in parts[::2]]
        lines[index] = "``".join(parts)


def setup(app: Any) -> None:
    """Register the hook, before that of napoleon."""
    app.connect("autodoc-process-docstring", _escape_stars, priority=400)
