"""Pages in a browser, where one is installed."""

import dataclasses
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from tests.report.cases import full_report, runs

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture
def browser(tmp_path):
    """Return a function that opens a page and returns the output and the console messages."""
    if CHROMIUM is None:
        pytest.skip("chromium, chromium-browser or google-chrome not found")

    def run(path, *options):
        own = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
        own += ("--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}")
        ended = subprocess.run(
            [CHROMIUM, *own, *options, f"file://{path}"], capture_output=True, timeout=120
        )
        log = ended.stderr.decode(errors="replace")
        assert ended.returncode == 0, log
        return ended.stdout.decode(), [line for line in log.splitlines() if "CONSOLE" in line]

    return run


def test_browser_renders_light_and_dark_without_console_output(browser, single_page, tmp_path):
    single_page(full_report())
    page, shot = tmp_path / "of" / "report.html", tmp_path / "shot.png"
    for scheme, paper in (("1", (0xFD, 0xFD, 0xFB)), ("0", (0x16, 0x17, 0x19))):  # light, dark
        options = f"--screenshot={shot}", "--window-size=1200,3000"
        _, console = browser(page, *options, f"--blink-settings=preferredColorScheme={scheme}")
        assert console == []
        pixels = np.asarray(Image.open(shot).convert("RGB"))
        assert pixels.shape == (3000, 1200, 3)
        assert tuple(pixels[5, 5]) == paper
        written = (pixels != pixels[5, 5]).any(axis=2)
        assert 0.02 < written.mean() < 0.5
        assert written[:, 600].nonzero()[0].max() > 1200  # down to the curves and further


def test_browser_blocks_scripts(browser, single_page, tmp_path):
    single_page(full_report(title="Digits & more"))
    page = tmp_path / "of" / "report.html"
    dom, console = browser(page, "--dump-dom")
    assert "<title>Digits &amp; more</title>" in dom and dom.count("</svg>") == 3
    assert console == []
    bad = page.read_text(encoding="utf-8").replace(
        "</main>", '<script>document.title = "no"</script>'
    )
    page.write_text(bad, encoding="utf-8")
    dom, console = browser(page, "--dump-dom")
    assert "<title>Digits &amp; more</title>" in dom
    assert len(console) == 1 and "Content Security Policy" in console[0]


def test_narrow_screens_scroll_only_tables_sideways(browser, comparison_page, tmp_path):
    long = "a-very-long-name-" + 100 * "x"
    wide = Image.new("L", (800, 100))
    changed = {"warnings": [long], "samples": wide, "trajectory": [wide]}
    reports = [dataclasses.replace(r, run=r.run + long, **changed) for r in runs()]
    page = comparison_page(reports)
    (tmp_path / "report.html").write_text(page.source.replace("<details>", "<details open>"))
    (tmp_path / "phone.html").write_text(
        '<!DOCTYPE html><title></title><iframe width="360" height="800" src="report.html"></iframe>'
        "<script>onload = () => { const shown = frames[0].document.documentElement;"
        "document.title = [shown.clientWidth, shown.scrollWidth] }</script>"
    )
    options = "--dump-dom", "--window-size=900,900", "--allow-file-access-from-files"
    dom, console = browser(tmp_path / "phone.html", *options)
    assert console == []
    assert "<title>360,360</title>" in dom
