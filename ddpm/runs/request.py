"""Request for a training: a composed config, and the place of its run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ddpm import checkpoint_paths
from ddpm.config import values

Node = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Request:
    """Options of a training as composed, and those of them that were typed.

    Attributes:
        config: nodes of the config groups, and ``seed``.
        name: name of the run folder in ``out``; None = from the time and ``label``.
        out: parent folder of runs.
        resume: folder of the run to resume, or None.
        override: allow other options of the trainer than those of the run.
        overrides: typed options, as ``group.option=value``.
        job_folder: folder of the run as a job of a sweep, or None.
        label: names of the model and the data set, for the name of a new folder.
        plugins: modules of the user that the config requires.
    """

    config: Node
    name: str | None = None
    out: str = "outputs"
    resume: str | None = None
    override: bool = False
    overrides: tuple[str, ...] = ()
    job_folder: Path | None = None
    label: str = "run"
    plugins: tuple[str, ...] = ()

    @cached_property
    def typed_keys(self) -> frozenset[str]:
        """Keys of the typed options."""
        return frozenset(map(values.option_key, self.overrides))

    @property
    def key(self) -> Literal["name", "resume"]:
        """Option that selects the run, for error messages."""
        return "name" if self.resume is None and self.job_folder is None else "resume"

    def folder(self) -> Path | None:
        """Return the run folder, which may not exist; None if it is named by the time.

        Raises:
            ConfigError: ``name`` is not the name of a folder, or is reserved.
        """
        if self.resume is not None:
            return checkpoint_paths.readable(Path(self.resume).resolve())
        if self.name is not None:
            values.check_run_name(self.name, self.out)
        return self.job_folder or (None if self.name is None else Path(self.out, self.name))
