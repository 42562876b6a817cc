"""The suite ``demo`` of the benchmark, with the commands that it runs, in this process."""

import json
from pathlib import Path

import pytest

from scripts.benchmarks import commands, demo


def test_the_demo_is_read_from_the_files_of_its_commands(command, tiny, monkeypatch, tmp_path):
    names = {commands.TRAIN: "train", commands.EVALUATE: "evaluate"}

    def seconds_of(module, arguments, folder):
        monkeypatch.chdir(folder)
        ended = command(names[module], *arguments)
        assert ended.status == 0, ended.err
        return 12.5

    monkeypatch.setattr(commands, "seconds_of", seconds_of)
    evaluation = ("num_samples=16", "steps=2", "device=cpu")
    result = demo.measured(tmp_path, (*tiny, "trainer.max_steps=3"), evaluation)
    lines = Path("outputs/latest/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    speeds = [record["samples_per_second"] for record in map(json.loads, lines[:3])]
    assert (result.seconds, result.steps, result.images) == (12.5, 3, 24)
    assert result.speed == pytest.approx(3 / sum(1 / speed for speed in speeds))
    row = json.loads(Path("evaluation/evaluation.json").read_text(encoding="utf-8"))
    assert [each["name"] for each in row["metrics"]] == ["fid_16"]
    assert result.fid == row["metrics"][0]["value"] > 1
