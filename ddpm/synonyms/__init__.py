"""Names that users of other tools type, and the options to use instead.

Each row has the names, lower case with underscores; the options; a reason; and translations of
values. In the options ``{}`` is the typed value, ``...`` is for the user to fill in, and ``|``
separates alternatives, of which the first whose options exist is used. A translation with ``=``
replaces the options. A row without options gives the reason only. Options with the same last part
as the typed name need no row.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from ddpm.errors import did_you_mean, most_similar
from ddpm.synonyms.choices import CARD, CHOICES, VALUES, Row
from ddpm.synonyms.options import TRAIN
from ddpm.synonyms.other_options import OTHERS

# Groups under whose names users look for options of the trainer.
_TRAINING = re.compile(r"(trainer|training|train|optimizer|optim|opt|args|hparams|params)\.")
_ARRAYS = (".npy", ".npz", ".pt")


def option(command: str, key: str, value: str, existing: Collection[str] = ()) -> str | None:
    """Return advice for an unknown option, as ``use ... (why)``; None without a row.

    Args:
        command: its name after ``ddpm-``; empty for an option of a config group in any command.
        key: of the option, as typed.
        value: as typed.
        existing: names of the existing options, to choose between alternatives; may be empty.
    """
    rows = OTHERS.get(command, TRAIN)
    name = key.lower().replace("-", "_").lstrip("_")
    name = re.sub(r"^dataset\.", "data.", name)
    row = _row(rows, name)
    if row is None and _TRAINING.match(name):
        row = _row(rows, _TRAINING.sub("", name))
    return None if row is None else _advice(row, value, existing)


def near(command: str, key: str, value: str, existing: Collection[str] = ()) -> str | None:
    """Return the advice for the most similar name in the table; None if none is similar."""
    names = [name for row in OTHERS.get(command, TRAIN) for name in row.names.split()]
    similar = most_similar(key.lower(), names, 0.85)
    return None if similar is None else option(command, similar, value, existing)


def choice(group: str, name: str) -> str | None:
    """Return advice for an unknown choice of a config group; None without a row."""
    plain = name.lower().replace("-", "_").replace(" ", "_")
    if re.fullmatch(r"\d+", plain) and group in ("timesteps", "schedule", "diffusion"):
        return f"use schedule.num_steps={name} (T of the process)"
    if group == "timesteps" and plain == "loss_second_moment":
        return "use timesteps=loss_second_moment"
    if group == "data" and ("/" in name or name.endswith(_ARRAYS)):
        return _advice(Row("", "data=folder data.path={}"), name, ())
    row = _row(CHOICES.get(group, ()), plain)
    return None if row is None else _advice(row, name, ())


def value(key: str, typed: str, choices: Collection[str]) -> str | None:
    """Return advice for a value that is not one of the choices; None without a translation."""
    leaf, name = key.rpartition(".")[2], typed.lower()
    meant = VALUES.get(leaf, {}).get(name)
    why = ""
    if leaf == "device" and re.fullmatch(r"(cuda|gpu):?\d+", name):
        meant, why = "cuda", f" ({CARD})"
    return f"use {key}={meant}{why}" if meant in choices else None


def hint(key: str, typed: str, existing: Collection[str]) -> str:
    """Return the end of a message about an unknown option of a config group."""
    use = option("", key, typed, existing) if "." in key else None
    return did_you_mean(key, existing) if use is None else f"; {use}"


def is_training(group: str) -> bool:
    """Return True for the names under which users look for options of the trainer."""
    return _TRAINING.fullmatch(f"{group}.") is not None


def _row(rows: Sequence[Row], name: str) -> Row | None:
    return next((row for row in rows if name in row.names.split()), None)


def _advice(row: Row, typed: str, existing: Collection[str]) -> str:
    """Return the advice of a row for a value."""
    if not row.use:
        return row.why
    why = f" ({row.why})" if row.why else ""
    meant = row.values.get(typed.lower(), typed) or "..."
    if "=" in row.values.get(typed.lower(), ""):
        return f"use {meant}{why}"
    if row.use.endswith("[{}]") and meant.startswith("["):
        meant = meant[1:-1]
    filled = [each.replace("{}", meant) for each in row.use.split("|")]
    use = next((each for each in filled if existing and _fits(each, existing)), filled[0])
    if use.startswith("data=folder data.path=") and meant.endswith(_ARRAYS):
        use = use.replace("data=folder", "model=unet1d data=sequence")
    parts = use.split()
    options = [part for part in parts if "." in part.partition("=")[0]]
    if options and all(part.partition("=")[0] in existing for part in options):
        parts = options  # the choices of their groups are already made
    if len(parts) == 1 and "={}" in row.use:
        group, _, name = parts[0].partition("=")
        better = choice(group, name)
        if better is not None:
            return better
    return f"use {' '.join(parts)}{why}"


def _fits(use: str, existing: Collection[str]) -> bool:
    """Return True if each option exists, or is in a group that the same advice chooses."""
    keys = [each.partition("=")[0] for each in use.split()]
    return all((key in existing and "." in key) or key.partition(".")[0] in keys for key in keys)
