"""Errors in the arguments, in one line: key and value as typed, and what to use instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ddpm import synonyms
from ddpm.config import values
from ddpm.config.comments import Groups, read
from ddpm.config.location import config_dir
from ddpm.errors import ConfigError, did_you_mean, most_similar

NO_CHOICE = "Config group override must be a string"  # text of Hydra's ValueError for data=null
FROM_CHECKPOINT = ("model", "diffusion", "schedule", "objective", "timesteps", "data", "trainer")
COMMANDS = ("train", "sample", "interpolate", "evaluate", "average", "import", "export")
_SWITCHES = ("help", "hydra-help", "version", "resolve", "run", "multirun", "shell-completion")
_VALUED = ("cfg", "package", "config-path", "config-name", "config-dir", "info")
_FEW = 12  # options of a group, at most, that a message lists
_RERUN = "--experimental-rerun"  # not abbreviated, as it unpickles a file
_SHORT_SWITCHES, _SHORT_VALUED = ("-h", "-r", "-m", "-sc"), ("-c", "-p", "-cp", "-cn", "-cd", "-i")


def explain(config_name: str, error: Exception, arguments: Sequence[str]) -> ConfigError:
    """Return a composition error of Hydra or OmegaConf: key, value, remedy."""
    message = str(error)
    typed = {
        a.lstrip("+~").split("=", 1)[0]: values.as_typed(a.partition("=")[2])
        for a in arguments
        if "=" in a
    }
    unknown = re.search(r"Could not (?:override|delete from config\.) '([^']+)'", message)
    if unknown:
        key = unknown[1]
        problem = _unknown(config_name, key, typed.get(key, ""), arguments)
        return ConfigError(key, typed.get(key), problem)
    if NO_CHOICE in message:
        return _no_name(config_name, typed, arguments)
    choice = re.search(r"Could not find '([^']+)'", message)
    if choice:
        return _no_choice(choice[1], message, typed)
    if type(error).__name__ == "OverrideParseException":
        text = getattr(error, "override", "") or ""
        problem = "cannot be read; quote values with = , or spaces: 'key=\"the value\"'"
        return ConfigError(text, None, problem)
    line = " ".join(line.strip() for line in message.splitlines() if line.strip())
    return ConfigError("config", None, line)


def _unknown(config_name: str, key: str, value: str, arguments: Sequence[str]) -> str:
    """Return the problem of an option that does not exist, and its remedy."""
    group, _, leaf = key.partition("@")[0].partition(".")
    in_checkpoint = config_name != "train" and group in FROM_CHECKPOINT
    if in_checkpoint and not leaf and value in ("", *_choices(group)):
        return from_checkpoint(group)
    hint = advice(config_name, key, value, arguments)
    if in_checkpoint and (not hint.startswith("; use") or "ddpm-train" in hint):
        return from_checkpoint(group)
    return f"unknown option{hint}"


def from_checkpoint(key: str) -> str:
    """Return the error of an option that the checkpoint determines."""
    return f"the {key} comes from the checkpoint; leave it out"


def _no_name(config_name: str, typed: Mapping[str, str], arguments: Sequence[str]) -> ConfigError:
    """Return the error of a group whose choice is null, a number or a truth value."""
    problem = "must be one of its choices"
    plain = r"[\d.eE+-]*|null|none|~|true|false"
    for key, value in typed.items():
        if (config_dir() / key).is_dir() and re.fullmatch(plain, value.lower()):
            if key not in _groups(config_name):
                return ConfigError(key, value, _unknown(config_name, key, value, arguments))
            use = synonyms.choice(key, value)
            return ConfigError(key, value, problem, "--help lists them" if use is None else use)
    return ConfigError("group", "null", problem, "--help lists them")


def _no_choice(path: str, message: str, typed: Mapping[str, str]) -> ConfigError:
    """Return the error of a choice that its config group does not have."""
    group, _, name = path.rpartition("/")
    for key, value in typed.items():
        if path == f"{key.partition('@')[0]}/{value}":  # the value may contain /
            group, name = key, value
    match = re.search(r"Available options in '[^']*':\s*(.+?)(?:\nConfig search|\Z)", message, re.S)
    plain = group.partition("@")[0]
    names = match[1].split() if match else _choices(plain)
    use = synonyms.choice(plain, name)
    near = most_similar(name, names)
    hint = f"; did you mean '{near}'?" if near is not None else ""
    if use is not None:
        hint = f"; {use}".replace(f"; use {plain}=", f"; use {group}=")
    elif group == "data" and Path(name).is_dir():
        hint = f"; use data=folder data.path={name}"
    return ConfigError(group, name, f"unknown choice (there are: {', '.join(names)}){hint}")


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def check_arguments(config_name: str, arguments: Sequence[str]) -> None:
    """Check that arguments are ``key=value`` or flags of Hydra.

    Raises:
        ConfigError: for the first other argument, with a suggestion.
    """
    previous = ""
    for place, argument in enumerate(arguments):
        follows = arguments[place + 1] if place + 1 < len(arguments) else ""
        if argument.startswith("-"):
            if not _is_hydra_flag(argument):
                raise _dashed(config_name, argument, follows, arguments)
        elif "=" not in argument and argument[:1] != "~" and not _takes_value(previous):
            raise _bare(config_name, argument)
        previous = argument


def check_names(config_name: str, arguments: Sequence[str]) -> None:
    """Check that options exist, before Hydra is imported, which takes longer than this.

    Arguments that may change which options exist, such as flags, additions and choices of the
    user's folders, are left to Hydra.

    Args:
        config_name: name of the command.
        arguments: that passed :func:`check_arguments`.

    Raises:
        ConfigError: for the first option that does not exist.
    """
    pairs = [argument.partition("=")[::2] for argument in arguments]
    groups = Groups()
    if not all(re.fullmatch(r"[a-z]\w*(\.\w+)*", key) for key, _ in pairs):
        return
    if any(groups.choices(key) and value not in groups.choices(key) for key, value in pairs):
        return
    options = set(_options(config_name, arguments))
    for key, value in pairs:
        left = groups.choices(key) or key.startswith("hydra.") or is_addition(key, arguments)
        if key not in options and not left:
            raise ConfigError(key, value, _unknown(config_name, key, value, arguments))


def is_addition(key: str, arguments: Sequence[str]) -> bool:
    """Return True for an option that the config files need not have.

    These are arguments of another system's constructor, and options of config groups beside
    ``resume``, ``init`` and the ``_target_`` of the group, which have choices of their own.
    """
    group, dot, _ = key.partition(".")
    others = ("resume=", "init", f"{group}._target_=")
    plain = bool(dot) and "@" not in key and key[0].isalpha()
    return key.startswith("network.") or (plain and any(a.startswith(others) for a in arguments))


def _is_hydra_flag(argument: str) -> bool:
    """Return True if the argument is a flag of Hydra."""
    if not argument.startswith("--"):
        return argument in (*_SHORT_SWITCHES, *_SHORT_VALUED)
    name = argument[2:].partition("=")[0]
    flags = [flag for flag in (*_SWITCHES, *_VALUED) if flag.startswith(name)]
    return name in flags or len(flags) == 1 or f"--{name}" == _RERUN


def _takes_value(flag: str) -> bool:
    """Return True if the next argument is the value of a flag of Hydra."""
    if not flag.startswith("--") or flag == _RERUN:
        return flag in (*_SHORT_VALUED, _RERUN)
    return "=" not in flag and any(each.startswith(flag[2:]) for each in _VALUED)


def _dashed(config_name: str, argument: str, follows: str, arguments: Sequence[str]) -> ConfigError:
    """Return the error about an option with dashes, such as ``--lr 1e-4``."""
    name, equals, value = argument.partition("=")
    shown = argument
    if not equals and follows and "=" not in follows and not re.match(r"-+[a-zA-Z]", follows):
        shown, value = f"{argument} {follows}", follows
    key = name.lstrip("-").replace("-", "_")
    others = [each for each in arguments if "=" in each and not each.startswith("-")]
    hint = advice(config_name, key, value or "true", others)
    problem = f"options are written key=value, without dashes{hint}"
    return ConfigError(shown, None, problem)


def _bare(config_name: str, argument: str) -> ConfigError:
    """Return the error about an argument without ``=``."""
    hint = "; --help lists them"
    subject = {"train": "resume", "import": "file"}.get(config_name, "ckpt")
    groups = [group for group in _groups(config_name) if argument in _choices(group)]
    if groups:
        hint = f"; use {groups[0]}={argument}"
    elif config_name == "train" and Path(argument).is_dir() and not _is_run(Path(argument)):
        hint = f"; use data=folder data.path={argument}"
    elif "/" in argument or Path(argument).exists():
        hint = f"; use {subject}={argument}"
    return ConfigError(argument, None, f"options are written key=value{hint}")


def _is_run(folder: Path) -> bool:
    """Return True if a folder looks like a run or a checkpoint."""
    return any((folder / name).exists() for name in ("config.yaml", "config.json", "checkpoints"))


def advice(config_name: str, key: str, value: str, arguments: Sequence[str]) -> str:
    """Return the end of a message about an unknown option: a remedy, or similar options.

    Args:
        config_name: name of the command.
        key: the option as typed.
        value: its value as typed; may be empty.
        arguments: all arguments; their choices of groups determine which options exist.
    """
    options = _options(config_name, arguments)
    shown = value or "..."
    if key in options:
        return f"; use {key}={shown}"
    use = synonyms.option(config_name, key, value, options)
    if use is None:
        use = _same_leaf(key, shown, options) or _other_choice(config_name, key, shown)
    if use is None:
        use = _other_command(config_name, key, value)
    if use is not None:
        return f"; {use}"
    group, _, leaf = key.rpartition(".")
    beside = {p.rpartition(".")[2]: p for p in options if p.rpartition(".")[0] == group}
    in_group = group and beside
    word, names = (leaf, beside) if in_group else (key, {path: path for path in options})
    near = most_similar(word, names, 0.6 if in_group else 0.7)
    if near is not None:
        return f"; did you mean '{names[near]}'?"
    use = synonyms.near(config_name, key, value, options)
    if use is not None:
        return f"; {use}"
    beside.pop("_target_", None)
    if in_group and len(beside) > _FEW:
        return "; --help lists them"
    return did_you_mean("", beside.values() or [path for path in options if "." not in path])


def _same_leaf(key: str, value: str, options: Iterable[str]) -> str | None:
    """Return advice to use the option of the same name in another config group or in none."""
    group, _, _ = key.rpartition(".")
    leaf = key.rpartition(".")[2].lower()
    same = [path for path in options if path.rpartition(".")[2] == leaf]
    outside = synonyms.is_training(group)  # trainer.seed means seed, not evaluation.seed
    same.sort(key=lambda path: ("." in path) == outside)
    return f"use {same[0]}={value}" if same and not leaf.startswith("_") else None


def _other_choice(config_name: str, key: str, value: str) -> str | None:
    """Return advice to use a choice of a config group that has the option."""
    typed, _, option = key.rpartition(".")
    if not re.fullmatch(r"[a-z]\w*", option):
        return None
    for group in _groups(config_name):
        if typed in ("", group):
            having = [name for name in _choices(group) if option in _keys(f"{group}/{name}")]
            others = f" (an option of {', '.join(having)})" if len(having) > 1 else ""
            if having:
                return f"use {group}={having[0]} {group}.{option}={value}{others}"
    return None


def _other_command(config_name: str, key: str, value: str) -> str | None:
    """Return advice to use another command that has the option."""
    shown = value or "..."
    for other in COMMANDS:
        if other != config_name and key in (*_keys(other), *_groups(other)):
            return f"use ddpm-{other} {key}={shown}"
    if config_name == "train":
        return None
    use = synonyms.option("train", key, value)
    if use is None:
        same = [
            group
            for group in _groups("train")
            for name in _choices(group)
            if key in _keys(f"{group}/{name}")
        ]
        use = f"use {same[0]}.{key}={shown}" if same else None
    return None if use is None else use.replace("use ", "use ddpm-train ", 1)


def _keys(file: str) -> list[str]:
    """Return the top-level options of a config file."""
    text = (config_dir() / f"{file}.yaml").read_text(encoding="utf-8")
    return re.findall(r"^([a-z]\w*):", text, re.M)


def _groups(config_name: str) -> list[str]:
    """Return the config groups of a command."""
    text = (config_dir() / f"{config_name}.yaml").read_text(encoding="utf-8")
    names = re.findall(r"^  - ([a-z]\w*):", text, re.M)
    return [name for name in names if (config_dir() / name).is_dir()]


def _options(config_name: str, arguments: Sequence[str]) -> list[str]:
    """Return the options that exist with the typed choices; with any choice of a group in a sweep.

    They are read from the files: Hydra takes longer to import than the rest of a message.
    """
    root, groups = read(config_dir() / f"{config_name}.yaml"), Groups()
    typed = dict(each.split("=", 1) for each in arguments if "=" in each)
    swept = [(key, value) for key, value in typed.items() if "," in value and groups.choices(key)]
    alternatives = [{**typed, key: each} for key, value in swept for each in value.split(",")]
    options = [key for each in alternatives or [typed] for key in groups.keys(root, each)]
    return list(dict.fromkeys(options))
