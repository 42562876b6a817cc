"""Tables of runs: one list of columns as a CSV file, as text in a terminal, and in the report."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm.errors import render
from ddpm.files import replacing

if TYPE_CHECKING:
    from ddpm.metrics.results import Metric

_MISSING = object()


@dataclass(frozen=True)
class Column:
    """A column of a table with a row per run.

    Attributes:
        name: the heading.
        values: one per run; None where a run does not have a value.
        errors: standard errors of the values, one per run, each may be None; () if not a metric.
        higher_is_better: for metrics.
        digits: significant digits of a float in text.
        width: maximum number of characters in text; None for any number.
    """

    name: str
    values: Sequence[Any]
    errors: Sequence[float | None] = ()
    higher_is_better: bool = False
    digits: int = 4
    width: int | None = None

    def text(self, row: int) -> str:
        """Return the value of a run as text; ``-`` where it does not have one."""
        value = self.values[row]
        if isinstance(value, float):
            return f"{value:.{self.digits}g}"
        return "-" if value is None else cut(str(value), self.width)


def cut(text: str, width: int | None) -> str:
    """Return text of at most ``width`` characters, with an ellipsis in place of the rest."""
    return text if width is None or len(text) <= width else text[: width - 1] + "…"


def all_keys(mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys of all mappings in the order of appearance."""
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def differing_keys(mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys whose values are not the same in all mappings, or are missing in some."""
    return [
        key
        for key in all_keys(mappings)
        if any(m.get(key, _MISSING) != mappings[0].get(key, _MISSING) for m in mappings)
    ]


def option_columns(
    configs: Sequence[Mapping[str, Any]], missing: str, width: int | None = None
) -> list[Column]:
    """Return a column per option whose value differs between runs.

    Args:
        configs: options by dotted key, one mapping per run.
        missing: text where a run does not have the option.
        width: characters of a value in text.
    """

    def shown(config: Mapping[str, Any], key: str) -> str:
        return render(config[key]) if key in config else missing

    keys = differing_keys(configs)
    return [Column(key, [shown(config, key) for config in configs], width=width) for key in keys]


def value_columns(runs: Sequence[Mapping[str, float]]) -> list[Column]:
    """Return a column per name of a value that any run has."""
    return [Column(name, [run.get(name) for run in runs]) for name in all_keys(runs)]


def metric_columns(runs: Sequence[Sequence[Metric]]) -> list[Column]:
    """Return a column per metric that any run has."""
    by_name = [{metric.name: metric for metric in metrics} for metrics in runs]
    columns = []
    for name in all_keys(by_name):
        metrics = [metrics.get(name) for metrics in by_name]
        columns.append(
            Column(
                name,
                [None if metric is None else metric.value for metric in metrics],
                [None if metric is None else metric.error for metric in metrics],
                next(metric.higher_is_better for metric in metrics if metric is not None),
                digits=5,
            )
        )
    return columns


def write_csv(columns: Sequence[Column], path: Path) -> None:
    """Write columns as a CSV file, a line per run below the names; missing values are empty."""
    with replacing(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([column.name for column in columns])
        table.writerows(zip(*(column.values for column in columns), strict=True))


def as_text(columns: Sequence[Column]) -> str:
    """Return columns as aligned lines of text, a line per run below the names."""
    cells = [
        [column.name, *(column.text(row) for row in range(len(column.values)))]
        for column in columns
    ]
    widths = [max(map(len, column)) for column in cells]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*cells, strict=True)
    )
