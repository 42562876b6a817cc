"""The table of results: printed line by line, and rewritten as Markdown and JSON after each."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ddpm.files import replacing

Outcome = Literal["pass", "FAIL", "skip"]


@dataclass(frozen=True)
class Line:
    """Result of one check.

    Attributes:
        part: number of the part, 1 to 5.
        name: of the check, with its tolerance.
        outcome: ``pass``, ``FAIL``, or ``skip`` for one that was not run.
        detail: the measured numbers, or the reason.
        seconds: duration.
        data: the numbers by name, for the JSON file.
    """

    part: int
    name: str
    outcome: Outcome
    detail: str = ""
    seconds: float = 0.0
    data: dict[str, Any] = field(default_factory=dict)


class Report:
    """The lines so far; each new one is printed and written at once, so that a cut-off run counts.

    Args:
        folder: where ``gpu_check.md`` and ``gpu_check.json`` are written.
        machine: card, driver, versions and commit, by name.
        note: a sentence above the table.
    """

    def __init__(self, folder: Path, machine: dict[str, Any], note: str) -> None:
        self.folder, self.machine, self.note = folder, machine, note
        self.lines: list[Line] = []

    def begin(self) -> None:
        """Print the head of the table."""
        for name, value in self.machine.items():
            print(f"{name:12} {value}")
        print(self.note)
        print(f"{'part':4}  {'result':6}  {'time':>7}  check", flush=True)
        self._write()

    def add(self, line: Line) -> None:
        """Print a line and write both files anew."""
        self.lines.append(line)
        head = f"{line.part:4}  {line.outcome:6}  {line.seconds:6.1f}s  {line.name}"
        print(f"{head}: {line.detail}" if line.detail else head, flush=True)
        self._write()

    @property
    def failed(self) -> int:
        """Number of checks that failed."""
        return sum(line.outcome == "FAIL" for line in self.lines)

    def summary(self) -> str:
        """Return the counts in a sentence."""
        counts = {each: 0 for each in ("pass", "FAIL", "skip")}
        for line in self.lines:
            counts[line.outcome] += 1
        return f"{counts['pass']} passed, {counts['FAIL']} failed, {counts['skip']} skipped"

    def markdown(self) -> str:
        """Return the report as Markdown."""
        rows = [
            f"| {x.part} | {_cell(x.name)} | {x.outcome} | {_cell(x.detail)} | {x.seconds:.1f} |"
            for x in self.lines
        ]
        facts = [f"- {name}: {value}" for name, value in self.machine.items()]
        head = ["| part | check | result | measured | seconds |", "|---|---|---|---|---|"]
        parts = ["# GPU check", "", *facts, "", self.note, "", *head, *rows, "", self.summary()]
        return "\n".join(parts) + "\n"

    def _write(self) -> None:
        content = {
            "machine": self.machine,
            "note": self.note,
            "summary": self.summary(),
            "lines": [asdict(line) for line in self.lines],
        }
        with replacing(self.folder / "gpu_check.json") as aside:
            aside.write_text(json.dumps(content, indent=1), encoding="utf-8")
        with replacing(self.folder / "gpu_check.md") as aside:
            aside.write_text(self.markdown(), encoding="utf-8")


def _cell(text: str) -> str:
    """Return text that does not end a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
