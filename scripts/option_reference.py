"""Write docs/configuration.md: the options of all commands, from the comments of the config files.

``python scripts/option_reference.py`` rewrites the page; a test compares it with the configs.
"""

from __future__ import annotations

from pathlib import Path

from ddpm.config.comments import ConfigFile, Groups, Option, read
from ddpm.config.location import config_dir

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
COMMANDS = ("train", "sample", "interpolate", "evaluate", "average", "import", "export")
INTRODUCTION = """\
<!-- Written by scripts/option_reference.py from configs/; edit the comments there. -->
# Options of the commands

Options are written `key=value`, without dashes: `ddpm-train trainer.lr=1e-4`. A group is a set of
options that is chosen by name: `model=iddpm_unet` selects the network, `model.dropout=0.1` sets an
option of it. `ddpm-train --help` prints these tables for the groups that you choose, and for those
of your own `--config-dir`; `ddpm-train --cfg job` prints the composed config.

`null` is "no value": the comment says what is used instead. `required` options have no default.
"""
ESCAPES = str.maketrans({"|": "\\|", "<": "&lt;", ">": "&gt;", "*": "\\*", "_": "\\_"})


def page() -> str:
    """Return the page."""
    groups, parts, order = Groups(), [INTRODUCTION], {}
    for command in COMMANDS:
        root = read(config_dir() / f"{command}.yaml")
        order |= {group.key: None for group in root.groups}
        about = _about(root).partition(": ")[2]
        parts.append(f"## ddpm-{command}\n\n{about[:1].upper()}{about[1:]}\n")
        if root.groups:
            names = ", ".join(f"[`{key}={default}`](#{key})" for key, default, _ in root.groups)
            parts.append(f"Groups with their default choices: {names}.\n")
        parts.append(_table([("", root)]))
    for group in order:
        parts.append(f"## {group}\n")
        parts += _group(groups, group)
    return "\n".join([*parts, "## Defaults for the data\n", *_suited(groups)])


def _suited(groups: Groups) -> list[str]:
    """Return the defaults that replace those of the groups for some data and networks."""
    parts = []
    for folder, title in (("for_data", "data={}"), ("for_data_and_model", "data={} model={}")):
        for choice in groups.choices(folder):
            words = choice.split("_", 1) if folder != "for_data" else [choice]
            parts.append(f"`{title.format(*words)}` has {_values(groups.read(folder, choice))}.\n")
    return parts


def _values(file: ConfigFile) -> str:
    """Return the choices and the options with values of a file for the root config."""
    selected = [f"`{group}={choice}`" for group, choice in file.selected.items()]
    options = [f"`{key}={default}`" for key, default, _ in file.options if default]
    return ", ".join(selected + options)


def _about(file: ConfigFile) -> str:
    """Return the comment at the top as a sentence."""
    return " ".join(file.about)


def _group(groups: Groups, group: str) -> list[str]:
    """Return the parts about a group: choices with the same options share a table."""
    tables: dict[tuple[tuple[str, str], ...], list[tuple[str, ConfigFile]]] = {}
    parts = []
    for choice in groups.choices(group):
        file = groups.read(group, choice)
        if file.is_global:
            parts.append(f"**`{group}={choice}`**: {_about(file)} It sets {_values(file)}.\n")
            continue
        same = tuple((option.key, option.comment) for option in file.options)
        tables.setdefault(same, []).append((choice, file))
    for files in tables.values():
        for choice, file in files:
            parts.append(f"**`{group}={choice}`**: {_about(file)}\n")
        if files[0][1].options:
            parts.append(_table(files, f"{group}."))
    return parts


def _table(files: list[tuple[str, ConfigFile]], prefix: str = "") -> str:
    """Return a table of options; the defaults of several choices stand in one cell."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for index, (key, _, comment) in enumerate(files[0][1].options):
        defaults = {choice: file.options[index] for choice, file in files}
        rows.append(f"| `{prefix}{key}` | {_default(defaults)} | {comment.translate(ESCAPES)} |")
    return "\n".join(rows) + "\n"


def _default(options: dict[str, Option]) -> str:
    """Return the default, or the default of each choice."""
    texts = {choice: option.default for choice, option in options.items()}
    shown = {choice: _code(text) for choice, text in texts.items()}
    if len(set(shown.values())) == 1:
        return next(iter(shown.values()))
    return ", ".join(f"{choice}: {text}" for choice, text in shown.items())


def _code(text: str) -> str:
    """Return a value as Markdown."""
    return {"???": "required", "": ""}.get(text, f"`{text}`")


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
