"""Text of ``--help``: groups with their choices, options with their defaults and comments."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ddpm.config.comments import ConfigFile, Groups, Option, read
from ddpm.config.location import config_dir

WIDTH = 100  # columns
INDENT = 30  # column in which explanations begin
_MANY = 12  # choices that do not fit in a line


def usage(config_name: str, arguments: Sequence[str] = ()) -> str:
    """Return the text of ``--help``.

    Args:
        config_name: root config, and the name of the command after ``ddpm-``.
        arguments: of the command line. The options are those of the choices in them, and groups
            of a folder named by ``--config-dir`` are among them.
    """
    root, groups = read(config_dir() / f"{config_name}.yaml"), Groups(_config_dirs(arguments))
    chosen = groups.chosen(root, dict(each.split("=", 1) for each in arguments if "=" in each))
    files = {group: groups.read(group, choice) for group, choice in chosen.items()}
    parts = [
        f"usage: ddpm-{config_name} [option=value | group=choice | group.option=value] ...",
        "\n".join(root.about),
        _section("groups and their choices:", _groups(root, groups, chosen, files)),
        _section("options and their defaults:", root.options),
    ]
    for group, file in files.items():
        options = [option._replace(key=f"{group}.{option.key}") for option in file.options]
        if file.is_global:
            options = [option for option in file.options if option.default]
        title = f"{group}={chosen[group]}: {' '.join(file.about)}".rstrip(" .")
        parts.append(_section(textwrap.fill(title, WIDTH), options))
    parts.append(_suited(root, groups, chosen))
    parts.append(
        "--cfg job prints the composed config; -m runs a sweep over values with commas between\n"
        "them; --hydra-help lists the flags of Hydra."
    )
    return "\n\n".join(part for part in parts if part)


def _config_dirs(arguments: Sequence[str]) -> list[Path]:
    """Return the folders of ``--config-dir``."""
    text = "\n".join(arguments)
    folders = re.findall(r"^(?:--config-dir=|(?:--config-dir|-cd)\n)(.*)$", text, re.MULTILINE)
    return [Path(each).expanduser() for each in folders]


def _groups(
    root: ConfigFile, groups: Groups, chosen: Mapping[str, str], files: Mapping[str, ConfigFile]
) -> Iterator[Option]:
    """Yield an entry per group, with its choices as explanation."""
    for group, _, comment in root.groups:
        names = groups.choices(group)
        choices = "|".join(names) if len(names) < _MANY else " | ".join(names)
        yield Option(group, chosen[group], f"{choices}  ({comment})" if comment else choices)
        for inner, default, _ in files[group].groups:
            name, _, target = inner.strip("/").partition("@")
            yield Option(f"{name}@{group}.{target}", default, "|".join(groups.choices(name)))
    for group in groups.added():
        yield Option(f"+{group}", "...", "|".join(groups.choices(group)))


def _section(title: str, options: Iterable[Option]) -> str:
    """Return a title with a table of options, or an empty text without options."""
    lines = [line for option in options for line in _lines(option)]
    return "\n".join([title, *lines]) if lines else ""


def _lines(option: Option) -> list[str]:
    """Return the lines of an option: ``key=default`` and its comment beside it or below."""
    required = option.default == "???"
    default = "..." if required else option.default
    name = f"  {option.key}={default}" if default else f"  {option.key}"
    text = f"required; {option.comment}" if required else option.comment
    comment = textwrap.wrap(text, WIDTH - INDENT, break_long_words=False, break_on_hyphens=False)
    if not comment or len(name) > INDENT - 2:
        return [name, *(" " * INDENT + line for line in comment)]
    first, *rest = comment
    return [name.ljust(INDENT) + first, *(" " * INDENT + line for line in rest)]


def _suited(root: ConfigFile, groups: Groups, chosen: Mapping[str, str]) -> str:
    """Return the defaults that suit the chosen data and network, and replace those above."""
    changed = [f"{key}={default}" for key, default, _ in groups.suited(root, chosen) if default]
    if not changed:
        return ""
    lines = textwrap.wrap(" ".join(changed), WIDTH, initial_indent="  ", subsequent_indent="  ")
    title = f"other defaults with data={chosen['data']} model={chosen['model']}:"
    return "\n".join([title, *lines])
