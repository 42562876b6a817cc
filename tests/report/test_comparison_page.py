"""Page of several runs."""

import dataclasses
import math
import re

import pytest

from ddpm.errors import ConfigError
from ddpm.metrics.results import Metric
from ddpm.report.pages import Report, write_comparison
from tests.report.cases import PROVENANCE, assert_self_contained, full_report, runs


def test_comparison_table(comparison_page):
    page = comparison_page(runs(), title="Rates", sort_by="fid")
    assert assert_self_contained(page)
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
def test_comparison_is_sorted_by_a_metric(comparison_page, sort_by, order, way):
    page = comparison_page(runs(), sort_by=sort_by)
    assert "".join(row[0] for row in page.rows[1:]) == order
    assert re.findall(r'aria-sort="(.*?)">(\w+)', page.source) == [(way, sort_by or "bpd")]


def test_runs_without_finite_value_are_last(comparison_page):
    lost = full_report(run="x", metrics=[Metric("isc", math.nan, None, PROVENANCE, True)])
    page = comparison_page([lost, *runs()], sort_by="isc")
    assert "".join(row[0] for row in page.rows[1:]) == "cbxa"


def test_warning_about_metrics_measured_differently(comparison_page):
    first, second, third = runs()
    moved = PROVENANCE | {"reference": PROVENANCE["reference"] | {"path": "/elsewhere"}}
    fewer = moved | {"num_samples": 1000, "extractor": {"name": "pixels"}}

    def measured(provenance):
        metrics = [metric._replace(provenance=provenance) for metric in third.metrics]
        return dataclasses.replace(third, metrics=metrics)

    assert "Not comparable" not in comparison_page([second, measured(moved)]).words
    warning = "Not comparable: fid, isc. The runs differ in num_samples, extractor.features."
    assert warning in comparison_page([first, second, measured(fewer)]).words


def test_warning_about_losses_of_different_objectives(comparison_page):
    def run(name, loss):
        node = {"_target_": f"ddpm.diffusion.{name}", "loss": "l2"}
        metric = Metric("val_loss", 0.1, None, {"metric": "loss"}, False)
        return Report("Evaluation", name, config={"objective": node}, loss=loss, metrics=[metric])

    noise, v = run("PredNoise", [(1, 0.5)]), run("PredV", [(1, 0.4)])
    warning = (
        "Losses are not comparable: the runs differ in objective (pred_noise, pred_v); compare fid"
    )
    assert warning in comparison_page([noise, v]).words
    without = [dataclasses.replace(report, metrics=[]) for report in (noise, v)]
    assert warning in comparison_page(without).words, "the curves are losses too"
    assert "not comparable" not in comparison_page([noise, noise]).words
    neither = [dataclasses.replace(report, loss=()) for report in without]
    assert "not comparable" not in comparison_page(neither).words


@pytest.mark.parametrize(
    ("seeds", "note", "captions"),
    [
        ((7, 7), "All with seed 7: if the runs have the same kind of data,", ["a", "c"]),
        ((0, 1), "Not all with the same seed:", ["a, seed 0", "c, seed 1"]),
        ((0, None), "Not all with the same seed:", ["a, seed 0", "c"]),
        ((None, None), "Not all with the same seed:", ["a", "c"]),
    ],
)
def test_samples_side_by_side(comparison_page, seeds, note, captions):
    reports = [dataclasses.replace(r, seed=s) for r, s in zip(runs()[:2], seeds, strict=True)]
    page = comparison_page(reports)
    assert note in page.words
    beside = page.source[page.source.index("Samples side by side") : page.source.index("<section")]
    shown = re.findall("<figcaption>(.*?)</figcaption>", beside)
    assert [re.sub("<[^>]*>", "", caption) for caption in shown] == captions
    assert beside.count("<img ") == 2


def test_comparison_of_runs_without_metrics_or_samples(comparison_page):
    bare = [Report(title="t", run=name, config={"a": {"b": name}}) for name in "xy"]
    page = comparison_page(bare)
    assert page.rows == [["run", "step", "a.b"], ["x", "–", "x"], ["y", "–", "y"]]
    assert "Sorted by" not in page.words and "side by side" not in page.words
    same = comparison_page([bare[0], bare[0]])
    assert same.rows[0] == ["run", "step"]
    assert "The runs' options do not differ." in same.words


@pytest.mark.parametrize(
    ("count", "options", "line"),
    [
        (0, {}, "runs=[]: names no run; name one or more"),
        (
            3,
            {"sort_by": "fidd"},
            "sort_by=fidd: is not a metric of these runs; did you mean 'fid'?",
        ),
        (
            3,
            {"sort_by": "x"},
            "sort_by=x: is not a metric of these runs (there are: bpd, fid, isc)",
        ),
    ],
)
def test_comparison_errors(tmp_path, count, options, line):
    with pytest.raises(ConfigError) as caught:
        write_comparison(tmp_path / "report.html", runs()[:count], **options)
    assert str(caught.value) == line
    assert not (tmp_path / "report.html").exists()
