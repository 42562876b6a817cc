"""Sweeps over a config group, together with options that only some of its choices have.

``-m model=iddpm_unet,simple_unet model.model_channels=32`` sets the option in the jobs whose
network has it. Hydra first composes one config without the swept values, then the config of each
job, and rejects an option that one of them lacks. Therefore an option that the default choices lack
is marked as swept, and ``ChoiceSweeper`` leaves options out of the jobs that lack them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException

from ddpm.config.location import config_dir
from ddpm.console import info

SWEEPER = "hydra_plugins.ddpm_sweeper.ChoiceSweeper"


def prepare(config_name: str, arguments: Sequence[str], overrides: Sequence[Override]) -> list[str]:
    """Return the arguments of a sweep, changed so that Hydra uses ``ChoiceSweeper``.

    They are unchanged if each group has a single choice, or if the user chose a sweeper.

    Args:
        config_name: name of the command.
        arguments: as typed.
        overrides: the same, parsed by Hydra; empty if they cannot be parsed.
    """
    groups = [one for one in overrides if (config_dir() / one.key_or_group).is_dir()]
    chosen = any(one.key_or_group.startswith("hydra/sweeper") for one in overrides)
    own = any(one.key_or_group == "hydra.sweeper._target_" for one in overrides)
    if chosen or own or not any(one.is_sweep_override() for one in groups):
        return list(arguments)
    lacking = _lacked_by_default(config_name, overrides)
    changed = [_as_swept(one) if _key(one) in lacking else one for one in arguments]
    return [*changed, f"hydra.sweeper._target_={SWEEPER}"]


def _as_swept(argument: str) -> str:
    key, _, value = argument.partition("=")
    return f"{key}=choice({value})"


def _key(override: str) -> str:
    return override.partition("=")[0]


def _lacked_by_default(config_name: str, overrides: Sequence[Override]) -> set[str]:
    """Return the options with a single value that the config without the swept values lacks."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    lines = [str(one.input_line) for one in overrides if not one.is_sweep_override()]
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(config_dir()), version_base="1.3"):
        return _lacked(lines, lambda job: compose(config_name, overrides=job))


def _lacked(job: Sequence[str], load: Callable[[list[str]], Any]) -> set[str]:
    """Return the options of a job that its config lacks.

    Other errors of the job are left to Hydra, which composes it later.
    """
    lacking: set[str] = set()
    rest = list(job)
    while True:
        try:
            load(rest)
            return lacking
        except ConfigCompositionException as error:
            match = re.search(r"Could not override '([^']+)'", str(error))
        except Exception:
            return lacking
        left = [one for one in rest if match is None or _key(one) != match[1]]
        if match is None or len(left) == len(rest):
            return lacking
        lacking.add(match[1])
        rest = left


def fit_jobs(jobs: Sequence[list[str]], load: Callable[[list[str]], Any]) -> list[list[str]]:
    """Return the jobs of a sweep, each without the options that its choices lack.

    Jobs that differ in such options only are merged. The omitted options are printed.

    Args:
        jobs: the overrides of each combination.
        load: composes the config of a job.

    Raises:
        ConfigCompositionException: an option that the choices of all jobs lack.
    """
    groups = {_key(one) for job in jobs for one in job if (config_dir() / _key(one)).is_dir()}
    lacking: dict[tuple[str, ...], set[str]] = {}
    for job in jobs:
        choices = tuple(one for one in job if _key(one) in groups)
        if choices not in lacking:
            lacking[choices] = _lacked(job, load)
    nowhere = set.intersection(*lacking.values())
    if nowhere:
        others = next(iter(lacking.values())) - nowhere  # of the first job
        load([one for one in jobs[0] if _key(one) not in others])  # Hydra's error names the option
    left: list[list[str]] = []
    kept_jobs: set[tuple[str, ...]] = set()
    for job in jobs:
        missing = lacking[tuple(one for one in job if _key(one) in groups)]
        rest = [one for one in job if _key(one) not in missing]
        if not missing or tuple(rest) not in kept_jobs:
            left.append(rest)
        kept_jobs.update([tuple(rest)] if missing else [])
    _report(lacking, len(jobs), len(left))
    return left


def _report(lacking: dict[tuple[str, ...], set[str]], combinations: int, jobs: int) -> None:
    """Print the omitted options and the number of jobs."""
    everywhere = set.intersection(*map(set, lacking))
    for key in sorted(set.union(*lacking.values())):
        without = [choices for choices, missing in lacking.items() if key in missing]
        others = {one for choices in lacking if choices not in without for one in choices}
        group = [one for c in without for one in c if _key(one) == key.partition(".")[0]]
        names = [one for one in group if one not in others] or [
            " ".join(one for one in choices if one not in everywhere) for choices in without
        ]
        info(f"{key}: not an option of {', '.join(dict.fromkeys(names))}; left out there")
    if jobs < combinations:
        info(
            f"{combinations} combinations are {jobs} jobs: the others differ in such options alone"
        )
