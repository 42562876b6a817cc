"""Options of the config files, with the comments that explain them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ddpm.config.location import config_dir

_OPTION = re.compile(
    r"""(?P<indent>\ *)(?P<key>[\w.]+):
        (?:\s+(?P<value>"[^"]*"|\[[^\]]*\]|\{[^}]*\}|[^\s#][^#]*?))?
        \s*(?:\#\s?(?P<comment>.*))?""",
    re.VERBOSE,
)
_ENTRY = re.compile(
    r"""\ *-\ (?P<kind>optional\ |override\ )?(?P<group>[^\s:\#]+)
        (?::\ *(?P<choice>[^\s\#]+))?\s*(?:\#\s?(?P<comment>.*))?""",
    re.VERBOSE,
)


class Option(NamedTuple):
    """Option of a config file, or config group.

    Attributes:
        key: path within the file, such as ``condition.channels``; the name of a group.
        default: text of the value in the file, without quotes; empty for the name of a section.
        comment: whole comment, also where it covers several lines of the file.
    """

    key: str
    default: str
    comment: str


class ConfigFile:
    """Contents of a config file, as far as users type them.

    Attributes:
        about: comment at the top, by lines.
        groups: entries of the defaults list that select a choice of a group.
        optional: the same, of entries that need not exist.
        selected: choices of other groups that this file makes unless they are typed, by group.
        bases: names of the files of the same group that this one extends.
        options: in the order of the file.
        has_target: True if the file names a class, the option ``_target_``.
        is_global: True if the options are those of the root config, as in recipes.
    """

    def __init__(self) -> None:  # not a dataclass, whose module is slow to import
        self.about: list[str] = []
        self.groups: list[Option] = []
        self.optional: list[Option] = []
        self.selected: dict[str, str] = {}
        self.bases: list[str] = []
        self.options: list[Option] = []
        self.has_target = self.is_global = False


def read(path: Path) -> ConfigFile:
    """Return the options of a config file with their comments."""
    result, sections = ConfigFile(), [(0, "")]
    for line in _joined(path.read_text(encoding="utf-8").splitlines()):
        if line.startswith("#"):
            about = line.removeprefix("#").removeprefix(" ")
            result.about += [] if about.startswith("@package") else [about]
            result.is_global |= about == "@package _global_"
        elif sections[0][1] == "defaults" and (entry := _ENTRY.fullmatch(line)):
            _add_entry(result, entry)
        elif match := _OPTION.fullmatch(line):
            indent, key, value = len(match["indent"]), match["key"], match["value"] or ""
            sections = [each for each in sections if each[0] < indent] + [(indent, key)]
            names = [name for _, name in sections]
            comment = (match["comment"] or "").strip()
            if key == "_target_":
                result.about += [comment] if comment else []
                result.has_target |= indent == 0
            elif names[0] not in ("hydra", "defaults"):
                result.options += _options(".".join(names), value, comment)
    return result


def _joined(lines: Iterable[str]) -> list[str]:
    """Append an indented line that is only a comment to the line that it continues."""
    result: list[str] = []
    for line in lines:
        if result and line.startswith(" ") and line.lstrip().startswith("#"):
            result[-1] += f" {line.strip(' #')}"
        else:
            result.append(line)
    return result


def _add_entry(file: ConfigFile, entry: re.Match[str]) -> None:
    """Add an entry of the defaults list."""
    group, choice = entry["group"], entry["choice"]
    if choice is None:
        file.bases += [] if group in ("_self_", "base") else [group]
    elif entry["kind"] == "override ":
        file.selected[group.strip("/").partition("@")[0]] = choice
    else:
        option = Option(group, choice, (entry["comment"] or "").strip())
        (file.optional if entry["kind"] else file.groups).append(option)


def _options(key: str, value: str, comment: str) -> Iterator[Option]:
    """Yield the option of a line, or those of a mapping on one line."""
    inner = re.findall(r"(\w+): *([^,}]+)", value) if value.startswith("{") else []
    for name, text in [(f"{key}.{name}", text) for name, text in inner] or [(key, value)]:
        yield Option(name, text.strip('"'), comment)


class Groups:
    """Config groups of the bundled folder and of others.

    Args:
        folders: to search after the bundled one.
    """

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        self.folders = [config_dir(), *folders]

    def choices(self, group: str) -> list[str]:
        """Return the names of the files of a group, such as ``sampler`` or ``/sampler@x.y``."""
        name = group.partition("@")[0].strip("/")
        return sorted({path.stem for each in self.folders for path in (each / name).glob("*.yaml")})

    def chosen(self, root: ConfigFile, typed: Mapping[str, str]) -> dict[str, str]:
        """Return the choice of each group of a root config: typed, selected by another, or default.

        As in Hydra, later entries of the defaults list precede in the selection of others.

        Args:
            root: the root config.
            typed: values of the typed options, by key.
        """
        chosen, fixed = {}, set(typed)
        for group, default, _ in root.groups:
            choice = typed.get(group, default)
            chosen[group] = choice if choice in self.choices(group) else default
        for group in reversed(list(chosen)):
            selected = self.read(group, chosen[group]).selected
            chosen |= {name: each for name, each in selected.items() if name not in fixed}
            fixed |= selected.keys()
        return chosen

    def suited(self, root: ConfigFile, chosen: Mapping[str, str]) -> list[Option]:
        """Return the options with other defaults that suit the chosen data and network."""
        names = {
            group: re.sub(r"\$\{(\w+)\}", lambda match: chosen.get(match[1], ""), name)
            for group, name, _ in root.optional
        }
        files = (self.read(group, name) for group, name in names.items())
        return [option for file in files for option in file.options]

    def keys(self, root: ConfigFile, typed: Mapping[str, str]) -> list[str]:
        """Return the dotted names of all options of a root config, and of their sections.

        These are the names that Hydra's composition has, except those of Hydra itself.

        Args:
            root: the root config.
            typed: values of the typed options, by key.
        """
        chosen = self.chosen(root, typed)
        names = []
        for group, choice in chosen.items():
            names += self._keys(group, group, choice, typed)
        names += [option.key for option in (*self.suited(root, chosen), *root.options)]
        parts = [name.split(".") for name in names]
        sections = [".".join(each[:end]) for each in parts for end in range(1, len(each) + 1)]
        return list(dict.fromkeys(sections))

    def _keys(self, group: str, place: str, choice: str, typed: Mapping[str, str]) -> Iterator[str]:
        """Yield the names of the options that a choice of a group adds at a place of the config."""
        file = self.read(group, choice)
        prefix = "" if file.is_global else f"{place}."
        if file.has_target:
            yield f"{prefix}_target_"
        for inner, default, _ in file.groups:
            name, _, target = inner.strip("/").partition("@")
            inside = f"{prefix}{target}"
            yield from self._keys(name, inside, typed.get(f"{name}@{inside}", default), typed)
        for option in file.options:
            yield f"{prefix}{option.key}"

    def added(self) -> list[str]:
        """Return the groups that the bundled folder does not have."""
        paths = [path for each in self.folders[1:] if each.is_dir() for path in each.iterdir()]
        new = {path.name for path in paths if not (self.folders[0] / path.name).is_dir()}
        return sorted(name for name in new if self.choices(name))

    def read(self, group: str, choice: str) -> ConfigFile:
        """Return a choice with what it takes from the files that it extends."""
        paths = (each / group / f"{choice}.yaml" for each in self.folders)
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            return ConfigFile()
        result = read(path)
        for base in result.bases:
            other = self.read(group, base) if base != choice else ConfigFile()
            result.groups = other.groups + result.groups
            result.has_target |= other.has_target
            result.options = _merged(other.options, result.options)
        return result


def _merged(base: list[Option], own: list[Option]) -> list[Option]:
    """Return the options of both, with the defaults of ``own``, and comments of ``base`` else."""
    merged = {option.key: option for option in base}
    for key, default, comment in own:
        old = merged.get(key)
        merged[key] = Option(key, default, comment or (old.comment if old is not None else ""))
    return list(merged.values())
