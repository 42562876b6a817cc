"""Measure speeds beside those of the peers, and write the tables of BENCHMARKS.md.

    make bench
    python scripts/bench.py [SUITE ...] [--rounds 9] [--out BENCHMARKS.md]

Each suite runs in a process of its own, in which a peer and ours take turns. Its table replaces the
earlier one between the suite's markers in the file; tables of other suites stay. The peers are in
the extra ``bench``. All suites that run by default take less than 15 minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ddpm.files import replacing  # noqa: E402
from scripts.benchmarks.suites import SUITES, selected  # noqa: E402
from scripts.benchmarks.tables import replaced  # noqa: E402


def arguments(command_line: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    by_name = ", ".join(name for name, suite in SUITES.items() if not suite.by_default)
    parser.add_argument("suite", nargs="*", help=f"default: all but {by_name}")
    parser.add_argument("--rounds", type=int, default=9, help="per suite")
    parser.add_argument("--suites", action="store_true", help="list the suites and exit")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "BENCHMARKS.md", help="file of the tables"
    )
    options = parser.parse_args(command_line)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    try:
        options.suite = selected(options.suite)
    except ValueError as error:
        parser.error(str(error))
    return options


def run(name: str, rounds: int) -> str | None:
    """Run a suite in a process of its own; return its Markdown, or None if it failed."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.md"
        command = [sys.executable, "-m", "scripts.benchmarks.suites", name, str(rounds), str(file)]
        ended = subprocess.run(command, cwd=ROOT, env=environment)
        return file.read_text(encoding="utf-8") if ended.returncode == 0 else None


def write(file: Path, name: str, body: str) -> None:
    """Write the table of a suite into a file, which need not exist."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    with replacing(file) as aside:
        aside.write_text(replaced(text, name, body), encoding="utf-8")


def main() -> None:
    """Run the suites; exit with status 1 if one failed."""
    options, failed = arguments(), []
    if options.suites:
        for name, suite in SUITES.items():
            print(f"{name:16}{suite.summary}{'' if suite.by_default else ' (not by default)'}")
        return
    for name in options.suite:
        began = time.monotonic()
        body = run(name, options.rounds)
        print(f"{name}: {time.monotonic() - began:.0f} s\n", flush=True)
        if body is None:
            failed.append(name)
            continue
        write(options.out, name, body)
        print(body, flush=True)
    if failed:
        sys.exit(f"bench: failed: {', '.join(failed)}; the peers are in the extra 'bench'")


if __name__ == "__main__":
    main()
