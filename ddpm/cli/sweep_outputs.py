"""Places for the results of a sweep: one per job of a command that writes files.

``ddpm-train`` has folders of its own for the jobs of a sweep, see :mod:`ddpm.cli.sweeps`. The other
commands write to ``out=``. If several jobs would write to the same place, the number of the job is
appended to it, on the command line, so that every launcher and every process sees the same value.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from ddpm.config.values import quoted

_JOB = "${hydra:job.num}"
_KEYS = {
    "sample": "out",
    "interpolate": "out",
    "evaluate": "out",
    "average": "out",
    "export": "out",
    "import": "name",
}


def separate(config_name: str, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments of a sweep with one place per job, and lines that list the places.

    A place that is swept, or that contains the value of another option (``out=gen/${seed}``), is
    used as typed if it differs between all jobs. Otherwise ``out=gen`` becomes ``gen/0``, ``gen/1``
    and so on; a file keeps its suffix (``net.pt`` becomes ``net-0.pt``).

    Args:
        config_name: the command.
        arguments: all arguments of the command, which start a sweep.
    """
    unchanged = list(arguments), []
    typed = [one for one in arguments if "=" in one and not one.startswith("-")]
    try:
        overrides = OverridesParser.create().parse_overrides(typed)
        key = _KEYS.get(config_name)
        last = {one.key_or_group: one for one in overrides}
        places = None if key not in last else _values(last[key])
        if places is None or places == ["null"]:
            return unchanged
        jobs = _jobs(list(last.values()))
    except HydraException:  # Hydra reports it
        return unchanged
    assert key is not None
    texts = [_filled(job[key], job, number) for number, job in enumerate(jobs)]
    if len(set(map(_normal, texts))) == len(texts):
        return unchanged
    inserted = [_with_job(config_name, place, _JOB) for place in places]
    argument = f"{last[key].get_key_element()}={','.join(map(quoted, inserted))}"
    changed = [one for one in arguments if one not in _lines(overrides, key)] + [argument]
    lines = [f"{key}={places[0]} is the same for several jobs of the sweep; each has its own:"]
    for number, (job, text) in enumerate(zip(jobs, texts, strict=True)):
        swept = [f"{k}={job[k]}" for k, one in last.items() if one.is_sweep_override() and k != key]
        lines.append(f"  {_with_job(config_name, text, str(number))}: {' '.join(swept)}".rstrip())
    return changed, lines


def _values(override: Override) -> list[str]:
    """Return the values of an override; a single one if it is not swept."""
    if override.is_sweep_override():
        return [_unquoted(each) for each in override.sweep_string_iterator()]
    return [_unquoted(override.get_value_element_as_str())]


def _jobs(overrides: list[Override]) -> list[dict[str, str]]:
    """Return the options of each job by key, in the order of the jobs."""
    keys = [each.key_or_group for each in overrides]
    rows = itertools.product(*map(_values, overrides))
    return [dict(zip(keys, row, strict=True)) for row in rows]


def _lines(overrides: list[Override], key: str) -> list[str | None]:
    return [each.input_line for each in overrides if each.key_or_group == key]


def _filled(place: str, job: dict[str, str], number: int) -> str:
    """Return a place with the references to options of a job replaced by their values."""
    values = {**job, "hydra:job.num": str(number), "hydra.job.num": str(number)}
    return re.sub(r"\$\{([^{}]+)\}", lambda match: values.get(match[1], match[0]), place)


def _normal(place: str) -> Path:
    return Path(place).expanduser().absolute()


def _with_job(config_name: str, place: str, number: str) -> str:
    if config_name in ("export", "import"):
        path = Path(place)
        return str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
    return f"{place.rstrip('/')}/{number}"


def _unquoted(text: str) -> str:
    """Return a value without quotes and escapes."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return re.sub(r"\\([\\'\"])", r"\1", text[1:-1])
    return re.sub(r"\\(.)", r"\1", text)
