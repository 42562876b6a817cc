"""Benchmark, without a clock: tables in a file, order, statistics and the command line."""

import re
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from scripts import bench
from scripts.benchmarks import commands, demo, networks, suites, tables, timing


def test_a_table_replaces_the_one_between_its_markers():
    first = "# Title\n<!-- bench:a -->\nold\n\n<!-- /bench:a -->\n"
    text = f"{first}<!-- bench:b -->\nother\n<!-- /bench:b -->\n"
    result = tables.replaced(text, "a", "\nnew\nlines\n")
    assert result == text.replace("old\n\n", "new\nlines\n")
    assert tables.replaced(result, "a", "new\nlines") == result


def test_markers_that_are_missing_are_appended():
    assert tables.replaced("", "a", "x") == "<!-- bench:a -->\nx\n<!-- /bench:a -->\n"
    assert tables.replaced("text\n", "a", "x") == "text\n\n<!-- bench:a -->\nx\n<!-- /bench:a -->\n"


@pytest.mark.parametrize(
    "text",
    [
        "<!-- bench:a -->\n",
        "<!-- /bench:a -->\n<!-- bench:a -->\n",
        "<!-- bench:a -->\n<!-- /bench:a -->\n" * 2,
    ],
)
def test_broken_markers_are_an_error(text):
    with pytest.raises(ValueError, match="expected <!-- bench:a --> once"):
        tables.replaced(text, "a", "x")


def test_a_table_is_written_and_the_others_stay(tmp_path):
    file = tmp_path / "tables.md"
    for name, body in (("data", "first"), ("start", "second"), ("data", "third")):
        bench.write(file, name, body)
    text = file.read_text()
    assert "third" in text and "second" in text and "first" not in text


def test_the_benchmarks_page_has_the_markers_of_every_suite():
    text = (bench.ROOT / "BENCHMARKS.md").read_text(encoding="utf-8")
    assert re.findall(r"<!-- bench:(\w+) -->", text) == list(suites.SUITES)
    for name in suites.SUITES:
        assert tables.replaced(text, name, "x") != text


def test_rounds_visit_each_candidate_twice_in_alternating_order():
    assert timing.order(["a", "b"], 0) == ["a", "b", "a", "b"]
    assert timing.order(["a", "b"], 1) == ["b", "a", "b", "a"]
    assert timing.order(["a", "b", "c"], 3) == ["c", "b", "a"] * 2


def test_interleaved_work_is_counted_per_unit(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing.time, "sleep", lambda _: None)
    monkeypatch.setattr(timing.Machine, "probe", lambda _: None)

    def work(name, seconds):
        def take(count):
            calls.append((name, count))
            now[0] += count * seconds

        return take

    candidates = [
        timing.Candidate("a", work("a", 2.0), 4),
        timing.Candidate("b", work("b", 1.0), 1),
    ]
    seconds = timing.interleave(candidates, 2, timing.Machine(threads=1))
    assert seconds == {"a": [2.0, 2.0], "b": [1.0, 1.0]}
    a, b = ("a", 4), ("b", 1)
    assert calls == [("a", 2), ("b", 1), a, b, a, b, b, a, b, a]


def test_the_ratio_is_the_median_of_the_rounds():
    ratio = timing.ratio([2.0, 3.0, 8.0], [1.0, 2.0, 2.0])
    assert ratio == timing.Ratio(2.0, 1.5, 4.0)
    assert str(ratio) == "2.00 [1.50..4.00]"


@pytest.mark.parametrize(
    ("shares", "load", "busy"),
    [([1.0, 0.97, 0.6], 2.0, False), ([0.9, 0.9, 1.0], 2.0, True), ([1.0, 1.0, 1.0], 3.0, True)],
)
def test_a_busy_machine_is_reported(shares, load, busy):
    line = timing.verdict(shares, load, threads=2)
    assert ("too busy to trust" in line) == busy
    assert f"load {load}" in line and f"{sorted(shares)[1]:.0%}" in line


def test_an_unknown_suite_is_rejected(capsys):
    with pytest.raises(SystemExit) as ended:
        bench.arguments(["train_idpm"])
    assert ended.value.code == 2
    assert "unknown suite 'train_idpm'; did you mean 'train_iddpm'?" in capsys.readouterr().err


def test_slow_suites_run_by_name_only():
    slow = {"batch_parts", "compile", "demo", "sample_auto"}
    assert set(suites.selected([])) == set(suites.SUITES) - slow
    assert len(suites.selected([])) == 9
    assert suites.selected(["compile"]) == ["compile"]


def test_bf16_is_left_out_where_the_processor_lacks_it():
    measured = {"convolution fp32": 100.0, "convolution bf16": 2.0}
    assert not timing.has_fast_bf16(measured)
    assert timing.has_fast_bf16({**measured, "convolution bf16": 150.0})


def test_ratios_compare_equal_precisions_and_the_defaults():
    from scripts.benchmarks import training

    seconds = {"peer, fp32": [2.0], "peer, plain": [1.5], "ours, fp32": [1.0]}
    rows = {name: ratio.median for name, ratio in training.ratios("peer", seconds, "plain")}
    assert rows == {"same precision, fp32": 2.0, "as shipped: plain against our fp32": 1.5}
    seconds |= {"peer, bf16": [1.0], "ours, bf16": [0.5]}
    rows = {name: ratio.median for name, ratio in training.ratios("peer", seconds)}
    assert rows["same precision, bf16"] == 2.0 and rows["its fp32 against our bf16"] == 4.0


class Convolution(nn.Conv2d):
    """Network of one convolution, or one in the style of diffusers, which wraps its output."""

    wraps = False

    def forward(self, x, t):
        output = super().forward(x) * (1 + t.reshape(-1, 1, 1, 1))
        return SimpleNamespace(sample=output) if self.wraps else output


def test_equal_networks_are_compared_by_outputs_and_operations():
    torch.manual_seed(0)
    ours = Convolution(3, 3, 3, padding=1)
    theirs = deepcopy(ours)
    theirs.wraps = True
    pair = networks.compared(ours, theirs, 8, tolerance=0.0)
    # A product and a sum per weight and pixel, forward and for the gradient of the weights.
    assert pair.difference == 0 and pair.operations == 2 * 2 * (3 * 3 * 9) * 8**2
    assert "84 parameters, 0.00 GFLOP per image and step" in pair.facts
    assert pair.ours.training and pair.ours.weight.grad is None


def test_other_outputs_or_operations_are_an_error():
    torch.manual_seed(0)
    ours, theirs = Convolution(3, 3, 1), Convolution(3, 3, 3, padding=1)
    with torch.no_grad():
        theirs.weight.zero_()[:, :, 1, 1] = ours.weight[:, :, 0, 0]
        theirs.bias.copy_(ours.bias)
    with pytest.raises(RuntimeError, match="2,304 operations per image against 20,736"):
        networks.compared(ours, theirs, 8, tolerance=7.9)
    assert networks.compared(ours, theirs, 8, tolerance=8.1).difference < 1e-6
    with torch.no_grad():
        theirs.weight *= 1.0001
    with pytest.raises(RuntimeError, match="the outputs of the networks differ by"):
        networks.compared(ours, theirs, 8, tolerance=8.1)


def test_the_speed_of_the_demo_is_that_of_all_steps():
    records = [
        {"samples": 100, "samples_per_second": 50},
        {"samples": 400, "samples_per_second": 100},
    ]
    assert demo.speed_of(records) == pytest.approx(400 / (2 + 3))


def test_a_command_is_timed_and_its_status_is_checked(tmp_path):
    assert 0 < commands.seconds_of(commands.TRAIN, ["--help"], tmp_path) < 60
    with pytest.raises(RuntimeError, match=r"trainer\.max_step"):
        commands.seconds_of(commands.TRAIN, ["trainer.max_step=5"], tmp_path)


def test_the_table_of_the_demo_has_both_trainings_in_turns(monkeypatch):
    default = demo.Demo(98.04, steps=1000, images=64000, speed=801.4, fid=0.05243)
    faster = demo.Demo(49.02, steps=1300, images=83200, speed=1600.0, fid=0.0541)
    order = []

    def measured(folder, options):
        order.append(options)
        return faster if options else default

    monkeypatch.setattr(demo, "measured", measured)
    monkeypatch.setattr(commands, "seconds_of", lambda *_: 1.0)
    monkeypatch.setattr(timing.Machine, "probe", lambda machine: machine.shares.append(1.0))
    text = demo.demo(2)
    assert order == [(), demo.FASTER, demo.FASTER, ()]
    row = "98.0 | 801 | 0.0524 | 49.0 | 1600 | 0.0541"
    assert f"| 1 | {row} |\n| 2 | {row} |" in text
    assert "1,000 steps, 64,000 images" in text
    assert "over the default: 2.00 [2.00..2.00]" in text
