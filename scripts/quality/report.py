"""Tables and plots of ``scripts/showcase.py``, and the comparison with a stored table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddpm.files import replacing

COLUMNS = {
    "run": "objective, schedule",
    "sampler": "sampler",
    "steps": "steps",
    "guidance": "guidance",
    "fid": "FID",
    "accuracy": "accuracy",
    "memorised": "memorised",
    "val_loss": "loss",
    "bpd": "bits per dimension",
    "seconds": "CPU seconds",
}
FORMATS = {
    "fid": "{:.2f}", "accuracy": "{:.1%}", "memorised": "{:.1%}", "val_loss": "{:.4f}",
    "bpd": "{:.2f}", "seconds": "{:.0f}", "guidance": "{:g}",
}  # fmt: skip
TOLERANCES = {
    "fid": (0.15, 0.5),
    "accuracy": (0.0, 0.02),
    "bpd": (0.02, 0.05),
    "val_loss": (0.03, 0.0),
}
"""Relative and absolute differences between two machines, above which :func:`compare` reports."""
LOWER_IS_BETTER = ("fid", "bpd", "val_loss")

Rows = list[dict[str, Any]]


def table(rows: Rows) -> str:
    """Return a Markdown table; columns in which all rows have the same value are left out."""
    names = [
        name for name in COLUMNS if name in FORMATS or len({str(row[name]) for row in rows}) > 1
    ]
    names = [name for name in names if any(row[name] is not None for row in rows)]
    if len({row["guidance"] for row in rows}) == 1:
        names.remove("guidance")
    lines = ["| " + " | ".join(COLUMNS[name] for name in names) + " |", "|---" * len(names) + "|"]
    for row in rows:
        cells = (FORMATS.get(name, "{}").format(row[name]) for name in names)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def section(name: str, context: dict[str, Any], rows: Rows) -> str:
    """Return the section of a task: floors, codecs, table and plot."""
    floors = ", ".join(f"{what} {value:.2f}" for what, value in context["floors"].items())
    codecs = ", ".join(
        f"{codec} {'not installed' if value is None else f'{value:.2f}'}"
        for codec, value in context["codecs"].items()
    )
    varied = " objective=... schedule=..." if len({row["run"] for row in rows}) > 1 else ""
    return (
        f"## {name}\n\n"
        f"{context['num_training']} images for training, {context['num_held_out']} held out. Each "
        f"run: `ddpm-train {' '.join(context['options'])}{varied}`.\n\n"
        f"- Floors of FID: {floors}. The extractor is a classifier of the other half of the "
        f"training images, {context['classifier_accuracy']:.1%} right on held-out images, weights "
        f"sha256 {context['classifier_sha256'][:12]}.\n"
        f"- Lossless codecs, bits per dimension of the held-out images: {codecs}.\n"
        f"- Share of held-out images that the test of memorisation takes for copies of training "
        f"images: {context['memorised_held_out']:.1%}.\n\n"
        f"{table(rows)}\n\n![FID and bits per dimension](results_{name}.png)\n"
    )


def document(contexts: dict[str, Any], rows: Rows, machine: str) -> str:
    """Return ``results.md``."""
    parts = [
        section(name, context, [row for row in rows if row["task"] == name])
        for name, context in contexts.items()
    ]
    head = (
        "# Results\n\n"
        "Written by `python scripts/showcase.py`; `make quality` measures again and compares. "
        f"{machine}\n\n"
        "FID is that of 1,000 samples in the features of a small classifier: compare it with its "
        "floors, not with published numbers. Loss and bits per dimension are those of held-out "
        "images; losses of different objectives or schedules are not comparable. A sample is "
        "memorised if its nearest training image is three times nearer than the second nearest. "
        "CPU seconds are those of all threads for 1,000 samples.\n\n"
    )
    return head + "\n".join(parts)


def plot(rows: Rows, floors: dict[str, float], path: Path) -> None:
    """Write the plot of FID per run and sampler, and of bits per dimension per run."""
    from matplotlib.figure import Figure

    runs = list(dict.fromkeys(row["run"] for row in rows))
    cells = list(dict.fromkeys((r["sampler"], r["steps"], r["guidance"]) for r in rows))
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    for index, cell in enumerate(cells):
        values = {
            r["run"]: r["fid"] for r in rows if (r["sampler"], r["steps"], r["guidance"]) == cell
        }
        places = [i + (index - len(cells) / 2) * 0.8 / len(cells) for i in range(len(runs))]
        guided = "" if cell[2] == 1 else f", guidance {cell[2]:g}"
        heights = [values.get(run, float("nan")) for run in runs]
        left.bar(places, heights, 0.8 / len(cells), label=f"{cell[0]} {cell[1]}{guided}")
    for style, (what, value) in zip(("--", ":"), floors.items(), strict=False):
        left.axhline(value, color="black", linestyle=style, linewidth=1, label=what)
    left.set(ylabel="FID", ylim=(0, None))
    figure.legend(loc="outside upper center", ncols=len(cells) + len(floors), fontsize=7)
    bits = right.barh(runs, [next(r["bpd"] for r in rows if r["run"] == run) for run in runs])
    right.bar_label(bits, fmt="%.2f", fontsize=7)
    right.set(xlabel="bits per dimension", xscale="log")
    right.xaxis.set_major_formatter("{x:g}")
    right.xaxis.set_minor_formatter("")
    right.margins(x=0.2)
    left.set_xticks(range(len(runs)), [run.replace(", ", "\n") for run in runs], fontsize=7)
    right.tick_params(axis="y", labelsize=7)
    with replacing(path) as aside:
        figure.savefig(aside, dpi=130, format="png")


def compare(rows: Rows, stored: Rows) -> list[str]:
    """Return a line per number that is worse than the stored one by more than its tolerance."""
    keys = ("task", "run", "sampler", "steps", "guidance")
    before = {tuple(row[key] for key in keys): row for row in stored}
    lines = []
    for row in rows:
        old = before.get(tuple(row[key] for key in keys))
        if old is None:
            continue
        for name, (relative, absolute) in TOLERANCES.items():
            if row[name] is None or old[name] is None:
                continue
            worse = row[name] - old[name] if name in LOWER_IS_BETTER else old[name] - row[name]
            if worse > max(relative * abs(old[name]), absolute):
                cell = ", ".join(str(row[key]) for key in keys)
                lines.append(f"{cell}: {name} {row[name]:.4g}, stored {old[name]:.4g}")
    return lines
