import base64
import dataclasses
import io
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from ddpm.data import Digits
from ddpm.data.pictures import as_image, grid
from ddpm.errors import ConfigError
from ddpm.metrics.results import BoundCurve, Metric, Neighbour
from ddpm.report.html import curve, number, picture, thinned
from ddpm.report.pages import Report, write_comparison, write_report

VOID = {"meta", "link", "img", "br", "wbr"}
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PROVENANCE = {
    "num_samples": 5000,
    "sampler": {"name": "ddim", "num_steps": 50},
    "seed": 0,
    "reference": {"dataset": "digits", "path": "/a", "sha256": "ab12"},
    "extractor": {"name": "pixels", "features": 64},
    "resize": "none",
}


class Page(HTMLParser):
    """A page taken apart: every tag must be closed in its turn."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags, self.text, self.open = [], [], []
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    def all(self, name, attribute):
        return [attrs[attribute] for tag, attrs in self.tags if tag == name and attribute in attrs]

    @property
    def words(self):
        return " ".join("".join(self.text).split())

    @property
    def rows(self):
        """The text of each row of the first table, a list a row; those inside it are rows too."""
        table = self.source[self.source.index("<table") : self.source.index("</table></div>")]
        rows = [re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL) for row in table.split("<tr")[1:]]
        return [[re.sub("<[^>]*>", "", cell).strip() for cell in row] for row in rows]


def digits(count):
    return Digits().fetch(range(count), range(count))[0].numpy()


def made(**changed):
    """A report in which nothing is missing."""
    raw = digits(4)
    whole = Report(
        title="Digits",
        run="20260721-a",
        step=12_000,
        metrics=[
            Metric("fid_5k", 3.17214, None, PROVENANCE),
            Metric("isc", 9.4123, 0.0871, PROVENANCE, higher_is_better=True),
        ],
        warnings=["Fewer samples than features."],
        config={"trainer": {"lr": 1e-4, "ema": None}, "model": {"dim_mults": [1, 2]}},
        provenance={"torch": "2.10"},
        samples=grid(raw),
        seed=7,
        neighbours=[
            Neighbour(as_image(raw[0]), as_image(raw[1]), 2.5),
            Neighbour(as_image(raw[2]), as_image(raw[3]), 0.25),
        ],
        loss=[(step, 1 / step) for step in range(1, 31)],
        curves={"gradient norm": [(10, 0.5), (20, 0.25)]},
        bound=BoundCurve([0, 1, 2], [0.5, 0.25, 0.125], [0.01, 0.01, 0.01], 0.001),
        trajectory=[as_image(image) for image in raw[:3]],
    )
    return dataclasses.replace(whole, **changed)


@pytest.fixture
def one(tmp_path):
    """``one(report)`` is its page."""

    def write(report):
        write_report(tmp_path / "of" / "report.html", report)
        return Page(tmp_path / "of" / "report.html")

    return write


@pytest.fixture
def several(tmp_path):
    """``several(reports, ...)`` is the page that compares them."""

    def write(reports, **options):
        write_comparison(tmp_path / "report.html", reports, **options)
        return Page(tmp_path / "report.html")

    return write


def refers_only_to_itself(page):
    text = re.sub(r'xmlns(:xlink)?="[^"]*"', "", page.source)
    assert "://" not in text and "@import" not in text
    sources = page.all("img", "src")
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert set(page.all("link", "href")) == {"data:,"}
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    named = page.all("a", "href") + page.all("use", "xlink:href")
    named += re.findall(r"url\(([^)]*)\)", text)
    assert {name.removeprefix("#") for name in named} <= set(ids)
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "form"}
    return named


def test_a_page_says_all_that_is_known_of_a_run(one):
    page = one(made())
    assert refers_only_to_itself(page)
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
    for said in (
        "20260721-a · step 12,000",
        "Fewer samples than features.",
        "Seed 7.",
        "5,000 samples; features: pixels",
        "Of 2 samples: smallest 0.2500, median 1.375.",
        "loss; last 0.03333 at step 30.",
        "gradient norm; last 0.2500 at step 20.",
        "over 3 steps t; the band is one standard error. Their sum is 0.8750, the prior's term "
        "0.001000, together 0.8760.",
    ):
        assert said in page.words, said
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


def test_what_is_not_known_is_left_out(one):
    page = one(Report(title="Empty", run="r", loss=[(1, math.nan)], curves={"none": []}))
    assert page.words == "Empty Empty r"  # the title of the window is one
    assert not {tag for tag, _ in page.tags} & {"h2", "table", "svg", "img", "details", "div"}


def test_the_pictures_are_those_that_were_given(one):
    report = made()
    page = one(report)
    shown = [
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        for source in page.all("img", "src")
    ]
    (left, near, _), (far_left, far, _) = report.neighbours[1], report.neighbours[0]
    given = [report.samples, left, near, far_left, far, *report.trajectory]  # the nearest first
    assert len(shown) == len(given) == 8
    for got, wanted in zip(shown, given, strict=True):
        assert (got.mode, got.size) == (wanted.mode, wanted.size)
        assert np.array_equal(np.asarray(got), np.asarray(wanted))


@pytest.mark.parametrize(
    ("mode", "becomes"),
    [("1", "1"), ("RGB", "RGB"), ("RGBA", "RGBA"), ("P", "P"), ("CMYK", "RGB"), ("F", "RGB")],
)
def test_a_picture_of_any_mode_is_shown(mode, becomes):
    html = picture(Image.new(mode, (100, 50)), 'a "name"')
    assert 'width="100" height="50" alt="a &quot;name&quot;"' in html
    data = html.partition("base64,")[2].partition('"')[0]
    assert Image.open(io.BytesIO(base64.b64decode(data))).mode == becomes


@pytest.mark.parametrize(("size", "small"), [((64, 8), True), ((65, 8), False)])
def test_the_pixels_of_a_small_picture_stay_squares(size, small):
    assert ('class="small"' in picture(Image.new("L", size), "")) is small


NASTY = """</style><script>alert('1')</script>"&amp;<img src=x onerror=alert(2)>"""


def test_no_name_of_a_user_becomes_a_tag(one, several):
    report = made(
        title=NASTY,
        run=NASTY,
        metrics=[Metric(NASTY, 1.0, None, {NASTY: NASTY, "extractor": {"name": NASTY}})],
        warnings=[NASTY],
        config={NASTY: {"class": [NASTY]}},
        provenance={"by": NASTY},
        curves={NASTY: [(1, 2.0), (2, 3.0)]},
    )
    other = dataclasses.replace(report, config={NASTY: {"class": ["x"]}})
    alone, both = one(report), several([report, other], title=NASTY, sort_by=NASTY)
    # the window and 12 on the page; above the runs 10, in each the 12, less a config's value
    for page, times in ((alone, 1 + 12), (both, 10 + 12 + 11)):
        refers_only_to_itself(page)
        assert all(not name.startswith("on") for _, attrs in page.tags for name in attrs)
        assert page.words.count(NASTY) == times


def test_a_name_that_is_no_text_is_shown_without_what_is_not(one):
    page = one(Report(title="caf\udce9\x00\x1b[1m", run="Größe 数字\x9f"))
    assert page.words == "caf\ufffd\ufffd\ufffd[1m caf\ufffd\ufffd\ufffd[1m Größe 数字\ufffd"


def test_one_report_gives_one_file(tmp_path):
    for name in ("a", "b"):
        write_report(tmp_path / name, made())
    write_report(tmp_path / "c", made(loss=[(1, 1.0), (2, 0.4)]))
    first, again, other = ((tmp_path / name).read_bytes() for name in ("a", "b", "c"))
    assert first == again != other


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        write_report(tmp_path / "file" / "report.html", made())
    assert str(caught.value).startswith(f"path={tmp_path / 'file' / 'report.html'}: cannot be")


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (3.17214, None, "3.172"),
        (0.317214, None, "0.3172"),
        (9.99996, None, "10.00"),
        (12345.678, None, "12,346"),
        (5, None, "5"),
        (1797, None, "1,797"),
        (0.0, None, "0"),
        (-0.5, None, "−0.5000"),
        (0.000012345, None, "1.234 × 10<sup>−5</sup>"),
        (123456789.0, None, "1.235 × 10<sup>8</sup>"),
        (math.nan, None, "nan"),
        (-math.inf, 0.1, "−inf"),
        (9.4123, 0.0871, "9.412 ± 0.087"),
        (9.4123, 0.0996, "9.41 ± 0.10"),
        (9.4123, 1.26, "9.4 ± 1.3"),
        (1234.5, 23.4, "1,234 ± 23"),
        (12345.6, 234.0, "12,346 ± 234"),
        (0.0021345, 0.00018, "0.00213 ± 0.00018"),
        (3.2123e-6, 1.8e-7, "(3.21 ± 0.18) × 10<sup>−6</sup>"),
        (1.0, 0.0, "1.000 ± 0"),
        (1.0, math.nan, "1.000 ± nan"),
    ],
)
def test_a_number_has_as_many_digits_as_its_error_warrants(value, error, text):
    assert re.sub("</?span[^>]*>", "", number(value, error)) == text


def test_a_long_curve_is_thinned_to_means_and_says_so():
    points = [(step, float(step)) for step in range(1, 1201)] + [(1201, math.nan)]
    kept, how = thinned(points)
    assert kept == [(3 * n + 2.0, 3 * n + 2.0) for n in range(400)]
    assert how == "1 not finite, left out; each point the mean of 3"
    assert thinned(points[:500]) == ([(float(x), y) for x, y in points[:500]], "")


def vertices(svg, nth):
    """The corners of the nth path in the colour of the data."""
    paths = re.findall(r'<path d="([^"]*)"(?: clip-path="[^"]*")? style="[^"]*accent', svg)
    corners = re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", paths[nth])
    return np.array(corners, dtype=float)


def test_a_curve_is_drawn_to_scale():
    svg = curve("p", [(0, 0.0), (10, 1.0), (20, 4.0)], said="s", across="x")
    (x0, y0), (x1, y1), (x2, y2) = vertices(svg, 0)
    assert x1 - x0 == pytest.approx(x2 - x1) and x1 > x0
    assert (y2 - y0) / (y1 - y0) == pytest.approx(4) and y1 < y0  # upwards
    svg = curve("p", [(0, 1.0), (10, 10.0), (20, 1000.0)], said="s", across="x", log=True)
    (_, y0), (_, y1), (_, y2) = vertices(svg, 0)
    assert (y2 - y0) / (y1 - y0) == pytest.approx(3)
    assert ">100<" in svg and ">0.1<" not in svg  # plain numbers at the axis
    once = curve("p", [(5, 1.0)], said="s", across="x")
    assert "<use" in once.split("line2d")[-1] or len(vertices(once, 0)) > 1  # a dot


def test_the_band_of_a_curve_is_one_standard_error():
    svg = curve("p", [(0, 2.0), (1, 3.0)], [0.5, 0.25], said="s", across="t")
    line = vertices(svg, 0)
    unit = line[0, 1] - line[1, 1]
    outline = re.search(r'<path id="p-m[^"]*" d="([^"]*)"', svg.split("FillBetween")[1])
    corners = np.array(re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", outline[1]), dtype=float)
    heights = {round((corners[:, 1].max() - y) / unit, 3) for y in corners[:, 1]}
    assert heights == {0.0, 1.0, 1.25, 1.75}  # 1.5 2.5 2.75 3.25


def test_curves_take_the_colours_of_the_page():
    svg = curve("p", [(0, 2.0), (1, 3.0)], [0.5, 0.25], said='a "b"', across="t")
    drawn = set(re.findall(r"(?:fill|stroke): ([^;\"]*)", svg)) - {"none"}
    assert drawn == {"var(--accent)", "var(--muted)", "var(--rule)"}
    assert 'aria-label="a &quot;b&quot;"' in svg
    assert svg.startswith("<svg ") and svg.endswith("</svg>") and "<style" not in svg


def runs():
    """Three runs, the second the best by fid, the third by isc, the first without either."""
    config = {"seed": 0, "trainer": {"lr": 1e-4}, "model": {"dim": 8}}
    first = made(run="a", config=config, metrics=[Metric("bpd", 3.0, 0.1, {})], step=None)
    second = made(
        run="b",
        config={**config, "trainer": {"lr": 2e-4}},
        metrics=[
            Metric("fid", 2.5, None, PROVENANCE),
            Metric("isc", 8.0, 0.1, PROVENANCE, higher_is_better=True),
        ],
    )
    third = made(
        run="c",
        config={**config, "trainer": {"lr": 2e-4, "warmup": 5}},
        metrics=[
            Metric("fid", 12.0, None, PROVENANCE | {"seed": 1}),
            Metric("isc", 9.0, 0.1, PROVENANCE | {"seed": 1}, higher_is_better=True),
        ],
    )
    return [first, third, second]


def test_a_comparison_has_the_options_that_differ_the_metrics_and_the_best_run_first(several):
    page = several(runs(), title="Rates", sort_by="fid")
    assert refers_only_to_itself(page)
    assert page.rows == [
        ["run", "bpd ↓", "fid ↓", "isc ↑", "step", "trainer.lr", "trainer.warmup"],
        ["b", "–", "2.500", "8.00 ± 0.10", "12,000", "0.0002", "–"],
        ["c", "–", "12.00", "9.00 ± 0.10", "12,000", "0.0002", "5"],
        ["a", "3.00 ± 0.10", "–", "–", "–", "0.0001", "–"],
    ]
    assert "Rates 3 runs Sorted by fid, best first." in page.words
    assert re.findall(r'aria-sort="(.*?)">(\w+)', page.source) == [("ascending", "fid")]
    linked = re.findall(r'<a href="#(run-\d)">(.)</a>', page.source)
    assert linked == [("run-1", "b"), ("run-2", "c"), ("run-3", "a")] * 2  # table and pictures
    sections = re.findall(r'<section id="(run-\d)">\n<h2>(.)</h2>', page.source)
    assert sections == linked[:3]
    assert 'role="note">\n<p>Not' not in page.source


@pytest.mark.parametrize(
    ("sort_by", "order", "way"),
    [
        ("isc", "cba", "descending"),
        ("fid", "bca", "ascending"),
        ("bpd", "acb", "ascending"),
        (None, "acb", "ascending"),
    ],
)
def test_a_comparison_is_sorted_by_the_metric_that_is_asked_for(several, sort_by, order, way):
    page = several(runs(), sort_by=sort_by)
    assert "".join(row[0] for row in page.rows[1:]) == order
    assert re.findall(r'aria-sort="(.*?)">(\w+)', page.source) == [(way, sort_by or "bpd")]


def test_a_value_that_is_not_finite_comes_last(several):
    lost = made(run="x", metrics=[Metric("isc", math.nan, None, PROVENANCE, True)])
    page = several([lost, *runs()], sort_by="isc")
    assert "".join(row[0] for row in page.rows[1:]) == "cbxa"


def test_numbers_that_were_not_measured_alike_are_not_compared_in_silence(several):
    first, second, third = runs()
    moved = PROVENANCE | {"reference": PROVENANCE["reference"] | {"path": "/elsewhere"}}
    fewer = moved | {"num_samples": 1000, "extractor": {"name": "pixels"}}

    def measured(provenance):
        metrics = [metric._replace(provenance=provenance) for metric in third.metrics]
        return dataclasses.replace(third, metrics=metrics)

    assert "Not comparable" not in several([second, measured(moved)]).words
    said = "Not comparable: fid, isc. The runs differ in num_samples, extractor.features."
    assert said in several([first, second, measured(fewer)]).words


def test_losses_of_other_objectives_carry_a_warning(several):
    def run(name, loss):
        node = {"_target_": f"ddpm.diffusion.{name}", "loss": "l2"}
        metric = Metric("val_loss", 0.1, None, {"metric": "loss"}, False)
        return Report("Evaluation", name, config={"objective": node}, loss=loss, metrics=[metric])

    noise, v = run("PredNoise", [(1, 0.5)]), run("PredV", [(1, 0.4)])
    said = (
        "Losses are not comparable: the runs differ in objective (pred_noise, pred_v); compare fid"
    )
    assert said in several([noise, v]).words
    without = [dataclasses.replace(one, metrics=[]) for one in (noise, v)]
    assert said in several(without).words, "the curves are losses too"
    assert "not comparable" not in several([noise, noise]).words
    neither = [dataclasses.replace(one, loss=()) for one in without]
    assert "not comparable" not in several(neither).words


@pytest.mark.parametrize(
    ("seeds", "said", "captions"),
    [
        ((7, 7), "All of seed 7: of runs on one kind of data,", ["a", "c"]),
        ((0, 1), "Not all of one seed:", ["a, seed 0", "c, seed 1"]),
        ((0, None), "Not all of one seed:", ["a, seed 0", "c"]),
        ((None, None), "Not all of one seed:", ["a", "c"]),
    ],
)
def test_samples_stand_side_by_side_and_say_whether_their_seeds_are_equal(
    several, seeds, said, captions
):
    given = [dataclasses.replace(r, seed=s) for r, s in zip(runs()[:2], seeds, strict=True)]
    page = several(given)
    assert said in page.words
    beside = page.source[page.source.index("Samples side by side") : page.source.index("<section")]
    found = re.findall("<figcaption>(.*?)</figcaption>", beside)
    assert [re.sub("<[^>]*>", "", caption) for caption in found] == captions
    assert beside.count("<img ") == 2


def test_runs_without_metrics_or_samples_are_compared_by_their_options(several):
    bare = [Report(title="t", run=name, config={"a": {"b": name}}) for name in "xy"]
    page = several(bare)
    assert page.rows == [["run", "step", "a.b"], ["x", "–", "x"], ["y", "–", "y"]]
    assert "Sorted by" not in page.words and "side by side" not in page.words
    same = several([bare[0], bare[0]])
    assert same.rows[0] == ["run", "step"]
    assert "The runs' options do not differ." in same.words


@pytest.mark.parametrize(
    ("count", "options", "line"),
    [
        (0, {}, "runs=[]: names no run; name one or more"),
        (3, {"sort_by": "fidd"}, "sort_by=fidd: is no metric of these runs; did you mean 'fid'?"),
        (3, {"sort_by": "x"}, "sort_by=x: is no metric of these runs (there are: bpd, fid, isc)"),
    ],
)
def test_what_cannot_be_compared(tmp_path, count, options, line):
    with pytest.raises(ConfigError) as caught:
        write_comparison(tmp_path / "report.html", runs()[:count], **options)
    assert str(caught.value) == line
    assert not (tmp_path / "report.html").exists()


@pytest.fixture
def browser(tmp_path):
    """``browser(page, ...)`` opens it and gives what was printed and what the console said."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium, chromium-browser or google-chrome here")

    def run(path, *options):
        own = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
        own += ("--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}")
        ended = subprocess.run(
            [CHROMIUM, *own, *options, f"file://{path}"], capture_output=True, timeout=120
        )
        said = ended.stderr.decode(errors="replace")
        assert ended.returncode == 0, said
        return ended.stdout.decode(), [line for line in said.splitlines() if "CONSOLE" in line]

    return run


def test_a_browser_shows_the_page_and_has_nothing_to_complain_of(browser, one, tmp_path):
    one(made())
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


def test_a_browser_reads_what_was_written_and_runs_nothing(browser, one, tmp_path):
    one(made(title="Digits & more"))
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


def test_on_a_phone_nothing_but_a_table_scrolls_sideways(browser, several, tmp_path):
    long = "a-very-long-name-" + 100 * "x"
    wide = Image.new("L", (800, 100))
    changed = {"warnings": [long], "samples": wide, "trajectory": [wide]}
    given = [dataclasses.replace(r, run=r.run + long, **changed) for r in runs()]
    page = several(given)
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
