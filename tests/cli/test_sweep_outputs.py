"""Separate output places for jobs of a sweep that would write to the same one."""

import json
from pathlib import Path

import pytest

from ddpm.cli.sweep_outputs import separate

JOB = "${hydra:job.num}"
CASES = [  # command, arguments, the rewritten argument, the places of the jobs
    ("sample", "seed=0,1 out=gen", f'out="gen/{JOB}"', "gen/0: seed=0|gen/1: seed=1"),
    ("evaluate", "seed=0,1 out='a'", f'out="a/{JOB}"', "a/0: seed=0|a/1: seed=1"),
    ("interpolate", "t=1,2 out=a out=b/", f'out="b/{JOB}"', "b/0: t=1|b/1: t=2"),
    ("export", "version=1,2 out=x/n.pt", f'out="x/n-{JOB}.pt"', "x/n-0.pt: version=1|x/n-1.pt: version=2"),
    ("import", "file=a,b name=n", f'name="n-{JOB}"', "n-0: file=a|n-1: file=b"),
    ("sample", "out=a,b seed=0,1", f'out="a/{JOB}","b/{JOB}"', "a/0: seed=0|a/1: seed=1|b/2: seed=0|b/3: seed=1"),
    ("sample", "out=g/${t} t=0,1 s=2,3", f'out="g/${{t}}/{JOB}"', "g/0/0: t=0 s=2|g/0/1: t=0 s=3|g/1/2: t=1 s=2|g/1/3: t=1 s=3"),
    ("sample", "out=a,./a", f'out="a/{JOB}","./a/{JOB}"', "a/0:|./a/1:"),
    ("sample", "t=range(2) out=${a:b}/o", f'out="${{a:b}}/o/{JOB}"', "${a:b}/o/0: t=0|${a:b}/o/1: t=1"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "arguments", "changed", "places"), CASES)
def test_jobs_with_the_same_place_are_numbered(command, arguments, changed, places):
    typed = ["-m", *arguments.split()]
    separated, lines = separate(command, typed)
    assert separated == [one for one in typed if not one.startswith(("out=", "name="))] + [changed]
    assert [line.strip() for line in lines[1:]] == places.split("|")


@pytest.mark.parametrize(
    "arguments",
    [
        ["seed=0,1"],
        ["seed=0,1", "out=null"],
        ["out=a,b"],
        ["out=a,b", "seed=3"],
        ["out=g/${seed}", "seed=0,1"],
        ["out=g/${hydra:job.num}", "seed=0,1"],
        ["out=g", "seed=0"],
        ["out=[", "seed=0,1"],
    ],
)
def test_places_that_differ_are_used_as_typed(arguments):
    assert separate("sample", ["-m", *arguments]) == (["-m", *arguments], [])
    assert separate("train", ["-m", "out=g", "seed=0,1"])[1] == []


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_sweep_of_evaluations_keeps_the_results_of_every_job(command, trained, processes):
    ended = command(
        "evaluate", "-m", f"ckpt={trained}", "seed=0,1", "out=e", "metrics=[fid]",
        "num_samples=4", "steps=1", f"launch.processes={processes}",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    seeds = [json.loads(Path("e", n, "evaluation.json").read_text())["seed"] for n in "01"]
    assert seeds == [0, 1] and sorted(path.name for path in Path("e").iterdir()) == ["0", "1"]
    assert "  e/0: seed=0\n  e/1: seed=1\n" in ended.out


def test_sweeps_of_sample_and_export_separate_their_outputs(command, trained):
    ended = command(
        "sample", "-m", f"ckpt={trained}", "seed=0,1", "num_samples=1", "steps=1", "out=s"
    )
    assert ended.status == 0 and all(Path("s", n, "grid.png").exists() for n in "01")
    ended = command("export", "-m", f"ckpt={trained}", "weights=raw,ema", "out=n.safetensors")
    assert ended.status == 0
    assert Path("n-0.safetensors").read_bytes() != Path("n-1.safetensors").read_bytes()
    assert command("export", "-m", f"ckpt={trained}", "weights=raw,ema").status == 0
    names = {path.name for path in Path(trained, "exported").glob("[!.]*")}
    assert names == {"step-00000002-raw.safetensors", "step-00000002.safetensors"}
