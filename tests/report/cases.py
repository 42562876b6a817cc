"""Reports for tests, and a parser of their pages."""

import dataclasses
import re
from html.parser import HTMLParser

from ddpm.data import Digits
from ddpm.data.pictures import as_image, grid
from ddpm.metrics.results import BoundCurve, Metric, Neighbour
from ddpm.report.pages import Report

VOID = {"meta", "link", "img", "br", "wbr"}
PROVENANCE = {
    "num_samples": 5000,
    "sampler": {"name": "ddim", "num_steps": 50},
    "seed": 0,
    "reference": {"dataset": "digits", "path": "/a", "sha256": "ab12"},
    "extractor": {"name": "pixels", "features": 64},
    "resize": "none",
}


class Page(HTMLParser):
    """Parsed page; asserts that tags are closed in the right order."""

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
        """Text of the cells of the first table, one list per row, with nested tables."""
        table = self.source[self.source.index("<table") : self.source.index("</table></div>")]
        rows = [re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL) for row in table.split("<tr")[1:]]
        return [[re.sub("<[^>]*>", "", cell).strip() for cell in row] for row in rows]


def assert_self_contained(page):
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


def digits(count):
    return Digits().fetch(range(count), range(count))[0].numpy()


def full_report(**changes):
    """Return a report with all parts."""
    raw = digits(4)
    report = Report(
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
    return dataclasses.replace(report, **changes)


def runs():
    """Return three runs: without fid, second by fid but best by isc, best by fid."""
    config = {"seed": 0, "trainer": {"lr": 1e-4}, "model": {"dim": 8}}
    first = full_report(run="a", config=config, metrics=[Metric("bpd", 3.0, 0.1, {})], step=None)
    second = full_report(
        run="b",
        config={**config, "trainer": {"lr": 2e-4}},
        metrics=[
            Metric("fid", 2.5, None, PROVENANCE),
            Metric("isc", 8.0, 0.1, PROVENANCE, higher_is_better=True),
        ],
    )
    third = full_report(
        run="c",
        config={**config, "trainer": {"lr": 2e-4, "warmup": 5}},
        metrics=[
            Metric("fid", 12.0, None, PROVENANCE | {"seed": 1}),
            Metric("isc", 9.0, 0.1, PROVENANCE | {"seed": 1}, higher_is_better=True),
        ],
    )
    return [first, third, second]
