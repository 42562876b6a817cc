"""Results of the jobs of a sweep, read from their folders: a table and a figure."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm import comparable
from ddpm.console import warn
from ddpm.errors import ConfigError
from ddpm.files import replacing
from ddpm.outputs import JOB_RECORD, OutputFolder, read_record
from ddpm.report import run_table
from ddpm.report.run_table import Column, as_text, cut, differing_keys, value_columns
from ddpm.streams import plot_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CSV, PICTURE = "sweep.csv", "sweep.png"
RESULTS = ("status", "error", "steps", "loss", "best_loss", "best_step")  # after the options
NOT_AN_OPTION = "-"  # for an option that the group of a job does not have
STYLES = ("-", "--", ":", "-.")  # one per group of comparable losses
LEGEND = 20  # curves with an entry in the legend


@dataclass(frozen=True)
class Job:
    """Result of one job of a sweep.

    Attributes:
        number: number of its folder.
        options: the options that differ between jobs, as typed.
        status: such as ``done`` or ``failed``.
        error: error message; empty if the job succeeded.
        folder: the run folder.
        steps: number of optimizer steps.
        points: logged losses as (step, loss).
        measured: the last value of each metric that was evaluated during training.
        config: config of the run; empty if it did not start.
    """

    number: int
    options: dict[str, str]
    status: str
    error: str
    folder: Path
    steps: int
    points: list[tuple[int, float]]
    measured: dict[str, float]
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def loss(self) -> float | None:
        """Last logged loss, or None."""
        return self.points[-1][1] if self.points else None

    @property
    def best(self) -> tuple[int | None, float | None]:
        """Step and value of the lowest logged loss, or (None, None)."""
        finite = [(loss, step) for step, loss in self.points if math.isfinite(loss)]
        if not finite:
            return None, None
        loss, step = min(finite)
        return step, loss


def records(place: Path) -> list[Path]:
    """Return the paths of the job records in the folder of a sweep, by number."""
    paths = [path for path in place.glob(f"*/{JOB_RECORD}") if path.parent.name.isdigit()]
    return sorted(paths, key=lambda path: int(path.parent.name))


def read(path: Path) -> dict[str, Any]:
    """Return the content of a job record; empty if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def is_record(path: Path) -> bool:
    """Return True if a file is the record of a job."""
    content = read(path)
    return isinstance(content, dict) and {"overrides", "status"} <= content.keys()


def write(rows: list[Job], place: Path) -> list[str]:
    """Write the table and the figure into the folder of a sweep; return their paths.

    A file of the same name that was not written by a sweep stays, and ours gets a numbered name.
    """
    written: list[str] = []
    folder = OutputFolder(place, "train -m")
    no_record = folder.command not in read_record(place)  # as in sweeps of earlier versions
    old = no_record and _is_table(place / CSV)
    try:
        with folder.naming():
            folder.prepare()
            folder.open()
            for name, draw_file in ((CSV, write_csv), (PICTURE, partial(draw, title=place.name))):
                free = name if old and folder.adopt(name) else folder.free_name(name)
                if draw_file(rows, folder.aside / free):
                    folder.publish()
                    written.append(str(place / free))
            folder.finish(keep=True)
    except (ConfigError, OSError) as error:
        warn(str(error))
    finally:
        folder.close()
    return written


def _is_table(path: Path) -> bool:
    """Return True if a file starts with the heading of the table of a sweep."""
    try:
        with path.open(encoding="utf-8") as file:
            head = file.readline(100_000).rstrip("\n").split(",")
    except (OSError, ValueError):
        return False
    return head[0] == "job" and head[-1] == "folder" and set(RESULTS) <= set(head)


def jobs(place: Path) -> list[Job]:
    """Return the jobs of a sweep by number, each with the options that differ between them."""
    contents = {path: read(path) for path in records(place)}
    typed = [dict(map(_pair, content.get("overrides", []))) for content in contents.values()]
    keys = differing_keys(typed)
    return [
        _job(path, content, {key: options.get(key, NOT_AN_OPTION) for key in keys})
        for (path, content), options in zip(contents.items(), typed, strict=True)
    ]


def _pair(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+~").partition("=")
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return key, value[1:-1] if quoted else value


def _job(record: Path, content: dict[str, Any], options: dict[str, str]) -> Job:
    from ddpm.training import checkpoint
    from ddpm.training.meter import QUARTERS
    from ddpm.training.run import Run

    run = Run(Path(content.get("folder", record.parent)))
    points = [(row["step"], _number(row["loss"])) for row in run.metrics() if "loss" in row]
    saved = [int(path.name.partition("-")[2]) for path in checkpoint.listed(run.path)[:1]]
    steps = max([0, *saved, *(step for step, _ in points)])
    status, error = content.get("status", "running"), content.get("error") or ""
    if status == "running":  # although the launcher no longer waits for it
        status, error = "failed", "killed or still running: it recorded no result"
    measured = {
        name: curve[-1][1]
        for name, curve in run.curves().items()
        if name != "loss" and not name.endswith(QUARTERS)  # too many for a table
    }
    number = int(record.parent.name)
    config = _config(run.config_file)
    return Job(number, options, status, error, run.path, steps, points, measured, config)


def _config(file: Path) -> dict[str, Any]:
    """Return the complete config of a run; empty if it cannot be read."""
    from ddpm.config.registry import config_with_defaults_if_known
    from ddpm.config.text import from_yaml

    try:
        return config_with_defaults_if_known(from_yaml(file.read_text(encoding="utf-8"), str(file)))
    except (ConfigError, OSError, ValueError):
        return {}


def _number(logged: float | None) -> float:
    return math.nan if logged is None else float(logged)  # null is a loss that was not finite


def write_csv(rows: Sequence[Job], path: Path) -> bool:
    """Write the table as a CSV file, a line per job; return True."""
    group = comparable.groups([job.config for job in rows])
    columns = [
        Column("job", [job.number for job in rows]),
        *_options(rows),
        Column("status", [job.status for job in rows]),
        Column("error", [job.error for job in rows]),
        Column("steps", [job.steps for job in rows]),
        Column("loss", [job.loss for job in rows]),
        Column("best_loss", [job.best[1] for job in rows]),
        Column("best_step", [job.best[0] for job in rows]),
        *value_columns([job.measured for job in rows]),
        *([Column("loss_group", group)] if max(group) > 1 else []),
        Column("folder", [job.folder for job in rows]),
    ]
    run_table.write_csv(columns, path)
    return True


def summary(rows: Sequence[Job]) -> str:
    """Return the table as text, long values cut, with a warning about losses below it."""
    columns = [
        Column("job", [job.number for job in rows]),
        *_options(rows),
        Column("status", [job.status for job in rows]),
        Column("steps", [job.steps for job in rows]),
        Column("loss", [job.loss for job in rows]),
        Column("best", [job.best[1] for job in rows]),
        Column("at step", [job.best[0] for job in rows]),
        *value_columns([job.measured for job in rows]),
        Column("", [job.error for job in rows], width=60),
    ]
    warning = _warning(rows)
    return as_text(columns) if warning is None else f"{as_text(columns)}\n{warning}"


def _options(rows: Sequence[Job]) -> list[Column]:
    return [Column(key, [job.options[key] for job in rows], width=24) for key in rows[0].options]


def _warning(rows: Sequence[Job]) -> str | None:
    """Return a sentence about losses that are not comparable, or None."""
    return comparable.warning([job.config for job in rows if job.points], "jobs")


def draw(rows: list[Job], path: Path, *, title: str = "") -> bool:
    """Draw the loss of each job over the optimizer steps, in the order of the last loss.

    A line is the running mean over a twentieth of the logged losses, since these are noisy. The
    legend shows the last logged loss.

    Returns:
        False, without a file, if no job logged a loss.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    ranked = sorted((job for job in rows if job.points), key=_by_loss)
    if not ranked:
        return False
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots()
    colors = [
        colormaps["turbo"](0.05 + 0.9 * n / max(1, len(ranked) - 1)) for n in range(len(ranked))
    ]
    group = comparable.groups([job.config for job in ranked])
    for place, (job, color) in enumerate(zip(ranked, colors, strict=True)):
        style = STYLES[(group[place] - 1) % len(STYLES)]
        steps, losses = zip(*job.points, strict=True)
        label = f"{job.loss:.4g}  {_name(job)}" if place < LEGEND else None
        marker = "o" if len(steps) == 1 else None
        look = {"color": color, "lw": 1.5, "marker": marker, "linestyle": style}
        axes.plot(steps, _smooth(losses), label=label, **look)
    _describe(axes, title)
    _warn(figure, ranked)
    left_out = len(ranked) - LEGEND
    legend = "last loss" if left_out <= 0 else f"last loss; {left_out} worse ones omitted"
    figure.legend(loc="outside right upper", fontsize="small", title=legend)
    with replacing(path) as aside:
        figure.savefig(aside, dpi=120, format="png")
    return True


def _describe(axes: Axes, title: str) -> None:
    """Set labels, scale, title and grid of the axes."""
    axes.set(xlabel="optimizer step", ylabel="training loss (running mean)", yscale="log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter("{x:g}")  # 0.1 instead of a power of ten
    axes.yaxis.set_minor_formatter("{x:g}" if high < 10 * low else "")
    axes.set_title(plot_text(title))
    axes.grid(alpha=0.3, which="both")


def _warn(figure: Figure, rows: Sequence[Job]) -> None:
    """Write a warning below the figure if its losses are not comparable."""
    warning = _warning(rows)
    if warning is not None:
        note = textwrap.fill(f"{warning} Those with the same line style are.", 140)
        figure.supxlabel(plot_text(note), fontsize="medium", color="firebrick")


def _by_loss(job: Job) -> tuple[bool, float]:
    assert job.loss is not None
    return (False, job.loss) if math.isfinite(job.loss) else (True, 0.0)


def _name(job: Job) -> str:
    options = "".join(f" {key}={value}" for key, value in job.options.items())
    return plot_text(cut(f"job {job.number}:{options}".rstrip(":"), 60))


def _smooth(losses: Sequence[float]) -> list[float]:
    """Return running means: each over the losses before, at most a twentieth of all."""
    width = max(1, len(losses) // 20)
    return [
        sum(part) / len(part)
        for n in range(1, len(losses) + 1)
        if (part := losses[max(0, n - width) : n])
    ]
