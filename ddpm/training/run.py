"""Run folders: where a run's results lie, and when a run may go on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddpm.errors import ConfigError, render

# What may differ when a run goes on: none of it changes what is computed.
FREE_KEYS = frozenset(
    {
        "data.path",
        "data.download",
        "data.cache_mb",
        "trainer.max_steps",
        "trainer.log_every",
        "trainer.preview_every",
        "trainer.preview_samples",
        "trainer.checkpoint_every",
        "trainer.keep_last",
        "trainer.num_workers",
    }
)


class Run:
    """One run folder: ``config.yaml``, ``metrics.jsonl``, ``samples/``, ``checkpoints/``.

    Args:
        path: the folder; made on first use.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples = path / "samples"
        self.config_file = path / "config.yaml"
        self.metrics_file = path / "metrics.jsonl"

    def create(self, config_yaml: str) -> None:
        """Make the folder with its config, and point ``latest`` beside it to it.

        Raises:
            ConfigError: the place cannot be written.
        """
        try:
            self.samples.mkdir(parents=True, exist_ok=True)
            aside = self.config_file.with_suffix(".tmp")
            aside.write_text(config_yaml, encoding="utf-8")
            aside.replace(self.config_file)
            latest = self.path.parent / f".latest-{os.getpid()}"
            latest.unlink(missing_ok=True)
            latest.symlink_to(self.path.name)
            latest.replace(self.path.parent / "latest")
        except OSError as error:
            raise unwritable(self.path, error) from error

    def log(self, record: Mapping[str, float | int]) -> None:
        """Append one line to ``metrics.jsonl``."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """What was logged, oldest first; a line that a crash cut short is left out."""
        records = []
        if self.metrics_file.exists():
            for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
                try:
                    records.append(json.loads(line))
                except ValueError:
                    continue
        return records

    def rewind(self, step: int) -> None:
        """Forget what was logged after ``step``: it will be computed, and logged, again."""
        kept = [record for record in self.metrics() if record["step"] <= step]
        aside = self.metrics_file.with_suffix(".tmp")
        aside.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        aside.replace(self.metrics_file)

    def plot(self) -> Path | None:
        """Draw the loss over the steps into ``loss.png``; None where nothing was logged."""
        records = self.metrics()
        if not records:
            return None
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        steps = [record["step"] for record in records]
        for quarter in range(4):
            name = f"loss_q{quarter}"
            points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
            label = f"t in quarter {quarter + 1} of 4"
            axes.plot(
                *zip(*points, strict=True) if points else ([], []), lw=0.8, alpha=0.6, label=label
            )
        axes.plot(
            steps, [record["loss"] for record in records], color="black", lw=1.5, label="loss"
        )
        axes.set(
            xlabel="optimizer step", ylabel="training loss", yscale="log", title=self.path.name
        )
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        target = self.path / "loss.png"
        figure.savefig(target, dpi=120)
        return target


def unwritable(folder: Path, error: OSError) -> ConfigError:
    """The mistake of an output folder that the file system refuses."""
    problem = f"cannot be written ({error.strerror}); choose another folder with out="
    return ConfigError("out", str(folder), problem)


def new_folder(parent: Path, wanted: str) -> Path:
    """Make the folder ``wanted``, or with the first of the endings -2, -3, ... that is free.

    Raises:
        ConfigError: the place cannot be written.
    """
    folder, number = parent / wanted, 1
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                folder.mkdir()
                return folder
            except FileExistsError:  # of an earlier run, or of one that starts at the same time
                number += 1
                folder = parent / f"{wanted}-{number}"
    except OSError as error:
        raise unwritable(folder, error) from error


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"trainer.lr": 1e-4, ...}`` of a nested config."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = list(value) if isinstance(value, tuple) else value
    return found


def check_same(stored: Mapping[str, Any], asked: Mapping[str, Any], key: str, run: Path) -> None:
    """Refuse to go on with a run under another config, or on other data.

    Args:
        stored: of the run.
        asked: what it would go on with.
        key: the option to blame.
        run: the run's folder.

    Raises:
        ConfigError: names every differing key with both values; see ``FREE_KEYS``.
    """
    old, new = flat(stored), flat(asked)
    differing = [
        f"{key} ({render(old.get(key))} there, {render(new.get(key))} here)"
        for key in sorted(old.keys() | new.keys())
        if key not in FREE_KEYS and old.get(key) != new.get(key)
    ]
    if differing:
        problem = (
            f"is a run with other options: {', '.join(differing)}; leave them, or start a new run"
        )
        raise ConfigError(key, str(run) if key == "resume" else run.name, problem)
