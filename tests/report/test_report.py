"""Page of one run."""

import base64
import dataclasses
import io
import math
import re

import numpy as np
import pytest
from PIL import Image

from ddpm.errors import ConfigError
from ddpm.metrics.results import Metric
from ddpm.report.pages import Report, write_report
from tests.report.cases import assert_self_contained, full_report


def test_page_shows_all_parts_of_a_report(single_page):
    page = single_page(full_report())
    assert assert_self_contained(page)
    heads = re.findall(r"<h[123]>(.*?)</h[123]>", page.source)
    assert heads == [
        "Digits",
        "Metrics",
        "Samples",
        "Nearest neighbours in the training data",
        "Training",
        "Bits per dimension over t",
        "Denoising",
        "Config and provenance",
    ]
    for text in (
        "20260721-a · step 12,000",
        "Fewer samples than features.",
        "Seed 7.",
        "5,000 samples; features: pixels",
        "Of 2 samples: smallest 0.2500, median 1.375.",
        "loss; last 0.03333 at step 30.",
        "gradient norm; last 0.2500 at step 20.",
        "over 3 steps t; the band is one standard error. Their sum is 0.8750, the prior term "
        "0.001000, together 0.8760.",
    ):
        assert text in page.words, text
    assert page.rows[0] == ["Metric", "Value"]
    assert [row for row in page.rows[1:] if row and row[0][-1:] in "↓↑"] == [
        ["fid_5k ↓", "3.172"],
        ["isc ↑", "9.412 ± 0.087"],
    ]
    facts = dict(
        re.findall(
            r'<tr><th scope="row">([^<]*(?:<wbr>[^<]*)*)</th><td>(.*?)</td></tr>', page.source
        )
    )
    assert {key.replace("<wbr>", ""): value for key, value in facts.items()} == {
        "value": "9.4123",  # of the last metric, all its digits
        "error": "0.0871",
        "num_samples": "5000",
        "sampler.name": "ddim",
        "sampler.num_steps": "50",
        "seed": "0",
        "reference.dataset": "digits",
        "reference.path": "/a",
        "reference.sha256": "ab12",
        "extractor.name": "pixels",
        "extractor.features": "64",
        "resize": "none",
        "trainer.lr": "0.0001",
        "trainer.ema": "null",
        "model.dim_mults": "[1,2]",
        "torch": "2.10",
    }
    assert "<td>3.17214</td>" in page.source
    assert len(page.all("svg", "aria-label")) == 3


def test_empty_parts_are_left_out(single_page):
    page = single_page(Report(title="Empty", run="r", loss=[(1, math.nan)], curves={"none": []}))
    assert page.words == "Empty Empty r"  # with the window title
    assert not {tag for tag, _ in page.tags} & {"h2", "table", "svg", "img", "details", "div"}


def test_page_contains_the_pictures_unchanged(single_page):
    report = full_report()
    page = single_page(report)
    shown = [
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        for source in page.all("img", "src")
    ]
    (left, near, _), (far_left, far, _) = report.neighbours[1], report.neighbours[0]
    pairs = (left, near, far_left, far)  # closest first
    expected = [report.samples, *pairs, *report.trajectory]
    assert len(shown) == len(expected) == 8
    for actual, image in zip(shown, expected, strict=True):
        assert (actual.mode, actual.size) == (image.mode, image.size)
        assert np.array_equal(np.asarray(actual), np.asarray(image))


@pytest.mark.parametrize(
    ("mode", "becomes"),
    [("1", "1"), ("RGB", "RGB"), ("RGBA", "RGBA"), ("P", "P"), ("CMYK", "RGB"), ("F", "RGB")],
)
def test_pictures_of_all_modes(single_page, mode, becomes):
    page = single_page(Report("t", 'a "name"', samples=Image.new(mode, (100, 50))))
    (image,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert (image["width"], image["height"]) == ("100", "50")
    assert image["alt"] == 'samples of a "name"'
    data = image["src"].partition("base64,")[2]
    assert Image.open(io.BytesIO(base64.b64decode(data))).mode == becomes


@pytest.mark.parametrize(("size", "small"), [((64, 8), True), ((65, 8), False)])
def test_small_pictures_show_their_pixels_as_squares(single_page, size, small):
    page = single_page(Report("t", "r", samples=Image.new("L", size)))
    assert page.all("img", "class") == (["small"] if small else [])


HOSTILE = """</style><script>alert('1')</script>"&amp;<img src=x onerror=alert(2)>"""


def test_names_are_escaped(single_page, comparison_page):
    report = full_report(
        title=HOSTILE,
        run=HOSTILE,
        metrics=[Metric(HOSTILE, 1.0, None, {HOSTILE: HOSTILE, "extractor": {"name": HOSTILE}})],
        warnings=[HOSTILE],
        config={HOSTILE: {"class": [HOSTILE]}},
        provenance={"by": HOSTILE},
        curves={HOSTILE: [(1, 2.0), (2, 3.0)]},
    )
    other = dataclasses.replace(report, config={HOSTILE: {"class": ["x"]}})
    alone, both = (
        single_page(report),
        comparison_page([report, other], title=HOSTILE, sort_by=HOSTILE),
    )
    # the window title and 12 on the page; 10 in the comparison, 12 per run but one config value
    for page, times in ((alone, 1 + 12), (both, 10 + 12 + 11)):
        assert_self_contained(page)
        assert all(not name.startswith("on") for _, attrs in page.tags for name in attrs)
        assert page.words.count(HOSTILE) == times


def test_invalid_characters_are_replaced(single_page):
    page = single_page(Report(title="caf\udce9\x00\x1b[1m", run="Größe 数字\x9f"))
    assert page.words == "caf\ufffd\ufffd\ufffd[1m caf\ufffd\ufffd\ufffd[1m Größe 数字\ufffd"


def test_equal_reports_give_equal_files(tmp_path):
    for name in ("a", "b"):
        write_report(tmp_path / name, full_report())
    write_report(tmp_path / "c", full_report(loss=[(1, 1.0), (2, 0.4)]))
    first, again, other = ((tmp_path / name).read_bytes() for name in ("a", "b", "c"))
    assert first == again != other


def test_error_names_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        write_report(tmp_path / "file" / "report.html", full_report())
    assert str(caught.value).startswith(f"path={tmp_path / 'file' / 'report.html'}: cannot be")
