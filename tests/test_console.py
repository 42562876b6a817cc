"""Console output: streams, prefixes, progress bars, and warnings that are recorded."""

import io
import logging
import subprocess
import sys

from accelerate import Accelerator

from ddpm.console import NOTICE, info, info_once, note, progress, recording, warn, warn_once


def test_messages_go_to_the_streams_of_their_levels(capsys):
    info("drawing 8 samples\ninto a folder")
    note("waiting for another process")
    warn("100% of the samples are grey")
    logging.getLogger("ddpm.data").info("a module's own logger")
    printed = capsys.readouterr()
    assert printed.out == "drawing 8 samples\ninto a folder\na module's own logger\n"
    assert printed.err == "waiting for another process\nwarning: 100% of the samples are grey\n"


def test_only_the_main_process_prints(capsys, monkeypatch):
    accelerator = Accelerator(cpu=True)
    info_once(accelerator, "first")
    warn_once(accelerator, ["a", "b"])
    monkeypatch.setattr(Accelerator, "is_main_process", False)
    info_once(accelerator, "second")
    warn_once(accelerator, ["c"])
    assert capsys.readouterr() == ("first\n", "warning: a\nwarning: b\n")


def test_warnings_are_recorded_and_other_messages_are_not(capsys):
    with recording() as outer:
        warn("one")
        with recording() as inner:
            warn("two")
            note("three")
            info("four")
        warn("five")
    warn("six")
    assert (outer, inner) == (["one", "two", "five"], ["two"])
    assert capsys.readouterr().err.count("warning: ") == 4


def test_a_level_silences_the_package(capsys):
    logger = logging.getLogger("ddpm")
    logger.setLevel(logging.WARNING)
    try:
        info("a")
        note("b")
        warn("c")
    finally:
        logger.setLevel(logging.INFO)
    assert capsys.readouterr() == ("", "warning: c\n")
    assert logging.getLevelName(NOTICE) == "NOTICE"


def test_a_message_neither_erases_nor_draws_a_bar_that_has_not_appeared(capsys):
    with progress(10, "sampling", "call") as bar:
        bar.update()
        note("a message")
    assert capsys.readouterr().err == "a message\n"


def test_a_message_is_written_above_a_bar(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress(10, "sampling", "call") as bar:
        bar.delay = bar.mininterval = 0.0
        bar.update(5)
        note("a message")
        bar.update(5)
    before, after = stream.getvalue().split("a message\n")
    assert before.endswith("\r") and "50%" in before
    assert after.startswith("\rsampling:  50%") and after.endswith("\n")


def test_a_program_that_configured_the_logger_keeps_its_handlers():
    code = """
import logging, sys
logging.getLogger("ddpm").addHandler(logging.StreamHandler(sys.stdout))
from ddpm.console import warn
warn("text")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("text\n", "")
