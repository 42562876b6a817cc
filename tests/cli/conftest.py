"""Fixtures that run commands in this process and in an empty folder."""

import importlib
import re
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ddpm.signals import SIGNALS


@dataclass
class Ended:
    status: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one-line error message, without warnings and the progress bars of slow commands."""
        bar_or_warning = re.compile(r"warning: |[^|]* \d+%\|")
        lines = [x for x in self.err.strip().splitlines() if not bar_or_warning.match(x)]
        assert len(lines) == 1, self.err
        return lines[0]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Return a function: ``command("train", "name=a", ...)`` returns status and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(name: str, *arguments: str) -> Ended:
        from hydra.core.global_hydra import GlobalHydra

        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [f"ddpm-{name}", *arguments])
        capsys.readouterr()
        status, handlers = 0, {each: signal.getsignal(each) for each in SIGNALS}
        try:
            module = {"import": "importing", "export": "exporting"}.get(name, name)
            importlib.import_module(f"ddpm.cli.{module}").main()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        finally:
            for each, handler in handlers.items():  # the process was to end
                signal.signal(each, handler)
        captured = capsys.readouterr()
        return Ended(status, captured.out, captured.err)

    return run


TINY = (
    "model.dim=8",
    "trainer.batch_size=8",
    "trainer.preview_every=0",
    "trainer.log_every=1",
    "trainer.lr_warmup=0",
)


@pytest.fixture
def tiny():
    """Options that make the default run small."""
    return TINY


_runs: dict[str, Path] = {}


@pytest.fixture
def trained(command, tiny, tmp_path_factory):
    """Path of a tiny run of two steps on the digits, which is trained once, then copied."""
    if "tiny" not in _runs:
        ended = command("train", "name=tiny", "trainer.max_steps=2", *tiny)
        assert ended.status == 0, ended.err
        _runs["tiny"] = tmp_path_factory.mktemp("runs") / "outputs"
        shutil.copytree("outputs", _runs["tiny"], symlinks=True)
    else:
        shutil.copytree(_runs["tiny"], "outputs", symlinks=True)
    return "outputs/tiny"
