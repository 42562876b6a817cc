"""Tables of runs: columns as text and as CSV."""

import csv
import math

import pytest

from ddpm.metrics.results import Metric
from ddpm.report.run_table import (
    Column,
    as_text,
    differing_keys,
    metric_columns,
    option_columns,
    value_columns,
    write_csv,
)

COLUMNS = [
    Column("run", ["a", "longer name"], width=6),
    Column("step", [12000, None]),
    Column("loss", [0.123456, math.nan]),
    Column("fid", [3.14159265, 20.0], digits=5),
    Column("", ["", "failed"]),
]


def test_columns_as_text():
    assert as_text(COLUMNS).splitlines() == [
        "run     step   loss    fid",
        "a       12000  0.1235  3.1416",
        "longe…  -      nan     20      failed",
    ]


def test_columns_as_csv(tmp_path):
    write_csv(COLUMNS, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes().count(b"\r") == 0
    with (tmp_path / "a.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["run", "step", "loss", "fid", ""],
            ["a", "12000", "0.123456", "3.14159265", ""],
            ["longer name", "", "nan", "20.0", "failed"],
        ]


@pytest.mark.parametrize(
    ("mappings", "keys"),
    [
        ([], []),
        ([{"a": 1}], []),
        ([{"a": 1, "b": [1]}, {"b": [2], "a": 1}], ["b"]),
        ([{"a": None}, {}, {"c": 0}], ["a", "c"]),
    ],
)
def test_differing_keys(mappings, keys):
    assert differing_keys(mappings) == keys


def test_option_columns_show_values_as_they_are_typed():
    configs = [{"ema": None, "dims": [1, 2], "lr": 0.1}, {"dims": [1], "lr": 0.1}]
    columns = {column.name: column.values for column in option_columns(configs, missing="–")}
    assert columns == {"ema": ["null", "–"], "dims": ["[1,2]", "[1]"]}


def test_columns_of_values_and_metrics():
    (loss, fid) = value_columns([{"loss": 1.0}, {"fid": 2.0}])
    assert (loss.values, fid.values) == ([1.0, None], [None, 2.0])
    isc = Metric("isc", 8.0, 0.1, {}, higher_is_better=True)
    fid_metric = Metric("fid", 2.0, None, {})
    first, second = metric_columns([[isc], [fid_metric, isc]])
    assert (first.name, first.values, first.errors) == ("isc", [8.0, 8.0], [0.1, 0.1])
    assert (second.name, second.values, second.errors) == ("fid", [None, 2.0], [None, None])
    assert (first.higher_is_better, second.higher_is_better) == (True, False)
