r"""Train on small images and measure samples of every objective, schedule and sampler.

    python scripts/showcase.py mnist=FOLDER
    python scripts/showcase.py tasks=[digits]
    python scripts/showcase.py compare=docs/results.json

The runs and their measurements are in ``out``. What exists there is neither trained nor measured
again, so that an interrupted command continues; remove ``out`` to begin anew. FOLDER has pictures
in a folder per digit; a .tar.gz of such a folder is unpacked. The results are written to ``docs``:
``results.md``, ``results.json`` and a plot per task. With ``compare`` they are written to ``out``,
and numbers that are worse than the stored ones are reported with exit status 1. 90 minutes on 2
cores.

Options: ``tasks``, ``mnist``, ``out``, ``docs``, ``compare``, ``max_steps`` (of training, for a
trial).
"""

from __future__ import annotations

import json
import platform
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ddpm.errors import ConfigError, did_you_mean, require  # noqa: E402
from ddpm.files import replacing  # noqa: E402
from ddpm.version import __version__  # noqa: E402
from scripts import typed_options  # noqa: E402
from scripts.quality import report  # noqa: E402
from scripts.quality.runs import Measured, Row, Task, digits, mnist, unpacked  # noqa: E402

TASKS = ("digits", "mnist")


@dataclass(frozen=True)
class Options:
    """Options of the script, as typed."""

    tasks: list[str] = field(default_factory=lambda: list(TASKS))
    mnist: str = "mnist_5k"
    out: str = "outputs/showcase"
    docs: str = "docs"
    compare: str | None = None
    max_steps: int | None = None


def parse(arguments: list[str]) -> Options:
    """Return the options of ``key=value`` arguments.

    Raises:
        ConfigError: an unknown option or task, or a missing file of ``compare``.
    """
    options = typed_options.parse(Options, arguments)
    for name in options.tasks:
        require(name in TASKS, "tasks", name, f"unknown{did_you_mean(name, TASKS)}")
    problem = "the file does not exist; write it first, without compare"
    exists = options.compare is None or Path(options.compare).is_file()
    require(exists, "compare", options.compare, problem)
    return options


def tasks_of(options: Options) -> list[Task]:
    """Return the tasks, which are checked before the first one starts."""
    made = {
        "digits": lambda: digits(options.max_steps),
        "mnist": lambda: mnist(
            unpacked(Path(options.mnist), Path(options.out)).resolve(), options.max_steps
        ),
    }
    return [made[name]() for name in options.tasks]


def measure(options: Options) -> dict[str, Any]:
    """Train and measure all tasks; returns the content of ``results.json``."""
    tasks, began, out = tasks_of(options), time.monotonic(), Path(options.out).resolve()
    total = sum(len(task.variants) * len(task.cells) for task in tasks)
    done: list[Row] = []

    def show(row: Row) -> None:
        done.append(row)
        minutes = (time.monotonic() - began) / 60
        rest = minutes / len(done) * (total - len(done))
        cell = f"{row.task}: {row.run}, {row.sampler} {row.steps}: FID {row.fid:.2f}"
        print(f"[{len(done)}/{total}, about {rest:.0f} min left] {cell}", flush=True)

    contexts = {}
    for task in tasks:
        folders = map(task.folder, task.variants)
        earlier = ", ".join(name for name in folders if (out / task.name / name).exists())
        if earlier:
            print(f"what exists in {out / task.name} is not repeated: {earlier}")
        measured = Measured(task, out, show)
        measured.rows()
        contexts[task.name] = measured.context
    return {
        "contexts": contexts,
        "rows": [asdict(row) for row in done],
        "time": f"{(time.monotonic() - began) / 60:.0f} minutes, {time.process_time() / 60:.0f} of "
        "CPU time",
        "versions": {"ddpm": __version__, "torch": torch.__version__},
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
    }


def write(results: dict[str, Any], folder: Path) -> None:
    """Write ``results.json``, ``results.md`` and the plots."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = results["rows"]
    for name, context in results["contexts"].items():
        own = [row for row in rows if row["task"] == name]
        report.plot(own, context["floors"], folder / f"results_{name}.png")
    versions, machine = results["versions"], results["machine"]
    text = report.document(
        results["contexts"],
        rows,
        f"{results['time']}, {machine['threads']} threads of {machine['processor']}, torch "
        f"{versions['torch']}.",
    )
    for name, content in (
        ("results.json", json.dumps(results, indent=1) + "\n"),
        ("results.md", text),
    ):
        with replacing(folder / name) as aside:
            aside.write_text(content, encoding="utf-8")
    print(f"written to {folder / 'results.md'}")


def main() -> None:
    """Run the script; an invalid option is reported in one line."""
    try:
        options = parse(sys.argv[1:])
        results = measure(options)
        write(results, Path(options.docs if options.compare is None else options.out))
    except ConfigError as error:
        sys.exit(str(error))
    if options.compare is not None:
        stored = json.loads(Path(options.compare).read_text(encoding="utf-8"))
        worse = report.compare(results["rows"], stored["rows"])
        if worse:
            sys.exit("\n".join(["worse than the stored results:", *worse]))
        print(f"no number is worse than in {options.compare}")


if __name__ == "__main__":
    main()
