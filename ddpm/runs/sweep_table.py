"""What the jobs of a sweep came to, read from their folders: a table and a picture."""

from __future__ import annotations

import csv
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
from ddpm.report.tables import aligned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CSV, PICTURE = "sweep.csv", "sweep.png"
ENDS = ("status", "error", "steps", "loss", "best_loss", "best_step")  # columns behind the options
NOT_AN_OPTION = "-"  # of a job whose choice of a group does not have the option
STYLES = ("-", "--", ":", "-.")  # of lines whose losses are comparable
LEGEND = 20  # curves named in the picture


@dataclass(frozen=True)
class Job:
    """One job of a sweep, as its folder tells it.

    Attributes:
        points: (step, loss).
        measured: what was evaluated last while it trained, by name.
        config: of the run; empty where it did not begin.
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
        """The last loss that was logged."""
        return self.points[-1][1] if self.points else None

    @property
    def best(self) -> tuple[int | None, float | None]:
        """The step of the lowest loss, and that loss."""
        finite = [(loss, step) for step, loss in self.points if math.isfinite(loss)]
        if not finite:
            return None, None
        loss, step = min(finite)
        return step, loss


def records(place: Path) -> list[Path]:
    """The records of the jobs below a sweep's folder, by number."""
    found = [path for path in place.glob(f"*/{JOB_RECORD}") if path.parent.name.isdigit()]
    return sorted(found, key=lambda path: int(path.parent.name))


def read(path: Path) -> dict[str, Any]:
    """A job's record; empty where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def is_record(path: Path) -> bool:
    """Return True if a file is the record of a job."""
    content = read(path)
    return isinstance(content, dict) and {"overrides", "status"} <= content.keys()


def write(rows: list[Job], place: Path) -> list[str]:
    """Write the table and the picture into the folder of a sweep; returns their paths.

    A file of the user's keeps its name, and ours gets a number.
    """
    written: list[str] = []
    folder = OutputFolder(place, "train -m")
    old = folder.command not in read_record(place) and _is_table(place / CSV)  # had no record
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
    """Return True if a file begins as the table of a sweep."""
    try:
        with path.open(encoding="utf-8") as file:
            head = file.readline(100_000).rstrip("\n").split(",")
    except (OSError, ValueError):
        return False
    return head[0] == "job" and head[-1] == "folder" and set(ENDS) <= set(head)


def jobs(place: Path) -> list[Job]:
    """The jobs of the sweep in a folder, by number, with the options that differ between them."""
    told = {path: read(path) for path in records(place)}
    typed = {path: dict(map(_pair, one.get("overrides", []))) for path, one in told.items()}
    keys = list(dict.fromkeys(key for options in typed.values() for key in options))
    differ = [key for key in keys if len({options.get(key) for options in typed.values()}) > 1]
    return [
        _job(path, one, {key: typed[path].get(key, NOT_AN_OPTION) for key in differ})
        for path, one in told.items()
    ]


def _pair(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+~").partition("=")
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return key, value[1:-1] if quoted else value


def _job(record: Path, told: dict[str, Any], options: dict[str, str]) -> Job:
    from ddpm.training import checkpoint
    from ddpm.training.meter import QUARTERS
    from ddpm.training.run import Run

    run = Run(Path(told.get("folder", record.parent)))
    points = [(one["step"], _number(one["loss"])) for one in run.metrics() if "loss" in one]
    saved = [int(path.name.partition("-")[2]) for path in checkpoint.listed(run.path)[:1]]
    steps = max([0, *saved, *(step for step, _ in points)])
    status, error = told.get("status", "running"), told.get("error") or ""
    if status == "running":  # and the launcher has given up waiting
        status, error = "failed", "killed, or still running: it did not say how it ended"
    measured = {
        name: curve[-1][1]
        for name, curve in run.curves().items()
        if name != "loss" and not name.endswith(QUARTERS)  # those are too many for a table
    }
    number = int(record.parent.name)
    config = _config(run.config_file)
    return Job(number, options, status, error, run.path, steps, points, measured, config)


def _config(file: Path) -> dict[str, Any]:
    """The complete config of a run; empty where there is none that can be read."""
    from ddpm.instantiate import completed_if_known, from_yaml

    try:
        return completed_if_known(from_yaml(file.read_text(encoding="utf-8"), str(file)))
    except (ConfigError, OSError, ValueError):
        return {}


def _number(logged: float | None) -> float:
    return math.nan if logged is None else float(logged)  # null: it was not finite


def _measured(rows: list[Job]) -> list[str]:
    """What any of the jobs evaluated."""
    return list(dict.fromkeys(name for job in rows for name in job.measured))


def write_csv(rows: list[Job], path: Path) -> bool:
    """Write the table, a line a job; always True."""
    with replacing(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        keys, names = list(rows[0].options), _measured(rows)
        group = comparable.groups([job.config for job in rows])
        grouped = max(group) > 1
        table.writerow(["job", *keys, *ENDS, *names, *(["loss_group"] * grouped), "folder"])
        for job, own in zip(rows, group, strict=True):
            step, best = job.best
            told = (job.status, job.error, job.steps, job.loss, best, step)
            measured = [job.measured.get(name) for name in names]
            measured += [own] * grouped
            table.writerow([job.number, *job.options.values(), *told, *measured, job.folder])
    return True


def summary(rows: list[Job]) -> str:
    """The table in a terminal's width, long values cut."""
    names = _measured(rows)
    head = ["job", *rows[0].options, "status", "steps", "loss", "best", "at step", *names, ""]
    lines = [head]
    for job in rows:
        step, best = job.best
        numbers = [f"{x:.4g}" if x is not None else "-" for x in (job.loss, best)]
        ends = [job.status, str(job.steps), *numbers, "-" if step is None else str(step)]
        ends += [f"{job.measured[name]:.4g}" if name in job.measured else "-" for name in names]
        told = [*(_cut(x, 24) for x in job.options.values()), *ends, _cut(job.error, 60)]
        lines.append([str(job.number), *told])
    warning = _warning(rows)
    return aligned(lines) if warning is None else f"{aligned(lines)}\n{warning}"


def _warning(rows: Sequence[Job]) -> str | None:
    """A sentence about losses that are not comparable; None where they are."""
    return comparable.warning([job.config for job in rows if job.points], "jobs")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def draw(rows: list[Job], path: Path, *, title: str = "") -> bool:
    """Draw the loss of every job over the steps, named in the order of the last loss.

    The lines are running means of at most a twentieth of what was logged, since a logged loss is
    noisy; the legend has the last logged losses. False where no job logged anything.
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
    legend = "last loss" if left_out <= 0 else f"last loss; {left_out} worse ones not named"
    figure.legend(loc="outside right upper", fontsize="small", title=legend)
    with replacing(path) as aside:
        figure.savefig(aside, dpi=120, format="png")
    return True


def _describe(axes: Axes, title: str) -> None:
    """Give the axes their names and their scale."""
    axes.set(xlabel="optimizer step", ylabel="training loss (running mean)", yscale="log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter("{x:g}")  # 0.1, not ten to the -1
    axes.yaxis.set_minor_formatter("{x:g}" if high < 10 * low else "")
    axes.set_title(_plain(title))
    axes.grid(alpha=0.3, which="both")


def _warn(figure: Figure, rows: Sequence[Job]) -> None:
    """Write below the picture that its losses are not comparable, if they are not."""
    warning = _warning(rows)
    if warning is not None:
        said = textwrap.fill(f"{warning} Those of one line style are.", 140)
        figure.supxlabel(_plain(said), fontsize="medium", color="firebrick")


def _by_loss(job: Job) -> tuple[bool, float]:
    assert job.loss is not None
    return (False, job.loss) if math.isfinite(job.loss) else (True, 0.0)


def _name(job: Job) -> str:
    options = "".join(f" {key}={value}" for key, value in job.options.items())
    return _plain(_cut(f"job {job.number}:{options}".rstrip(":"), 60))


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # no formulas


def _smooth(losses: Sequence[float]) -> list[float]:
    """The mean of each loss and those before it: as many as a twentieth of them all."""
    width = max(1, len(losses) // 20)
    return [
        sum(part) / len(part)
        for n in range(1, len(losses) + 1)
        if (part := losses[max(0, n - width) : n])
    ]
